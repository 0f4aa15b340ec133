"""Reasoning over two images: the original's forward, the pruned math, batches, costs and checkpoints.

The original BLIP's NLVR2 forward is written down here once more, from its paper and release alone: weights by
their names, padding hidden by -10000, no class of ours.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from madtp_core.alignment import Alignment, alignment_loss
from madtp_core.backbones.blip import blip_config, scramble, text_config
from madtp_core.backbones.nlvr import BlipForReasoning, build_blip_reasoning, merge_start
from madtp_core.checkpoint import Checkpoint, build_alignment, load_checkpoint
from madtp_core.config import AlignmentConfig, MadtpConfig, PruningConfig
from madtp_core.encoder import BatchPruning, Encoded, Pruning
from madtp_core.errors import CheckpointError, ConfigError
from madtp_core.flops import (
    AlignmentGeometry,
    BranchTrace,
    linear_macs,
    memory_macs,
    twin_text_encoder_macs,
    vision_macs,
)
from madtp_core.images import ImageGeometry
from madtp_core.pruning import KEEP_MODES, MAX_KEEP, PER_INSTANCE, TEXT, VISION, build_pruner
from madtp_core.served import reference_model
from madtp_core.tasks import load_model
from madtp_core.tasks.cost import branch_traces
from madtp_core.tasks.reasoning import BlipReasoning, ReasoningQuery
from madtp_core.tasks.reasoning_cost import ReasoningCostModel
from madtp_core.tasks.reasoning_network import ReasoningNetwork
from tests.core import reference
from tests.core.counting import counted, uncounted
from tests.core.test_encoder import assert_equals_reference, madtp, unpadded

WIDTH, HEADS, VISION_BLOCKS, TEXT_BLOCKS = 32, 4, 3, 4
PATCHES, VOCABULARY = 25, 40
ALIGNMENT = AlignmentGeometry(12, WIDTH)
STATEMENTS = (
    "both images contain a red circle",
    "there are exactly two large stars in total",
    "the left image contains more squares than the right image",
)


def make_network(seed: int = 0, start: int | None = None) -> ReasoningNetwork:
    config = blip_config(
        width=WIDTH, heads=HEADS, vision_blocks=VISION_BLOCKS, text_blocks=TEXT_BLOCKS, image_size=40,
        patch_size=8, vocabulary=VOCABULARY, max_text_tokens=32, bos_token_id=39, sep_token_id=2,
        merge_start=start,
    )  # fmt: skip
    blip = build_blip_reasoning(config).eval()
    scramble(blip, seed, std=0.2)
    widths = {VISION: (WIDTH, VISION_BLOCKS), TEXT: (WIDTH, TEXT_BLOCKS)}
    alignment = Alignment(ALIGNMENT.num_tokens, WIDTH, widths)
    scramble(alignment, seed + 1, std=1.0)
    return ReasoningNetwork(blip, alignment).eval()


@pytest.fixture(scope="module")
def network() -> ReasoningNetwork:
    return make_network()


@pytest.fixture(scope="module")
def pairs() -> Tensor:
    """Images of three statements [6, 3, 40, 40]: three left ones, then three right ones."""
    return torch.randn(6, 3, 40, 40, generator=torch.Generator().manual_seed(20))


@pytest.fixture(scope="module")
def checkpoint(vqa_checkpoint: Checkpoint) -> Checkpoint:
    """A tiny scrambled model with the shapes' tokenizer; nothing may change it."""
    tokenizer = vqa_checkpoint.tokenizer
    config = blip_config(
        width=WIDTH, heads=2, vision_blocks=2, text_blocks=2, image_size=48, patch_size=8,
        vocabulary=len(tokenizer), max_text_tokens=40,
        bos_token_id=tokenizer.bos_token_id, sep_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    blip = build_blip_reasoning(config)
    scramble(blip, seed=5, std=0.3)
    alignment_config = AlignmentConfig(num_tokens=12, dim=WIDTH)
    alignment = build_alignment(alignment_config, config)
    scramble(alignment, seed=6, std=1.0)
    madtp_config = MadtpConfig("reasoning", "enc", 40, alignment_config, PruningConfig())
    geometry = ImageGeometry(48, 48, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Checkpoint(blip, tokenizer, geometry, madtp_config, alignment)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> BlipReasoning:
    return BlipReasoning(checkpoint)


def query(index: int = 0, statement: str | None = None) -> ReasoningQuery:
    left, right = np.random.default_rng(index).standard_normal((2, 3, 48, 48), dtype=np.float32)
    return ReasoningQuery(left, right, statement or STATEMENTS[index % 3])


def batch_pruning(keep_mode: str, branches: frozenset[str] = frozenset({VISION, TEXT})) -> BatchPruning:
    return BatchPruning(build_pruner("madtp"), torch.tensor([4.0, 8.0, 16.0]), keep_mode, branches)


# --- The original's forward


def original_statement(
    weights: dict[str, Tensor], start: int, images: tuple[Tensor, Tensor], ids: Tensor, mask: Tensor
) -> Tensor:
    """The last hidden states [B, L, C] of statements over two images' states [B, M, C] each."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12)

    def heads(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)

    def attend(x: Tensor, memory: Tensor, hidden_keys: Tensor, name: str) -> Tensor:
        query, key, value = (
            heads(linear(x, f"{name}.query")),
            *(heads(linear(memory, f"{name}.{part}")) for part in ("key", "value")),
        )
        scores = query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5 + hidden_keys
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)

    hidden_words = (1.0 - mask.float())[:, None, None, :] * -10000.0
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = norm(x + weights["embeddings.position_embeddings.weight"][: ids.shape[1]], "embeddings.LayerNorm")
    for index in range(TEXT_BLOCKS):
        layer, cross = f"encoder.layer.{index}", f"encoder.layer.{index}.crossattention"
        own = attend(x, x, hidden_words, f"{layer}.attention.self")
        x = norm(linear(own, f"{layer}.attention.output.dense") + x, f"{layer}.attention.output.LayerNorm")
        read = [attend(x, images[side], torch.zeros(1), f"{cross}.self{side}") for side in (0, 1)]
        seen = [linear(read[side], f"{cross}.output.dense{side}") for side in (0, 1)]
        if index >= start:
            together = linear(torch.cat(seen, -1), f"{cross}.output.merge_layer")
        else:
            together = (seen[0] + seen[1]) / 2
        x = norm(together + x, f"{cross}.output.LayerNorm")
        inner = F.gelu(linear(x, f"{layer}.intermediate.dense"))
        x = norm(linear(inner, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm")
    return x


def original_logits(blip: BlipForReasoning, start: int, pairs: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    states = blip.vision_model(pairs).last_hidden_state
    images = states[: len(ids)], states[len(ids) :]
    x = original_statement(blip.text_encoder.state_dict(), start, images, ids, mask)[:, 0]
    head = blip.cls_head
    return F.linear(F.relu(F.linear(x, head[0].weight, head[0].bias)), head[2].weight, head[2].bias)


def our_logits(network: ReasoningNetwork, pairs: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return network.classify(network.encode_statement(ids, mask, network.encode_pairs(pairs)))


@torch.no_grad()
@pytest.mark.parametrize("start", [None, 0, 1, TEXT_BLOCKS])
def test_the_dense_forward_is_the_originals(
    pairs: Tensor, ragged_questions: tuple[Tensor, Tensor], start: int | None
) -> None:
    network = make_network(start=start)
    original = original_logits(network.blip, 2 if start is None else start, pairs, *ragged_questions)
    torch.testing.assert_close(our_logits(network, pairs, *ragged_questions), original, atol=1e-5, rtol=0)
    assert (original[0] - original[1]).abs().max() > 0.05  # statements differ


@torch.no_grad()
def test_hugging_faces_modules_alone_are_the_original_too(
    network: ReasoningNetwork, pairs: Tensor, ragged_questions: tuple[Tensor, Tensor]
) -> None:
    ids, mask = ragged_questions
    labels = torch.tensor([1, 0, 1])
    out = network.blip(pairs, ids, mask, labels)
    original = original_logits(network.blip, 2, pairs, ids, mask)
    torch.testing.assert_close(out.logits, original, atol=1e-5, rtol=0)
    assert out.loss.item() == pytest.approx(F.cross_entropy(original, labels).item(), abs=1e-5)


def test_blip_base_merges_from_layer_six_on() -> None:
    assert merge_start(text_config(blip_config())) == 6
    assert merge_start(text_config(blip_config(merge_start=0))) == 0


@torch.no_grad()
def test_swapping_the_images_changes_the_answer(
    network: ReasoningNetwork, pairs: Tensor, questions: tuple[Tensor, Tensor]
) -> None:
    swapped = our_logits(network, pairs.roll(3, 0), *questions)
    assert ((our_logits(network, pairs, *questions) - swapped).abs().amax(1) > 0.01).all()


# --- Pruned, against loops in float64


def reference_memories(
    network: ReasoningNetwork, pairs: Tensor, prune_temperature: float, keep_mode: str
) -> list[reference.Instance]:
    assert network.alignment is not None
    return reference.run_vision(
        network.blip.vision_model, network.alignment.tokens, pairs, prune_temperature, keep_mode
    )


@torch.no_grad()
@pytest.mark.parametrize("keep_mode", KEEP_MODES)
@pytest.mark.parametrize("prune_temperature", [4.0, 16.0])
def test_images_count_together(
    network: ReasoningNetwork, pairs: Tensor, prune_temperature: float, keep_mode: str
) -> None:
    pruning = madtp(prune_temperature, keep_mode)  # one temperature a request, two images each
    encoded = network.encode_pairs(pairs, pruning)
    instances = reference_memories(network, pairs, prune_temperature, keep_mode)
    assert_equals_reference(encoded, pruning, instances)
    if keep_mode == MAX_KEEP:
        assert (encoded.kept == encoded.needed.amax(1, keepdim=True)).all()


@torch.no_grad()
@pytest.mark.parametrize("keep_mode", KEEP_MODES)
@pytest.mark.parametrize("prune_temperature", [4.0, 16.0])
@pytest.mark.parametrize("lengths", ["equal", "ragged"])
def test_the_statement_over_pruned_images_equals_the_reference(
    network: ReasoningNetwork,
    pairs: Tensor,
    questions: tuple[Tensor, Tensor],
    ragged_questions: tuple[Tensor, Tensor],
    prune_temperature: float,
    keep_mode: str,
    lengths: str,
) -> None:
    assert network.alignment is not None
    ids, mask = questions if lengths == "equal" else ragged_questions
    images = network.encode_pairs(pairs, madtp(prune_temperature, keep_mode))
    pruning = madtp(prune_temperature, keep_mode)
    encoded = network.encode_statement(ids, mask, images, pruning)
    seen = [instance.hidden for instance in reference_memories(network, pairs, prune_temperature, keep_mode)]
    instances = reference.run_text(
        network.blip.text_encoder,
        network.alignment.tokens,
        unpadded(ids, mask),
        list(zip(seen[:3], seen[3:], strict=True)),
        prune_temperature,
        keep_mode,
        reference.read_two_images,
    )
    assert_equals_reference(encoded, pruning, instances)


@torch.no_grad()
def test_each_requests_temperature_goes_to_both_of_its_images(
    network: ReasoningNetwork, pairs: Tensor
) -> None:
    own = torch.tensor([0.0, 4.0, 16.0])
    together = network.encode_pairs(pairs, Pruning(build_pruner("madtp"), own, PER_INSTANCE))
    for row in range(6):
        alone = Pruning(build_pruner("madtp"), own[row % 3 : row % 3 + 1], PER_INSTANCE)
        assert torch.equal(
            together.kept[:, row], network.encode_image(pairs[row : row + 1], alone).kept[:, 0]
        )
    assert together.kept[:, [0, 3]].tolist() == [[PATCHES, PATCHES]] * VISION_BLOCKS


# --- Training


@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_every_parameter_gets_a_finite_gradient(
    network: ReasoningNetwork, pairs: Tensor, ragged_questions: tuple[Tensor, Tensor], keep_mode: str
) -> None:
    labels = torch.tensor([1, 0, 1])
    out = network(pairs, *ragged_questions, labels, batch_pruning(keep_mode), align=True)
    assert out.alignment_loss is not None
    parameters = dict(network.named_parameters())
    loss = out.answer_loss + 0.1 * out.alignment_loss
    for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
        assert gradient.isfinite().all(), name
        if not name.endswith("key.bias"):  # a softmax does not see it
            assert gradient.abs().sum() > 0, name


@torch.no_grad()
def test_both_images_are_averaged_before_they_are_aligned(
    network: ReasoningNetwork, pairs: Tensor, questions: tuple[Tensor, Tensor]
) -> None:
    out = network(pairs, *questions, torch.tensor([1, 0, 1]), align=True)
    seen, said = out.vision.aligned, out.text.aligned
    losses = []
    for row in range(3):
        mean = (seen[row] + seen[row + 3]) / 2  # [K, C]
        cosine = (mean * said[row]).sum(-1) / (mean.norm(dim=-1) * said[row].norm(dim=-1))
        losses.append(1 - cosine.mean().item())
    assert out.alignment_loss.item() == pytest.approx(sum(losses) / 3, abs=1e-5)
    assert out.alignment_loss != alignment_loss(seen[:3], said)


@torch.no_grad()
def test_a_branch_that_is_not_named_runs_dense(
    network: ReasoningNetwork, pairs: Tensor, questions: tuple[Tensor, Tensor]
) -> None:
    labels = torch.tensor([1, 0, 1])
    out = network(pairs, *questions, labels, batch_pruning(MAX_KEEP, frozenset({VISION})))
    assert torch.equal(out.text.kept, out.text.tokens_in)
    assert (out.vision.kept < out.vision.tokens_in).any()


# --- Cost


def dense(tokens: int, blocks: int) -> BranchTrace:
    full = (tokens,) * blocks
    return BranchTrace(tokens, full, full, full)


def cost_model(network: ReasoningNetwork) -> ReasoningCostModel:
    return ReasoningCostModel(network, 40, 40)


def counted_parts(
    network: ReasoningNetwork, pairs: Tensor, ids: Tensor, pruning: Pruning | None
) -> tuple[int, int, Encoded, Encoded]:
    """What fvcore counts of the images, and of the statement up to its logits; and what both left behind."""
    with torch.no_grad():
        images = network.encode_pairs(pairs, pruning)
        statement = network.encode_statement(ids, None, images, pruning)

    def see(pixels: Tensor) -> Tensor:
        return network.encode_pairs(pixels, pruning).tokens.hidden

    def read(token_ids: Tensor) -> Tensor:
        return network.classify(network.encode_statement(token_ids, None, images, pruning))

    return counted(network, see, pairs), counted(network, read, ids), images, statement


def test_the_dense_cost_is_what_fvcore_counts(
    network: ReasoningNetwork, pairs: Tensor, questions: tuple[Tensor, Tensor]
) -> None:
    seen, read, _, _ = counted_parts(network, pairs[:2], questions[0][:1], None)
    ours = cost_model(network)
    assert seen == 2 * vision_macs(ours.vision, dense(PATCHES, VISION_BLOCKS))
    traces = {VISION: (dense(PATCHES, VISION_BLOCKS),) * 2, TEXT: (dense(13, TEXT_BLOCKS),)}
    assert seen + read == ours.dense_macs(traces, ())


@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_the_pruned_cost_is_what_fvcore_counts(
    network: ReasoningNetwork, pairs: Tensor, questions: tuple[Tensor, Tensor], keep_mode: str
) -> None:
    pruner = build_pruner("static", kept={VISION: (18, 12, 7), TEXT: (9, 7, 5, 3)})
    if keep_mode == MAX_KEEP:
        pruner = build_pruner("madtp")
    pruning = Pruning(pruner, torch.tensor([4.0]), keep_mode)
    seen, read, images, statement = counted_parts(network, pairs[:2], questions[0][:1], pruning)
    left, right = branch_traces(images, [PATCHES] * 2)
    (said,) = branch_traces(statement, [13])
    assert all(max(trace.kept) < trace.dense for trace in (left, right, said))
    extra = sum(uncounted(trace, ALIGNMENT, WIDTH) for trace in (left, right, said))
    ours = cost_model(network)
    scoring = {VISION: ALIGNMENT, TEXT: ALIGNMENT}
    assert seen + read == ours.macs({VISION: (left, right), TEXT: (said,)}, (), scoring) + extra


def test_each_image_costs_its_own_tokens(network: ReasoningNetwork) -> None:
    ours, said = cost_model(network), dense(13, TEXT_BLOCKS)
    full = (PATCHES,) * VISION_BLOCKS
    small, large = (BranchTrace(PATCHES, full, kept, kept) for kept in ((25, 25, 8), (25, 25, 20)))

    def macs(*images: BranchTrace) -> int:
        return ours.macs({VISION: images, TEXT: (said,)}, (), {VISION: None, TEXT: None})

    assert macs(small, large) == macs(large, small)
    assert 2 * macs(small, large) == macs(small, small) + macs(large, large)
    assert macs(small, small) < macs(large, large)


def test_the_parts_that_schedules_are_fitted_to_make_the_whole(network: ReasoningNetwork) -> None:
    ours, image, said = cost_model(network), dense(PATCHES, VISION_BLOCKS), dense(13, TEXT_BLOCKS)
    apart = 2 * ours.branch_macs(VISION, image, None) + ours.branch_macs(TEXT, said, None)
    apart += 2 * memory_macs(ours.text, PATCHES + 1) + linear_macs(WIDTH, WIDTH, 2)
    assert ours.dense_macs({VISION: (image, image), TEXT: (said,)}, ()) == apart


def test_the_papers_dense_total() -> None:
    ours = reference_model("reasoning").cost_model
    image, statement = dense(576, 12), dense(35, 12)
    assert 2 * vision_macs(ours.vision, image) / 1e9 == pytest.approx(111.078, abs=5e-4)
    text = twin_text_encoder_macs(ours.text, statement, (577, 577), ours.merge_start)
    assert text / 1e9 == pytest.approx(21.462, abs=5e-4)
    total = ours.dense_macs({VISION: (image, image), TEXT: (statement,)}, ())
    assert total / 1e9 == pytest.approx(132.54, abs=5e-3)
    assert total == 2 * vision_macs(ours.vision, image) + text + linear_macs(768, 768, 2)


# --- Requests


@pytest.mark.parametrize("prune_temperature", [0.0, 1.0, 4.0])
def test_per_instance_answers_do_not_depend_on_the_batch(
    model: BlipReasoning, prune_temperature: float
) -> None:
    queries = [query(index) for index in range(5)]
    together = model.predict(queries, prune_temperature=prune_temperature, keep_mode=PER_INSTANCE)
    for own, answer in zip(queries, together, strict=True):
        alone = model.predict([own], prune_temperature=prune_temperature, keep_mode=PER_INSTANCE)[0]
        assert (alone.answer, alone.spent.traces) == (answer.answer, answer.spent.traces)
        assert alone.spent.cost.flops == answer.spent.cost.flops
        assert alone.probability == pytest.approx(answer.probability, abs=1e-5)


def test_answers_are_the_same_in_fifty_shuffled_batches(model: BlipReasoning) -> None:
    queries = [query(index) for index in range(8)]
    temperatures = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 1.0, 4.0]
    wanted = model.predict(queries, prune_temperature=temperatures, keep_mode=PER_INSTANCE)
    assert {answer.answer for answer in wanted} == {True, False}
    generator = np.random.default_rng(0)
    for _ in range(50):
        rows = generator.permutation(8)[: generator.integers(2, 9)]
        answers = model.predict(
            [queries[row] for row in rows],
            prune_temperature=[temperatures[row] for row in rows],
            keep_mode=PER_INSTANCE,
        )
        for row, answer in zip(rows, answers, strict=True):
            assert (answer.answer, answer.spent) == (wanted[row].answer, wanted[row].spent)


def test_an_answer_tells_the_left_image_from_the_right(model: BlipReasoning) -> None:
    asked = [query(0), query(1)]
    swapped = [ReasoningQuery(one.right, one.left, one.statement) for one in asked]
    traces, others = (
        [
            answer.spent.traces[VISION]
            for answer in model.predict(q, prune_temperature=4.0, keep_mode=PER_INSTANCE)
        ]
        for q in (asked, swapped)
    )
    assert others == [(right, left) for left, right in traces]
    assert len({trace for pair in traces for trace in pair}) == 4


def test_max_keep_keeps_what_the_neediest_of_all_images_needs(model: BlipReasoning) -> None:
    answers = model.predict([query(index) for index in range(3)], prune_temperature=1.0)
    images = [trace for answer in answers for trace in answer.spent.traces[VISION]]
    assert len(images) == 6 and len({trace.kept for trace in images}) == 1
    assert images[0].kept[0] == max(trace.needed[0] for trace in images) < images[0].dense


def test_an_answer_is_the_likelier_of_both(model: BlipReasoning) -> None:
    answers = model.predict([query(index) for index in range(8)], prune_temperature=0.0)
    assert [answer.answer for answer in answers] == [answer.probability > 0.5 for answer in answers]
    assert {answer.answer for answer in answers} == {True, False}


def test_pruning_costs_less_and_padding_more(model: BlipReasoning) -> None:
    queries = [query(index) for index in range(3)]
    dense_answers, pruned = (model.predict(queries, prune_temperature=t) for t in (0.0, 1.0))
    for answer in dense_answers:
        assert answer.spent.cost.flops_ratio == 1 and answer.spent.difficulty is None
        assert answer.spent.token_density == 1
    for answer in pruned:
        cost = answer.spent.cost
        assert cost.needed_flops <= cost.flops <= cost.padded_flops
        assert 0 < answer.spent.difficulty < 1 and cost.flops_ratio < 1
    assert any(answer.spent.cost.padded_flops > answer.spent.cost.flops for answer in dense_answers)


def test_the_first_token_is_the_one_the_checkpoint_asks_for(checkpoint: Checkpoint) -> None:
    probabilities = {}
    for first, token in (("enc", "[ENC]"), ("cls", "[CLS]")):
        config = replace(checkpoint.config, encoder_first_token=first)
        model = BlipReasoning(replace(checkpoint, config=config))
        ids, mask = model.codec.texts([query().statement])
        ids[:, 0] = checkpoint.tokenizer.convert_tokens_to_ids(token)
        pixels = torch.from_numpy(np.stack([query().left, query().right]))
        with torch.no_grad():
            logits = checkpoint.model(pixels, ids, mask).logits
        probabilities[first] = model.predict([query()], prune_temperature=0.0)[0].probability
        assert probabilities[first] == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-5)
    assert probabilities["enc"] != pytest.approx(probabilities["cls"], abs=1e-3)


def test_a_training_free_method_prunes_both_branches_to_its_target(checkpoint: Checkpoint) -> None:
    pruning = PruningConfig(method="stp", options={"flops_ratio": 0.6})
    config = replace(checkpoint.config, alignment=None, pruning=pruning)
    model = BlipReasoning(replace(checkpoint, alignment=None, config=config))
    for keep_mode in KEEP_MODES:
        answers = model.predict([query(0), query(1)], prune_temperature=1.0, keep_mode=keep_mode)
        for answer in answers:
            assert answer.spent.cost.flops_ratio == pytest.approx(0.6, abs=0.1)
            assert all(max(trace.kept) < trace.dense for trace in answer.spent.traces[VISION])
            assert max(answer.spent.traces[TEXT][0].kept) < answer.spent.traces[TEXT][0].dense


def test_an_empty_batch_has_no_answers(model: BlipReasoning) -> None:
    assert model.predict([], prune_temperature=0.0) == []


SMALL = np.zeros((3, 16, 16), np.float32)


@pytest.mark.parametrize(
    ("bad", "options", "named"),
    [
        (query(statement="  "), {}, "statement is empty"),
        (query(statement="red " * 60), {}, "at most 40"),
        (ReasoningQuery(SMALL, query().right, "a"), {}, r"\(3, 16, 16\)"),
        (ReasoningQuery(query().left, SMALL, "a"), {}, r"\(3, 16, 16\)"),
        (query(), {"prune_temperature": -1.0}, ">= 0"),
        (query(), {"prune_temperature": [0.5, 0.5]}, "2 prune temperatures for 1"),
        (query(), {"keep_mode": "most"}, "most"),
    ],
)
def test_bad_values_are_refused(model: BlipReasoning, bad: ReasoningQuery, options: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        model.predict([bad], **{"prune_temperature": 0.0, **options})


# --- Checkpoints


def test_everything_comes_back(model: BlipReasoning, tmp_path) -> None:
    model.save_pretrained(tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    assert isinstance(loaded, BlipReasoning)
    for name, value in model.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], value), name
    ours, theirs = (m.predict([query()], prune_temperature=1.0)[0] for m in (model, loaded))
    assert (ours.probability, ours.spent) == (theirs.probability, theirs.spent)


def test_a_merge_start_of_its_own_comes_back(tmp_path) -> None:
    blip = make_network(start=1).blip
    blip.save_pretrained(tmp_path)
    loaded, report = BlipForReasoning.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert merge_start(loaded.config.text_config) == 1
    for name, value in blip.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


MERGE = "text_encoder.encoder.layer.1.crossattention.output.merge_layer.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.pop(MERGE), MERGE),
        (lambda w: w.update({MERGE: torch.zeros(3, 3)}), MERGE),
        (
            lambda w: w.update({MERGE.replace("layer.1", "layer.0"): w[MERGE].clone()}),
            "layer.0",
        ),  # below the start
    ],
)
def test_weights_that_do_not_fit_are_named(checkpoint: Checkpoint, tmp_path, change, named: str) -> None:
    BlipReasoning(checkpoint).save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=named.replace(".", r"\.")):
        load_checkpoint(tmp_path / "saved")
