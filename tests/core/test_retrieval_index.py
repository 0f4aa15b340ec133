"""A gallery's index: what it matches, and its cost, are those of requests that encode everything anew."""

from dataclasses import replace

import numpy as np
import pytest

from madtp_core.config import PruningConfig
from madtp_core.pruning import MAX_KEEP, PER_INSTANCE
from madtp_core.tasks.ranking import RetrievalQuery
from madtp_core.tasks.retrieval import BlipRetrieval
from madtp_core.tasks.retrieval_index import RetrievalIndex
from tests.core.tiny_models import IMAGE_SIZE, tiny_model

TEXTS = ("a red star", "two circles above a large blue square", "no", "a ring", "a small red circle")
SEARCHES = [([1], [0, 2, 4]), ([2, 0, 3], [1]), ([0], [3])]


@pytest.fixture(scope="module")
def model(vqa_checkpoint):
    checkpoint = tiny_model("retrieval", vqa_checkpoint).checkpoint
    reads_by_enc = replace(
        checkpoint.config, encoder_first_token="enc"
    )  # another first token than texts alone
    return BlipRetrieval(replace(checkpoint, config=reads_by_enc))


@pytest.fixture(scope="module")
def images():
    return list(np.random.default_rng(0).standard_normal((4, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32))


def filled(model, images, **options):
    index = RetrievalIndex(model, **options)
    for start in (0, 3):
        index.add_images(images[start : start + 3])
        index.add_texts(TEXTS[start : start + 3])
    return index


@pytest.mark.parametrize(
    ("prune_temperature", "keep_mode"), [(0.0, MAX_KEEP), (0.0, PER_INSTANCE), (1.0, PER_INSTANCE)]
)
def test_a_search_is_answered_as_a_request(model, images, prune_temperature, keep_mode):
    options = {"prune_temperature": prune_temperature, "keep_mode": keep_mode}
    answers = filled(model, images, **options).match(SEARCHES)
    for (shown, said), answer in zip(SEARCHES, answers, strict=True):
        query = RetrievalQuery(np.stack([images[row] for row in shown]), tuple(TEXTS[row] for row in said))
        (expected,) = model.predict([query], **options)
        assert [one.index for one in answer.ranked] == [one.index for one in expected.ranked]
        scores = [(one.itc, one.itm) for one in expected.ranked]
        assert [(one.itc, one.itm) for one in answer.ranked] == [
            pytest.approx(pair, abs=1e-4) for pair in scores
        ]
        assert answer.spent.cost.flops == expected.spent.cost.flops
        assert answer.spent.cost.dense_flops == expected.spent.cost.dense_flops


def test_images_of_unlike_batches_are_read_together(model, images):
    """Under max_keep each batch of images keeps another number of tokens: the fewer are padded."""
    checkpoint = model.checkpoint
    pruning = PruningConfig(prune_temperature=1.0, branches=("vision",))
    sees_less = BlipRetrieval(replace(checkpoint, config=replace(checkpoint.config, pruning=pruning)))
    index = filled(sees_less, images, prune_temperature=1.0)
    assert len({image.spent.traces["vision"][0].kept[-1] for image in index.images}) == 2
    (together,) = index.match([([0, 3], [1])])
    for one in together.ranked:
        (alone,) = index.match([([(0, 3)[one.index]], [1])])
        assert one.itm == pytest.approx(alone.ranked[0].itm, abs=1e-4)


def test_embeddings_are_those_of_the_model(model, images):
    index = filled(model, images)
    expected = model.embed_images(images, prune_temperature=0.0)
    for one, other in zip(index.images, expected, strict=True):
        np.testing.assert_allclose(one.values, other.values, atol=1e-5)


def test_clip_is_indexed_and_matches_nothing(vqa_checkpoint, images):
    model = tiny_model("clip", vqa_checkpoint)
    size = model.image_geometry.width
    index = RetrievalIndex(model)
    index.add_images([image[:, :size, :size] for image in images[:2]])
    index.add_texts(["red", "blue"])
    assert not index.can_match and len(index.images) == len(index.texts) == 2
