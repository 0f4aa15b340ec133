"""ClipRetrieval: rankings, embeddings, batch invariance, costs, stored checkpoints and bad input."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from madtp_core.checkpoint import Checkpoint, load_checkpoint
from madtp_core.errors import ConfigError
from madtp_core.images import preprocess_image
from madtp_core.pruning import KEEP_MODES, PER_INSTANCE, TEXT, VISION
from madtp_core.tasks import load_model
from madtp_core.tasks.clip import ClipAnswer, ClipRetrieval
from madtp_core.tasks.ranking import RetrievalQuery
from tests.core.tiny_clip import make_checkpoint

CAPTIONS = ("a red star", "blue squares", "two dots", "no circle at all", "stripes", "a star")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return make_checkpoint()


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> ClipRetrieval:
    return ClipRetrieval(checkpoint)


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 40, 40), dtype=np.float32)


def texts_for_an_image(seed: int = 0, **options: object) -> RetrievalQuery:
    return RetrievalQuery(pixels(1, seed), CAPTIONS, **options)


def images_for_a_text(seed: int = 0, **options: object) -> RetrievalQuery:
    return RetrievalQuery(pixels(4, seed + 100), (CAPTIONS[seed % 6],), **options)


def outcome(answer: ClipAnswer) -> tuple[object, ...]:
    return [one.index for one in answer.ranked], answer.spent.traces, answer.spent.cost.flops


# --- Dense: Hugging Face's


@torch.no_grad()
@pytest.mark.parametrize("query", [texts_for_an_image(), images_for_a_text()])
def test_dense_logits_are_hugging_faces(
    model: ClipRetrieval, checkpoint: Checkpoint, query: RetrievalQuery
) -> None:
    inputs = checkpoint.tokenizer(list(query.texts), padding=True, return_tensors="pt")
    theirs = checkpoint.model(pixel_values=torch.from_numpy(query.pixel_values), **inputs)
    expected = theirs.logits_per_image.flatten().tolist()
    answer = model.predict([query], prune_temperature=0.0)[0]
    assert [one.index for one in answer.ranked] == sorted(range(len(expected)), key=lambda i: -expected[i])
    assert list(answer.logits) == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    assert [one.itc for one in answer.ranked] == pytest.approx(
        [logit / float(checkpoint.model.logit_scale.exp()) for logit in answer.logits], abs=1e-5
    )
    assert all(one.itm is None and one.score == one.itc for one in answer.ranked)


def test_embeddings_are_what_is_compared(model: ClipRetrieval) -> None:
    query = texts_for_an_image(with_embeddings=True)
    answer = model.predict([query], prune_temperature=0.0)[0]
    images = model.embed_images(list(query.pixel_values), prune_temperature=0.0)
    texts = model.embed_texts(query.texts, prune_temperature=0.0)
    image, words = np.stack([one.values for one in images]), np.stack([one.values for one in texts])
    assert answer.image_embeddings == pytest.approx(image, abs=1e-6)
    assert answer.text_embeddings == pytest.approx(words, abs=1e-6)
    cosines = (image @ words.T)[0]
    assert [one.itc for one in answer.ranked] == pytest.approx([cosines[one.index] for one in answer.ranked])
    assert np.linalg.norm(words, axis=1) == pytest.approx(1, abs=1e-6)


# --- Pruned


@pytest.mark.parametrize("prune_temperature", [0.0, 2.0])
def test_per_instance_answers_do_not_depend_on_the_batch(
    model: ClipRetrieval, prune_temperature: float
) -> None:
    options = {"prune_temperature": prune_temperature, "keep_mode": PER_INSTANCE}
    queries = [texts_for_an_image(0), images_for_a_text(1), texts_for_an_image(2)]
    together = model.predict(queries, **options)
    for query, answer in zip(queries, together, strict=True):
        alone = model.predict([query], **options)[0]
        assert outcome(alone) == outcome(answer)
        assert alone.logits == pytest.approx(answer.logits, abs=1e-5)


def test_fifty_shuffled_batches_rank_alike(model: ClipRetrieval) -> None:
    shuffle = random.Random(0)
    queries = [RetrievalQuery(pixels(1, seed), CAPTIONS[seed : seed + 2]) for seed in range(3)]
    queries.append(RetrievalQuery(pixels(2, 3), CAPTIONS[:1]))
    options = {"prune_temperature": 2.0, "keep_mode": PER_INSTANCE}
    expected = [outcome(model.predict([query], **options)[0]) for query in queries]
    for _ in range(50):
        order = shuffle.sample(range(len(queries)), shuffle.randint(2, len(queries)))
        answers = model.predict([queries[place] for place in order], **options)
        assert [outcome(answer) for answer in answers] == [expected[place] for place in order]


def test_max_keep_keeps_what_the_neediest_image_needs(model: ClipRetrieval) -> None:
    answers = model.predict([images_for_a_text(0), texts_for_an_image(1)], prune_temperature=2.0)
    images = [trace for answer in answers for trace in answer.spent.traces[VISION]]
    assert len(images) == 5 and len({trace.kept for trace in images}) == 1
    assert images[0].kept[0] == max(trace.needed[0] for trace in images) < images[0].dense


def test_each_query_may_have_its_own_temperature(model: ClipRetrieval) -> None:
    queries = [images_for_a_text(0), images_for_a_text(1)]
    mixed = model.predict(queries, prune_temperature=[0.0, 2.0], keep_mode=PER_INSTANCE)
    assert all(trace.kept == (25, 25, 25) for trace in mixed[0].spent.traces[VISION])
    alone = model.predict(queries[1:], prune_temperature=2.0, keep_mode=PER_INSTANCE)[0]
    assert outcome(mixed[1]) == outcome(alone)


# --- Cost


@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_pruning_costs_less_and_padding_more(model: ClipRetrieval, keep_mode: str) -> None:
    queries = [texts_for_an_image(0), images_for_a_text(1)]
    dense, pruned = (model.predict(queries, prune_temperature=t, keep_mode=keep_mode) for t in (0.0, 2.0))
    for one, other in zip(dense, pruned, strict=True):
        assert one.spent.cost.flops_ratio == 1 and one.spent.difficulty is None
        assert other.spent.cost.dense_flops == one.spent.cost.flops
        assert other.spent.cost.needed_flops <= other.spent.cost.flops <= other.spent.cost.padded_flops
        assert other.spent.difficulty is not None and 0 < other.spent.difficulty < 1
        assert other.spent.token_density < 1
    assert [len(pruned[0].spent.traces[branch]) for branch in (VISION, TEXT)] == [1, 6]
    assert [len(pruned[1].spent.traces[branch]) for branch in (VISION, TEXT)] == [4, 1]


def test_embedding_apart_costs_what_the_query_costs_but_the_comparison(model: ClipRetrieval) -> None:
    query = texts_for_an_image(0)
    options = {"prune_temperature": 2.0, "keep_mode": PER_INSTANCE}
    apart = [
        *model.embed_images(list(query.pixel_values), **options),
        *model.embed_texts(query.texts, **options),
    ]
    whole = model.predict([query], **options)[0].spent.cost
    assert whole.flops - sum(one.spent.cost.flops for one in apart) == 2 * 6 * 16


def test_a_text_counts_its_tokens_before_eot(model: ClipRetrieval) -> None:
    spent = model.embed_texts(["a star", "dots"], prune_temperature=0.0)
    assert [one.spent.traces[TEXT][0].dense for one in spent] == [1 + 5, 1 + 4]  # SOT and letters


# --- Stored


def test_save_and_load_answer_alike(model: ClipRetrieval, checkpoint: Checkpoint, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    assert isinstance(loaded, ClipRetrieval)
    assert loaded.image_geometry == checkpoint.image_geometry
    query = texts_for_an_image(3)
    ours, theirs = (one.predict([query], prune_temperature=2.0)[0] for one in (model, loaded))
    assert outcome(ours) == outcome(theirs)
    assert ours.logits == pytest.approx(theirs.logits, abs=1e-5)


def test_hugging_face_reads_what_we_store(
    model: ClipRetrieval, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "saved")
    theirs = CLIPModel.from_pretrained(tmp_path / "saved").state_dict()
    for name, value in checkpoint.model.state_dict().items():
        assert torch.equal(theirs[name], value), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer(list(CAPTIONS))["input_ids"] == checkpoint.tokenizer(list(CAPTIONS))["input_ids"]
    processor = AutoImageProcessor.from_pretrained(tmp_path / "saved", backend="pil")
    levels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    picture = Image.fromarray(levels)
    np.testing.assert_array_equal(
        processor(images=picture, return_tensors="np")["pixel_values"][0],
        preprocess_image(picture, checkpoint.image_geometry),
    )


def test_a_plain_clip_directory_serves_dense(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As Hugging Face writes it, with the preprocessor file that OpenAI's releases have."""
    checkpoint.model.save_pretrained(tmp_path)
    checkpoint.tokenizer.save_pretrained(tmp_path)
    processor = {
        "feature_extractor_type": "CLIPFeatureExtractor", "do_resize": True, "size": 40, "resample": 3,
        "do_center_crop": True, "crop_size": 40, "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    plain = load_model(tmp_path)
    assert isinstance(plain, ClipRetrieval)
    assert plain.image_geometry.shortest_edge == 40
    assert plain.checkpoint.config.max_text_tokens == 24  # its positions
    query = texts_for_an_image()
    expected = ClipRetrieval(checkpoint).predict([query], prune_temperature=0.0)[0]
    answer = plain.predict([query], prune_temperature=0.0)[0]
    assert answer.logits == pytest.approx(expected.logits, abs=1e-5)
    with pytest.raises(ConfigError, match="no pruning"):
        plain.predict([query], prune_temperature=1.0)


def test_it_describes_itself(model: ClipRetrieval) -> None:
    told = model.describe()
    assert (told["task"], told["architecture"]) == ("clip", "clip")
    assert told["image"] == {"height": 40, "width": 40, "patch_size": 8}
    assert told["text"] == {"blocks": 3, "width": 24, "vocabulary": 54}
    assert json.dumps(told)


# --- Other geometries and bad input


def test_an_image_grid_that_is_not_square(checkpoint: Checkpoint) -> None:
    """Trained on 5 x 5 patches, served on 4 x 7: positions are interpolated."""
    model = ClipRetrieval(
        replace(checkpoint, image_geometry=replace(checkpoint.image_geometry, height=32, width=56))
    )
    images = np.random.default_rng(0).standard_normal((1, 3, 32, 56), dtype=np.float32)
    answer = model.predict([RetrievalQuery(images, CAPTIONS)], prune_temperature=2.0)[0]
    assert answer.spent.traces[VISION][0].dense == 28
    assert answer.spent.cost.flops_ratio < 1


def test_an_empty_batch_has_no_answers(model: ClipRetrieval) -> None:
    assert model.predict([], prune_temperature=0.0) == []
    assert model.embed_images([], prune_temperature=0.0) == []
    assert model.embed_texts([], prune_temperature=0.0) == []


@pytest.mark.parametrize(
    ("bad", "options"),
    [
        (RetrievalQuery(pixels(2), CAPTIONS), {}),
        (RetrievalQuery(pixels(0), CAPTIONS), {}),
        (RetrievalQuery(pixels(1), ()), {}),
        (RetrievalQuery(pixels(1), ("a star", " ")), {}),
        (RetrievalQuery(pixels(1), ("a" * 30,)), {}),
        (RetrievalQuery(np.zeros((1, 3, 32, 32), np.float32), CAPTIONS), {}),
        (texts_for_an_image(rerank=2), {}),
        (texts_for_an_image(), {"prune_temperature": -1.0}),
        (texts_for_an_image(), {"prune_temperature": [0.5, 0.5]}),
        (texts_for_an_image(), {"keep_mode": "most"}),
    ],
)
def test_bad_values_are_refused(
    model: ClipRetrieval, bad: RetrievalQuery, options: dict[str, object]
) -> None:
    with pytest.raises(ConfigError):
        model.predict([bad], **{"prune_temperature": 0.0, **options})


def test_more_text_tokens_than_positions_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="24 text positions"):
        ClipRetrieval(replace(checkpoint, config=replace(checkpoint.config, max_text_tokens=25)))


def test_a_checkpoint_of_another_task_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="retrieval"):
        ClipRetrieval(replace(checkpoint, config=replace(checkpoint.config, task="retrieval")))


def test_maps_of_another_geometry_are_refused(
    model: ClipRetrieval, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The names that a converter must write, and that a missing one is told."""
    from safetensors.torch import load_file, save_file

    from madtp_core.errors import CheckpointError

    model.save_pretrained(tmp_path / "saved")
    stored = tmp_path / "saved" / "mag.safetensors"
    weights = load_file(stored)
    assert weights["tokens"].shape == (12, 32)
    assert weights["maps.vision.2.weight"].shape == (32, 32) and weights["maps.text.0.bias"].shape == (32,)
    del weights["maps.text.0.bias"]
    save_file(weights, stored)
    with pytest.raises(CheckpointError, match=r"maps\.text\.0\.bias"):
        load_checkpoint(tmp_path / "saved")
