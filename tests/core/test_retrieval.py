"""BLIP retrieval: parity with Hugging Face and the reference, ranking, batch invariance, costs, bad input."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BlipForImageTextRetrieval

from madtp_core.alignment import alignment_loss
from madtp_core.backbones.blip import blip_config, build_blip_retrieval, scramble
from madtp_core.checkpoint import build_alignment
from madtp_core.config import AlignmentConfig, MadtpConfig, PruningConfig
from madtp_core.encoder import BatchPruning, Pruning
from madtp_core.errors import ConfigError
from madtp_core.flops import BranchTrace, linear_macs, memory_macs, text_encoder_macs, vision_macs
from madtp_core.pruning import KEEP_MODES, MAX_KEEP, PER_INSTANCE, TEXT, VISION, build_pruner
from madtp_core.tasks import load_model
from madtp_core.tasks.cost import MATCH
from madtp_core.tasks.ranking import Candidate, Compared, RetrievalQuery
from madtp_core.tasks.retrieval import BlipRetrieval
from tests.core import reference
from tests.core.counting import counted, traces_of, uncounted

PRUNE_TEMPERATURE = 1.0
TEXTS = (
    "two circles",
    "a large red star above a small striped square",
    "there is a green circle left of the blue triangle",
    "a small yellow square",
    "red star",
)


def make_checkpoint(vqa_checkpoint, width: int):
    """A tiny scrambled retrieval model; its text is 32 wide, as are the alignment tokens."""
    tokenizer = vqa_checkpoint.tokenizer
    config = blip_config(
        width=width, text_width=32, heads=2, vision_blocks=2, text_blocks=2, image_size=64, patch_size=8,
        vocabulary=len(tokenizer), max_text_tokens=40, embedding_width=24,
        bos_token_id=tokenizer.bos_token_id, sep_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    blip = build_blip_retrieval(config).eval()
    scramble(blip, std=0.2)
    alignment_config = AlignmentConfig(num_tokens=12, dim=32)
    alignment = build_alignment(alignment_config, config)
    scramble(alignment, seed=1, std=1.0)
    madtp = MadtpConfig(
        task="retrieval", max_text_tokens=40, alignment=alignment_config, pruning=PruningConfig()
    )
    return replace(vqa_checkpoint, model=blip, alignment=alignment, config=madtp)


@pytest.fixture(scope="module")
def checkpoint(vqa_checkpoint):
    """Vision and text equally wide."""
    return make_checkpoint(vqa_checkpoint, 32)


@pytest.fixture(scope="module")
def model(checkpoint):
    return BlipRetrieval(checkpoint)


def images(*seeds: int) -> np.ndarray:
    return np.stack(
        [np.random.default_rng(seed).standard_normal((3, 64, 64), dtype=np.float32) for seed in seeds]
    )


def of_image(seed: int, texts=TEXTS, **options) -> RetrievalQuery:
    return RetrievalQuery(images(seed), texts, **options)


def of_text(text: str, *seeds: int, **options) -> RetrievalQuery:
    return RetrievalQuery(images(*seeds), (text,), **options)


def pixels(*seeds: int) -> torch.Tensor:
    return torch.from_numpy(images(*seeds))


def assert_same_ranks(ours, theirs) -> None:
    """The same candidates in the same order, their scores alike."""
    assert [candidate.index for candidate in ours] == [candidate.index for candidate in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.itc == pytest.approx(other.itc, abs=1e-5)
        assert one.itm == (None if other.itm is None else pytest.approx(other.itm, abs=1e-5))


# --- Parity with Hugging Face


@torch.no_grad()
def test_dense_similarities_are_hugging_faces(model):
    ids, mask = model.codec.texts(TEXTS)
    theirs = model.network.blip(ids, pixels(0, 1, 2), use_itm_head=False, attention_mask=mask).itm_score
    for row in range(3):
        answer = model.predict([of_image(row, rerank=0)], prune_temperature=0.0)[0]
        ours = {candidate.index: candidate.itc for candidate in answer.ranked}
        assert [ours[index] for index in range(5)] == pytest.approx(theirs[row].tolist(), abs=1e-5)


@torch.no_grad()
def test_dense_match_logits_are_hugging_faces(model):
    ids, mask = model.codec.texts(TEXTS)
    theirs = model.network.blip(ids, pixels(3).expand(5, -1, -1, -1), attention_mask=mask).itm_score
    answer = model.predict([of_image(3)], prune_temperature=0.0)[0]
    for candidate in answer.ranked:
        no, yes = theirs[candidate.index].tolist()
        assert candidate.itm == pytest.approx(yes, abs=1e-5)
        assert candidate.match_probability == pytest.approx(1 / (1 + np.exp(no - yes)), abs=1e-5)


@torch.no_grad()
def test_a_text_against_images_has_the_same_scores_as_the_images_against_it(model):
    (by_text,) = model.predict([of_text(TEXTS[1], 0, 1, 2)], prune_temperature=0.0)
    by_image = model.predict([of_image(seed, (TEXTS[1],)) for seed in range(3)], prune_temperature=0.0)
    for candidate in by_text.ranked:
        (other,) = by_image[candidate.index].ranked
        assert (candidate.itc, candidate.itm) == pytest.approx((other.itc, other.itm), abs=1e-5)


@pytest.mark.parametrize("first_token", ["enc", "cls"])
def test_only_a_text_that_reads_an_image_begins_with_enc(checkpoint, first_token):
    config = replace(checkpoint.config, encoder_first_token=first_token)
    model = BlipRetrieval(replace(checkpoint, config=config))
    firsts = []
    embeddings = model.network.blip.text_encoder.embeddings
    handle = embeddings.register_forward_pre_hook(
        lambda module, args, kwargs: firsts.append(set(kwargs["input_ids"][:, 0].tolist())), with_kwargs=True
    )
    model.predict([of_image(0)], prune_temperature=0.0)
    handle.remove()
    tokenizer = checkpoint.tokenizer
    enc, cls = tokenizer.convert_tokens_to_ids("[ENC]"), tokenizer.cls_token_id
    assert firsts == [{cls}, {enc if first_token == "enc" else cls}]


# --- Against the float64 reference


def assert_equals_reference(encoded, instances):
    assert min(instance.margin for instance in instances) > 1e-5
    assert any((encoded.kept < encoded.tokens_in).all(0))
    tokens = encoded.tokens.unpack()
    for row, instance in enumerate(instances):
        assert encoded.needed[:, row].tolist() == instance.needed
        assert encoded.tokens_in[:, row].tolist() == instance.tokens_in
        hidden = tokens.hidden[row, : len(instance.hidden)].double()
        torch.testing.assert_close(hidden, instance.hidden, atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("keep_mode", KEEP_MODES)
@pytest.mark.parametrize("prune_temperature", [4.0, 16.0])
def test_texts_alone_and_matched_equal_the_reference(model, keep_mode, prune_temperature):
    network = model.network
    tower, tokens = network.blip.text_encoder, network.alignment.tokens
    ids, mask = model.codec.texts(TEXTS)

    def pruning(rows):
        return Pruning(build_pruner("madtp"), torch.full((rows,), prune_temperature), keep_mode)

    own_ids = [row[real.bool()] for row, real in zip(ids, mask, strict=True)]
    alone = network.encode_text(ids, mask, pruning=pruning(5))
    instances = reference.run_text(
        tower, tokens, own_ids, [None] * 5, prune_temperature, keep_mode, reference.read_nothing
    )
    assert_equals_reference(alone, instances)

    read = [1, 0, 1, 1, 0]
    image = network.encode_image(pixels(0, 1), pruning(2))
    match = network.match(ids, mask, image, torch.tensor(read), pruning(5))
    seen = reference.run_vision(network.blip.vision_model, tokens, pixels(0, 1), prune_temperature, keep_mode)
    memories = [seen[row].hidden for row in read]
    instances = reference.run_text(tower, tokens, own_ids, memories, prune_temperature, keep_mode)
    assert_equals_reference(match, instances)


# --- Ranking


def test_matched_candidates_are_ranked_by_both_scores_and_stand_first(model):
    (answer,) = model.predict([of_image(2, rerank=3)], prune_temperature=0.0)
    (compared,) = model.predict([of_image(2, rerank=0)], prune_temperature=0.0)
    assert [candidate.itm for candidate in compared.ranked] == [None] * 5
    similarities = [candidate.itc for candidate in compared.ranked]
    assert similarities == sorted(similarities, reverse=True)
    matched, others = answer.ranked[:3], answer.ranked[3:]
    assert {candidate.index for candidate in matched} == {one.index for one in compared.ranked[:3]}
    assert [one.index for one in others] == [one.index for one in compared.ranked[3:]]
    scores = [candidate.itc + candidate.itm for candidate in matched]
    assert scores == sorted(scores, reverse=True) == [candidate.score for candidate in matched]


def test_a_rank_follows_the_sum_of_logit_and_similarity():
    compared = Compared((2, 0, 1, 3), (0.9, 0.5, 0.1, 0.05), ((0, 2), (0, 0), (0, 1), (0, 3)), matched=3)
    ranked = compared.ranked(torch.tensor([[0.0, 0.0], [0.0, 0.3], [0.0, 1.0]]))
    assert [candidate.index for candidate in ranked] == [1, 2, 0, 3]  # sums of 1.1, 0.9 and 0.8; unmatched
    assert ranked[1] == Candidate(2, 0.9, 0.0, 0.5)
    assert ranked[3] == Candidate(3, 0.05)


def test_each_image_and_each_text_is_encoded_once_and_unread_images_are_not_projected(model):
    calls = {"images": 0, "texts": 0, "memory": 0}

    def count(name, module):
        def hook(_, args):
            calls[name] += args[0].shape[0] if args[0].dim() > 2 else 1

        return module.register_forward_pre_hook(hook)

    blip = model.network.blip
    layer = blip.text_encoder.encoder.layer[0]
    handles = [
        count("images", blip.vision_model.embeddings.patch_embedding),
        count("texts", layer.attention.output),
        count("memory", layer.crossattention.self.key),
    ]
    model.predict([of_image(0)], prune_temperature=0.0)
    assert calls == {"images": 1, "texts": 10, "memory": 1}
    calls.update(images=0, texts=0, memory=0)
    model.predict([of_text(TEXTS[0], 0, 1, 2, 3, rerank=2)], prune_temperature=0.0)
    assert calls == {"images": 4, "texts": 3, "memory": 2}
    for handle in handles:
        handle.remove()


def test_embeddings_come_on_request_in_the_querys_order(model):
    plain, asked = model.predict([of_image(0), of_image(0, with_embeddings=True)], prune_temperature=0.0)
    assert plain.image_embeddings is None and plain.text_embeddings is None
    assert asked.image_embeddings.shape == (1, 24) and asked.text_embeddings.shape == (5, 24)
    cosines = (asked.image_embeddings @ asked.text_embeddings.T)[0]
    for candidate in asked.ranked:
        assert candidate.itc == pytest.approx(cosines[candidate.index], abs=1e-6)
    assert np.linalg.norm(asked.text_embeddings, axis=1) == pytest.approx(np.ones(5), abs=1e-6)
    apart = model.embed_texts(TEXTS, prune_temperature=0.0)
    assert np.stack([one.values for one in apart]) == pytest.approx(asked.text_embeddings, abs=1e-6)
    (image,) = model.embed_images(images(0), prune_temperature=0.0)
    assert image.values == pytest.approx(asked.image_embeddings[0], abs=1e-6)


# --- Batches

MIX = (
    of_image(0),
    of_text(TEXTS[1], 1, 2, 3),
    of_image(4, TEXTS[:3], rerank=2),
    of_text(TEXTS[0], 5, 6, rerank=1),
    of_image(7, TEXTS[4:]),
    of_text(TEXTS[2], 8, 9, rerank=0),
)


@pytest.mark.parametrize("prune_temperature", [0.0, PRUNE_TEMPERATURE])
def test_per_instance_answers_do_not_depend_on_the_batch(model, prune_temperature):
    together = model.predict(MIX, prune_temperature=prune_temperature, keep_mode=PER_INSTANCE)
    for own, answer in zip(MIX, together, strict=True):
        alone = model.predict([own], prune_temperature=prune_temperature, keep_mode=PER_INSTANCE)[0]
        assert alone.spent.traces == answer.spent.traces
        assert alone.spent.cost.flops == answer.spent.cost.flops
        assert_same_ranks(answer.ranked, alone.ranked)


def test_per_instance_ranks_are_the_same_in_any_company(model):
    def ranks(queries):
        answers = model.predict(queries, prune_temperature=PRUNE_TEMPERATURE, keep_mode=PER_INSTANCE)
        return [tuple(candidate.index for candidate in answer.ranked) for answer in answers]

    expected = {id(own): ranks([own])[0] for own in MIX}
    shuffler = random.Random(0)
    for _ in range(50):
        batch = shuffler.sample(MIX, k=shuffler.randint(2, 3))
        assert ranks(batch) == [expected[id(own)] for own in batch]


def test_per_instance_embeddings_do_not_depend_on_the_batch(model):
    options = {"prune_temperature": PRUNE_TEMPERATURE, "keep_mode": PER_INSTANCE}
    for embed, given in ((model.embed_images, images(0, 1, 2)), (model.embed_texts, TEXTS)):
        for together, one in zip(embed(given, **options), given, strict=True):
            (alone,) = embed([one], **options)
            assert together.values == pytest.approx(alone.values, abs=1e-5)
            assert together.spent.cost.flops == alone.spent.cost.flops


def test_max_keep_keeps_what_the_neediest_needs(model):
    answers = model.predict(MIX, prune_temperature=PRUNE_TEMPERATURE)
    traces = [trace for answer in answers for trace in answer.spent.traces[VISION]]
    assert len({trace.kept for trace in traces}) == 1
    assert traces[0].kept[0] == max(trace.needed[0] for trace in traces) < traces[0].dense


def test_each_query_may_have_its_own_temperature(model):
    options = {"keep_mode": PER_INSTANCE}
    mixed = model.predict(MIX[:2], prune_temperature=[0.0, PRUNE_TEMPERATURE], **options)
    (alone,) = model.predict(MIX[1:2], prune_temperature=PRUNE_TEMPERATURE, **options)
    assert mixed[0].spent.cost.flops < mixed[0].spent.cost.dense_flops * 1.1  # scored, not pruned
    assert all(trace.kept == trace.tokens_in for group in mixed[0].spent.traces.values() for trace in group)
    assert mixed[1].spent.traces == alone.spent.traces


@pytest.mark.parametrize("branches", [("vision",), ("text",)])
def test_a_branch_that_is_not_named_runs_dense(checkpoint, branches):
    config = replace(checkpoint.config, pruning=PruningConfig(branches=branches))
    model = BlipRetrieval(replace(checkpoint, config=config))
    (answer,) = model.predict([of_image(0)], prune_temperature=4.0)
    for group, branch in ((VISION, VISION), (TEXT, TEXT), (MATCH, TEXT)):
        traces = answer.spent.traces[group]
        assert any(trace.kept[-1] < trace.dense for trace in traces) == (branch in branches)


# --- Cost


@pytest.fixture(scope="module")
def wide(vqa_checkpoint):
    """A model whose vision is wider than its text, and reaches the alignment tokens through maps."""
    return BlipRetrieval(make_checkpoint(vqa_checkpoint, 48))


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("one_image", [True, False])
def test_a_retrievals_multiply_adds_are_fvcores(wide, pruned, one_image):
    """Three candidates, two of them matched: rows of equal length, so that no padding is counted."""
    network, cost = wide.network, wide.cost_model
    rows, reads = ((1, 3), [0, 0]) if one_image else ((3, 1), [0, 1])
    pixel_values, reads = pixels(*range(rows[0])), torch.tensor(reads)
    ids = torch.randint(5, 200, (rows[1], 9))
    match_ids = ids[: len(reads)].expand(2, -1)

    def pruning(count):
        temperature = torch.full((count,), 4.0)
        return Pruning(build_pruner("madtp"), temperature, MAX_KEEP) if pruned else None

    def encode(pixel_values, ids, match_ids):
        image = network.encode_image(pixel_values, pruning(rows[0]))
        text = network.encode_text(ids, None, pruning=pruning(rows[1]))
        match = network.match(match_ids, torch.ones_like(match_ids), image, reads, pruning(2))
        return image, text, match

    def run(*inputs):
        image, text, match = encode(*inputs)
        similarities = network.image_embeddings(image) @ network.text_embeddings(text).T
        return similarities.sum() + network.match_logits(match).sum()

    with torch.no_grad():
        image, text, match = encode(pixel_values, ids, match_ids)
    traces = {VISION: traces_of(image), TEXT: traces_of(text), MATCH: traces_of(match)}
    scoring = cost.alignment if pruned else None
    expected = cost.macs(traces, (), {VISION: scoring, TEXT: scoring})
    if pruned:
        assert all(trace.kept[-1] < trace.dense for group in traces.values() for trace in group)
        expected += sum(uncounted(trace, scoring, 48, is_mapped=True) for trace in traces[VISION])
        expected += sum(uncounted(trace, scoring, 32) for trace in [*traces[TEXT], *traces[MATCH]])
    assert counted(network, run, pixel_values, ids, match_ids) == expected


def dense(tokens: int) -> BranchTrace:
    full = (tokens, tokens)
    return BranchTrace(tokens, full, full, full)


def test_a_request_pays_for_what_it_encodes_and_for_the_images_its_texts_read(wide):
    cost = wide.cost_model
    image = vision_macs(cost.vision, dense(64)) + linear_macs(48, 24)
    (length,) = [int(mask.sum()) - 1 for mask in wide.codec.texts(TEXTS[:1])[1]]
    text = text_encoder_macs(cost.text, dense(length), None) + linear_macs(32, 24)
    memory = memory_macs(cost.text, 65)
    match = text_encoder_macs(cost.text, dense(length), 65) - memory + linear_macs(32, 2)
    for rerank in (0, 2, None):
        matched = 3 if rerank is None else rerank
        (answer,) = wide.predict([of_text(TEXTS[0], 0, 1, 2, rerank=rerank)], prune_temperature=0.0)
        expected = 3 * image + text + 3 * 24 + matched * (memory + match)
        assert answer.spent.cost.flops == answer.spent.cost.dense_flops == 2 * expected
        (answer,) = wide.predict([of_image(0, TEXTS[:1] * 3, rerank=rerank)], prune_temperature=0.0)
        expected = image + 3 * text + 3 * 24 + matched * match + bool(matched) * memory
        assert answer.spent.cost.flops == 2 * expected


def test_a_text_pays_for_the_kept_tokens_of_the_images_it_reads(wide):
    options = {"prune_temperature": PRUNE_TEMPERATURE, "keep_mode": PER_INSTANCE}
    (answer,) = wide.predict([of_text(TEXTS[1], 0, 1, 2, rerank=2)], **options)
    traces = answer.spent.traces
    by_similarity = sorted(answer.ranked, key=lambda candidate: -candidate.itc)
    for trace, candidate in zip(traces[VISION], by_similarity, strict=True):
        (alone,) = wide.embed_images(images(candidate.index), **options)
        assert alone.spent.traces[VISION] == (trace,)
    tokens = [trace.leaving()[-1] + 1 for trace in traces[VISION]]
    assert len(set(tokens)) == 3  # so that it matters which two are read

    cost = wide.cost_model
    scoring = cost.alignment
    macs = sum(vision_macs(cost.vision, trace, scoring) + linear_macs(48, 24) for trace in traces[VISION])
    macs += text_encoder_macs(cost.text, *traces[TEXT], None, scoring) + linear_macs(32, 24) + 3 * 24
    for match, memory in zip(traces[MATCH], tokens[:2], strict=True):
        macs += text_encoder_macs(cost.text, match, memory, scoring) + linear_macs(32, 2)
    assert answer.spent.cost.flops == 2 * macs


@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_pruning_costs_less_and_padding_more(model, keep_mode):
    for answer in model.predict(MIX, prune_temperature=PRUNE_TEMPERATURE, keep_mode=keep_mode):
        cost = answer.spent.cost
        assert cost.needed_flops <= cost.flops <= cost.padded_flops and cost.flops < cost.dense_flops
        assert 0 < answer.spent.difficulty < 1
        assert keep_mode == MAX_KEEP or cost.flops == cost.padded_flops == cost.needed_flops


# --- Training


@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_the_training_forward_gives_what_the_losses_need(model, keep_mode):
    network = model.network
    ids, mask = model.codec.texts(TEXTS[:3])
    pairs = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([0, 1, 2, 0, 2])
    seen = []

    def choose(image_embeddings, text_embeddings):
        seen.append(image_embeddings @ text_embeddings.T)
        return pairs

    pruning = BatchPruning(build_pruner("madtp"), torch.tensor([1.0, 2.0, 4.0]), keep_mode)
    out = network(pixels(0, 1, 2), ids, model.codec.reading(ids), mask, choose, pruning, align=True)
    assert torch.equal(seen[0], out.image_embeddings @ out.text_embeddings.T)
    match = network.match(ids[pairs[1]], mask[pairs[1]], out.vision, pairs[0], pruning.of(TEXT, pairs[1]))
    torch.testing.assert_close(out.match_logits, network.match_logits(match))
    assert torch.equal(out.alignment_loss, alignment_loss(out.vision.aligned, out.text.aligned))

    labels = torch.tensor([1, 1, 1, 0, 0])
    loss = (
        torch.nn.functional.cross_entropy(out.match_logits, labels)
        + 0.1 * out.alignment_loss
        - seen[0].trace()
    )
    used = {name: p for name, p in network.named_parameters() if "pooler" not in name}
    for name, gradient in zip(used, torch.autograd.grad(loss, list(used.values())), strict=True):
        assert gradient.isfinite().all(), name
        if not name.endswith("key.bias"):  # a softmax does not see it
            assert gradient.abs().sum() > 0, name


# --- Checkpoints and bad input


def test_save_and_load_answer_alike(wide, tmp_path):
    wide.save_pretrained(tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    assert isinstance(loaded, BlipRetrieval)
    ours, theirs = (
        each.predict([of_image(0)], prune_temperature=PRUNE_TEMPERATURE)[0] for each in (wide, loaded)
    )
    assert ours.spent == theirs.spent
    assert_same_ranks(ours.ranked, theirs.ranked)


def test_a_plain_hugging_face_directory_is_dense(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    for name in ("madtp.json", "mag.safetensors"):
        (tmp_path / "saved" / name).unlink()
    assert BlipForImageTextRetrieval.from_pretrained(tmp_path / "saved").itm_head.out_features == 2
    plain = load_model(tmp_path / "saved")
    assert isinstance(plain, BlipRetrieval) and plain.pruning is None
    ours, theirs = (each.predict([of_image(0)], prune_temperature=0.0)[0].ranked for each in (model, plain))
    assert_same_ranks(ours, theirs)
    with pytest.raises(ConfigError, match="no pruning"):
        plain.predict([of_image(0)], prune_temperature=0.5)


def test_an_empty_batch_has_no_answers(model):
    assert model.predict([], prune_temperature=0.0) == []
    assert model.embed_images([], prune_temperature=0.0) == model.embed_texts([], prune_temperature=0.0) == []


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (RetrievalQuery(images(0, 1), TEXTS), "got 2 and 5"),
        (RetrievalQuery(images(0), ()), "got 1 and 0"),
        (RetrievalQuery(np.zeros((0, 3, 64, 64), np.float32), TEXTS), "got 0 and 5"),
        (RetrievalQuery(np.zeros((1, 3, 32, 32), np.float32), TEXTS), "32"),
        (RetrievalQuery(images(0)[0], TEXTS[:1]), "got 3|shape"),
        (of_image(0, rerank=-1), "rerank"),
        (of_image(0, ("red", " ")), "empty"),
        (of_image(0, ("red " * 60,)), "at most 40"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(model, bad, named, monkeypatch):
    monkeypatch.setattr(model.network, "encode_image", None)
    with pytest.raises(ConfigError, match=named):
        model.predict([of_image(0), bad], prune_temperature=0.0)


def test_bad_images_and_texts_are_not_embedded(model):
    with pytest.raises(ConfigError, match="32"):
        model.embed_images([np.zeros((3, 32, 32), np.float32)], prune_temperature=0.0)
    with pytest.raises(ConfigError, match="empty"):
        model.embed_texts([""], prune_temperature=0.0)
