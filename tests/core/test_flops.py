"""The cost formulas against fvcore's counter on traced forwards, and against the totals the paper prints.

The counter sees no fused attention, so it traces with gradients on: then ours is an explicit softmax.
"""

from collections.abc import Callable

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from madtp_core.attention import GUIDANCE
from madtp_core.backbones.blip import blip_config, text_geometry, vision_geometry
from madtp_core.encoder import Encoded, Pruning
from madtp_core.flops import (
    AlignmentGeometry,
    BranchTrace,
    RequestCost,
    TextGeometry,
    VisionGeometry,
    decoder_macs,
    greedy_passes,
    memory_macs,
    text_encoder_macs,
    vision_macs,
    widest,
)
from madtp_core.pruning import MAX_KEEP, PER_INSTANCE, TEXT, VISION, build_pruner
from madtp_core.tasks.vqa_network import VqaNetwork
from madtp_core.tokens import Tokens

WIDTH, ALIGNMENT_TOKENS, PATCHES = 32, 12, 25
ALIGNMENT = AlignmentGeometry(ALIGNMENT_TOKENS, WIDTH)


class Traced(nn.Module):
    """A forward of tensors to a tensor, for fvcore."""

    def __init__(self, network: VqaNetwork, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self.run = forward

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(*inputs)


def counted(network: VqaNetwork, forward: Callable[..., Tensor], *inputs: Tensor) -> int:
    """Multiply-adds that fvcore counts."""
    analysis = FlopCountAnalysis(Traced(network, forward), inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return int(analysis.total())


@pytest.fixture(scope="module")
def vision(network: VqaNetwork) -> VisionGeometry:
    return vision_geometry(network.blip.config.vision_config, 40, 40)


@pytest.fixture(scope="module")
def text(network: VqaNetwork) -> TextGeometry:
    return text_geometry(network.blip.config.text_config)


def dense(tokens: int, blocks: int = 3) -> BranchTrace:
    """Nothing dropped of so many tokens, class token left out."""
    full = (tokens,) * blocks
    return BranchTrace(tokens, full, full, full)


def trace_of(encoded: Encoded, row: int = 0) -> BranchTrace:
    tokens_in, needed, kept = (
        tuple(counts[:, row].tolist()) for counts in (encoded.tokens_in, encoded.needed, encoded.kept)
    )
    return BranchTrace(tokens_in[0], tokens_in, needed, kept)


def uncounted(trace: BranchTrace) -> int:
    """What fvcore counts of a scored branch beyond our formula.

    It counts A for the class token too and the merge over all tokens, the class token and others of weight
    zero included, where we count the tokens that need it; it does not count the threshold, which is no matrix
    product.
    """
    total = 0
    for entering, kept in zip(trace.tokens_in, trace.kept, strict=True):
        total += WIDTH * ALIGNMENT_TOKENS - entering * ALIGNMENT_TOKENS
        total += (kept + 1) * WIDTH if kept < entering else 0
    return total


# --- Against fvcore, dense


@pytest.mark.parametrize("images", [1, 3])
def test_dense_vision(network: VqaNetwork, pixel_values: Tensor, vision: VisionGeometry, images: int) -> None:
    def run(pixels: Tensor) -> Tensor:
        return network.encode_image(pixels).tokens.hidden

    assert counted(network, run, pixel_values[:images]) == images * vision_macs(vision, dense(PATCHES))


def test_dense_vision_is_hugging_faces(
    network: VqaNetwork, pixel_values: Tensor, vision: VisionGeometry
) -> None:
    def run(pixels: Tensor) -> Tensor:
        states: Tensor = network.blip.vision_model(pixels).last_hidden_state
        return states

    assert counted(network, run, pixel_values[:1]) == vision_macs(vision, dense(PATCHES))


@pytest.mark.parametrize("reader", [[0], [0, 0, 0], [0, 1, 1]])
def test_dense_questions_project_each_image_once(
    network: VqaNetwork,
    pixel_values: Tensor,
    questions: tuple[Tensor, Tensor],
    text: TextGeometry,
    reader: list[int],
) -> None:
    images = max(reader) + 1
    with torch.no_grad():
        image = network.encode_image(pixel_values[:images])
    rows = torch.tensor(reader)

    def run(token_ids: Tensor) -> Tensor:
        return network.encode_question(token_ids, None, image, rows).tokens.hidden

    memory = memory_macs(text, PATCHES + 1)
    apart = text_encoder_macs(text, dense(13), PATCHES + 1) - memory
    expected = len(reader) * apart + images * memory
    assert counted(network, run, questions[0][: len(reader)]) == expected


def test_a_text_without_an_image(
    network: VqaNetwork, questions: tuple[Tensor, Tensor], text: TextGeometry
) -> None:
    def run(token_ids: Tensor) -> Tensor:
        states: Tensor = network.blip.text_encoder(token_ids).last_hidden_state
        return states

    assert counted(network, run, questions[0][:1]) == text_encoder_macs(text, dense(13), None)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_teacher_forced_answer_projects_its_question_once(
    network: VqaNetwork, text: TextGeometry, rows: int
) -> None:
    question, decoder = Tokens.from_hidden(torch.randn(1, 9, WIDTH)), network.decoder()
    answers = torch.randint(3, 39, (rows, 5))

    def run(token_ids: Tensor) -> Tensor:
        memory = decoder.remember(question).read_by(torch.zeros(rows, dtype=torch.int64))
        return decoder.forward(token_ids, memory)[0]

    assert counted(network, run, answers) == decoder_macs(text, [(5, 5)] * rows, 9)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_cached_answer(network: VqaNetwork, text: TextGeometry, beams: int) -> None:
    question, decoder = Tokens.from_hidden(torch.randn(1, 9, WIDTH)), network.decoder()

    def run(token_ids: Tensor) -> Tensor:
        memory = decoder.remember(question).read_by(torch.zeros(beams, dtype=torch.int64))
        cache, logits = None, []
        for step in token_ids.split(1, 1):
            new, cache = decoder.forward(step, memory, cache)
            logits.append(new)
        return torch.cat(logits, 1)

    expected = decoder_macs(text, greedy_passes(4, beams), 9)
    assert counted(network, run, torch.randint(3, 39, (beams, 4))) == expected


# --- Against fvcore, pruned: equal lengths

PRUNERS = {
    "static": {"kept": {VISION: (18, 12, 7), TEXT: (9, 5, 3)}},
    "madtp": {},
}


@pytest.mark.parametrize(
    ("name", "keep_mode", "rows"),
    [
        ("static", MAX_KEEP, 1),
        ("static", PER_INSTANCE, 3),
        ("madtp", MAX_KEEP, 3),
        (
            "madtp",
            PER_INSTANCE,
            1,
        ),  # more rows would differ in length, and the counter would see their padding
    ],
)
def test_a_pruned_forward(
    network: VqaNetwork,
    pixel_values: Tensor,
    questions: tuple[Tensor, Tensor],
    vision: VisionGeometry,
    text: TextGeometry,
    name: str,
    keep_mode: str,
    rows: int,
) -> None:
    pruning = Pruning(build_pruner(name, **PRUNERS[name]), torch.full((rows,), 4.0), keep_mode)
    pixel_values, token_ids = pixel_values[:rows], questions[0][:rows]
    with torch.no_grad():
        image = network.encode_image(pixel_values, pruning)
        question = network.encode_question(token_ids, None, image, None, pruning)

    def see(pixels: Tensor) -> Tensor:
        return network.encode_image(pixels, pruning).tokens.hidden

    def read(ids: Tensor) -> Tensor:
        return network.encode_question(ids, None, image, None, pruning).tokens.hidden

    traces = [(trace_of(image, row), trace_of(question, row)) for row in range(rows)]
    assert all(max(part.kept) < part.dense for pair in traces for part in pair)
    ours = sum(vision_macs(vision, seen, ALIGNMENT) + uncounted(seen) for seen, _ in traces)
    assert counted(network, see, pixel_values) == ours
    ours = sum(
        text_encoder_macs(text, asked, seen.leaving()[-1] + 1, ALIGNMENT) + uncounted(asked)
        for seen, asked in traces
    )
    assert counted(network, read, token_ids) == ours


def test_a_mapped_branch_pays_for_its_map(vision: VisionGeometry, text: TextGeometry) -> None:
    mapped = AlignmentGeometry(ALIGNMENT_TOKENS, 48, vision_mapped=True, text_mapped=True)
    plain = AlignmentGeometry(ALIGNMENT_TOKENS, 48)
    for ours, without, tokens in [
        (vision_macs(vision, dense(25), mapped), vision_macs(vision, dense(25), plain), 25),
        (text_encoder_macs(text, dense(13), 9, mapped), text_encoder_macs(text, dense(13), 9, plain), 13),
    ]:
        assert ours - without == 3 * tokens * WIDTH * 48


def test_scoring_costs_what_the_formula_says(vision: VisionGeometry) -> None:
    trace = BranchTrace(25, (25, 11, 6), (10, 5, 6), (10, 5, 6))  # the last block drops nothing
    extra = vision_macs(vision, trace, ALIGNMENT) - vision_macs(vision, trace)
    entering, dropped = 25 + 11 + 6, 15 + 6
    assert extra == entering * WIDTH * ALIGNMENT_TOKENS + entering * ALIGNMENT_TOKENS + dropped * WIDTH
    assert GUIDANCE in build_pruner("madtp").needs


# --- The paper's figures, in its "GFLOPs": multiply-adds / 1e9

BASE_TEXT = text_geometry(blip_config().text_config)


def base_vision_gmacs(image_size: int) -> float:
    geometry = vision_geometry(blip_config().vision_config, image_size, image_size)
    return vision_macs(geometry, dense(geometry.patches, 12)) / 1e9


def head_gmacs(tokens: int) -> float:
    """The LM head over so many tokens."""
    with_head = decoder_macs(BASE_TEXT, [(tokens, tokens)], 1)
    without = decoder_macs(TextGeometry(768, 3072, 12, 768, 0), [(tokens, tokens)], 1)
    return (with_head - without + tokens * (768 * 768 + 5 * 768)) / 1e9


@pytest.mark.parametrize(("image_size", "gmacs"), [(384, 55.539), (480, 92.107)])
def test_blip_base_vision(image_size: int, gmacs: float) -> None:
    assert base_vision_gmacs(image_size) == pytest.approx(gmacs, abs=5e-4)


def test_blip_vqa_questions_read_one_image() -> None:
    memory = memory_macs(BASE_TEXT, 901)
    apart = text_encoder_macs(BASE_TEXT, dense(13, 12), 901) - memory
    assert (32 * apart + memory) / 1e9 == pytest.approx(64.766, abs=5e-4)


def test_blip_vqa_answers_read_one_question() -> None:
    macs = decoder_macs(BASE_TEXT, [(5, 5)] * 47, 14) / 1e9
    assert head_gmacs(47 * 5) == pytest.approx(5.648, abs=5e-4)
    assert macs - head_gmacs(47 * 5) == pytest.approx(23.600, abs=5e-4)


def test_blip_vqa_training_forward() -> None:
    memory = memory_macs(BASE_TEXT, 901)
    questions = 32 * (text_encoder_macs(BASE_TEXT, dense(13, 12), 901) - memory) + memory
    answers = decoder_macs(BASE_TEXT, [(5, 5)] * 47, 14)
    assert base_vision_gmacs(480) + (questions + answers) / 1e9 == pytest.approx(186.12, abs=5e-3)


def test_blip_caption() -> None:
    macs = decoder_macs(BASE_TEXT, [(15, 15)], 577) / 1e9
    assert head_gmacs(15) == pytest.approx(0.361, abs=5e-4)
    assert macs - head_gmacs(15) == pytest.approx(9.820, abs=5e-4)
    assert base_vision_gmacs(384) + macs == pytest.approx(65.72, abs=5e-3)


def test_blip_retrieval_texts() -> None:
    alone = text_encoder_macs(BASE_TEXT, dense(34, 12), None) / 1e9
    matching = text_encoder_macs(BASE_TEXT, dense(34, 12), 577) / 1e9
    assert alone == pytest.approx(2.999, abs=5e-4)
    assert matching == pytest.approx(12.036, abs=5e-4)


@pytest.mark.parametrize("question_tokens", [8, 20, 35])
@pytest.mark.parametrize("steps", [2, 5])
def test_one_served_question_at_480(question_tokens: int, steps: int) -> None:
    text = text_encoder_macs(BASE_TEXT, dense(question_tokens - 1, 12), 901)
    answer = decoder_macs(BASE_TEXT, greedy_passes(steps), question_tokens)
    assert 106 < base_vision_gmacs(480) + (text + answer) / 1e9 < 113


# --- Traces


def test_token_density_is_the_mean_share_kept() -> None:
    trace = BranchTrace(20, (20, 11, 6), (8, 5, 6), (10, 5, 6))
    assert trace.token_density == pytest.approx((10 + 5 + 6) / 60)
    assert trace.leaving() == (11, 6, 6)
    assert trace.unpruned() == dense(20)


def test_the_needed_trace_drops_what_batch_mates_kept() -> None:
    trace = BranchTrace(40, (40, 31, 31, 26), (15, 20, 6, 26), (30, 30, 25, 26))
    expected = (15, 16, 6, 7)  # block 2 needs more than it would have; block 4 is left alone
    assert trace.as_needed() == BranchTrace(40, (40, 16, 16, 7), expected, expected)


def test_a_needed_trace_drops_no_single_token() -> None:
    trace = BranchTrace(40, (40, 31), (15, 15), (30, 20))
    assert trace.as_needed().kept == (15, 16)


def test_per_instance_needs_what_it_keeps() -> None:
    trace = BranchTrace(40, (40, 16, 9), (15, 8, 4), (15, 8, 4))
    assert trace.as_needed() == trace


@torch.no_grad()
@pytest.mark.parametrize("prune_temperature", [1.0, 4.0, 16.0])
def test_need_costs_no_more_than_the_spent_and_the_spent_no_more_than_dense(
    network: VqaNetwork, pixel_values: Tensor, vision: VisionGeometry, prune_temperature: float
) -> None:
    pruning = Pruning(build_pruner("madtp"), torch.full((3,), prune_temperature), MAX_KEEP)
    encoded = network.encode_image(pixel_values, pruning)
    for row in range(3):
        trace = trace_of(encoded, row)
        needed = vision_macs(vision, trace.as_needed(), ALIGNMENT)
        spent = vision_macs(vision, trace, ALIGNMENT)
        assert needed <= spent < vision_macs(vision, trace.unpruned(), ALIGNMENT)
        entering = trace.as_needed().tokens_in
        assert entering[1:] == trace.as_needed().leaving()[:-1]


def test_a_padded_row_is_as_wide_as_the_widest_of_its_batch() -> None:
    traces = [BranchTrace(9, (9, 5), (4, 3), (4, 3)), BranchTrace(7, (7, 7), (7, 2), (7, 2))]
    assert widest(traces) == BranchTrace(9, (9, 7), (6, 3), (6, 3))
    assert widest(traces).leaving() == (7, 4)


def test_a_request_reports_its_share_of_the_dense_cost() -> None:
    cost = RequestCost(flops=60, dense_flops=100, needed_flops=50, padded_flops=70)
    assert cost.flops_ratio == pytest.approx(0.6)
    assert cost.flops_reduction == pytest.approx(0.4)
