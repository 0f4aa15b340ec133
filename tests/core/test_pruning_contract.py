"""The contract that every pruning method fulfils, in either branch, keep mode and layout."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from madtp_core.attention import Signals
from madtp_core.backbones.blip import text_geometry, vision_geometry
from madtp_core.encoder import Encoded, Pruning
from madtp_core.flops import AlignmentGeometry, BranchTrace, Scoring, text_encoder_macs, vision_macs
from madtp_core.pruning import (
    KEEP_MODES,
    PER_INSTANCE,
    PRUNERS,
    TEXT,
    VISION,
    BranchGeometry,
    Pruner,
    PruneStep,
    PruningGeometry,
    build_pruner,
)
from madtp_core.pruning.schedule import scheduled_trace
from madtp_core.pruning.scheduled import ScheduledPruner
from madtp_core.tasks.vqa_network import VqaNetwork
from madtp_core.tokens import MERGED, Tokens
from tests.core.counting import counted

WIDTH, HEAD_WIDTH, ALIGNMENT_TOKENS, GRID = 32, 8, 12, (5, 5)
KEEP_RATE = {"keep_rate": {VISION: 0.7, TEXT: 0.6}}
OPTIONS: dict[str, dict[str, object]] = {
    "none": {},
    "madtp": {},
    "static": {"kept": {VISION: (18, 12, 7), TEXT: (9, 5, 3)}},
    "stp": {"flops_ratio": 0.5},
    "random": {"flops_ratio": 0.5, "seed": 3},
    "topk": KEEP_RATE,
    "spatial": {"keep_rate": {VISION: 0.36}},
    "evit": KEEP_RATE,
    "tome": KEEP_RATE,
    "rollout": {**KEEP_RATE, "group": 2},
}
PRUNE_TEMPERATURE = 4.0
ABSORBING = ("spatial", "tome")  # what they drop joins what they keep
GUIDED = ("madtp", "static")

Encode = Callable[..., Encoded]


def test_every_pruner_is_under_contract() -> None:
    assert OPTIONS.keys() == PRUNERS.keys()


@pytest.fixture(params=sorted(OPTIONS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[VISION, TEXT])
def branch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=KEEP_MODES)
def keep_mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def geometry(network: VqaNetwork) -> PruningGeometry:
    """Of the tiny network; a text reads a dense image."""
    config = network.blip.config
    vision, text = vision_geometry(config.vision_config, 40, 40), text_geometry(config.text_config)

    def read(trace: BranchTrace, scoring: Scoring | None) -> int:
        return text_encoder_macs(text, trace, 26, scoring)

    branches = {
        VISION: BranchGeometry(partial(vision_macs, vision), 3, HEAD_WIDTH, GRID),
        TEXT: BranchGeometry(read, 3, HEAD_WIDTH),
    }
    return PruningGeometry(branches, AlignmentGeometry(ALIGNMENT_TOKENS, WIDTH))


@pytest.fixture
def pruner(name: str, geometry: PruningGeometry) -> Pruner:
    return build_pruner(name, geometry=geometry, **OPTIONS[name])


@pytest.fixture
def prunes(name: str, branch: str) -> bool:
    """Whether the method has anything to drop in the branch."""
    return name != "none" and (name, branch) != ("spatial", TEXT)


@pytest.fixture
def lengths(branch: str, pixel_values: Tensor, ragged_questions: tuple[Tensor, Tensor]) -> list[int]:
    """Tokens of each row, class token included."""
    return [26] * len(pixel_values) if branch == VISION else ragged_questions[1].sum(1).tolist()


@pytest.fixture(scope="module")
def dense_images(network: VqaNetwork, pixel_values: Tensor) -> dict[int | None, Encoded]:
    """What the questions read: the three images, by None, and each alone, by its row."""
    with torch.no_grad():
        alone = {row: network.encode_image(pixel_values[row : row + 1]) for row in range(3)}
        return {None: network.encode_image(pixel_values), **alone}


@pytest.fixture
def encode_branch(
    network: VqaNetwork,
    pixel_values: Tensor,
    ragged_questions: tuple[Tensor, Tensor],
    dense_images: dict[int | None, Encoded],
    pruner: Pruner,
    branch: str,
) -> Encode:
    """Encode the three rows, or one row without its padding, of either branch with the pruner under test."""

    def run(
        keep_mode: str,
        prune_temperature: float | list[float] = PRUNE_TEMPERATURE,
        row: int | None = None,
        padding_id: int = 0,
    ) -> Encoded:
        rows = slice(None) if row is None else slice(row, row + 1)
        images, token_ids, mask = pixel_values[rows], *(x[rows] for x in ragged_questions)
        token_ids = token_ids.masked_fill(~mask, padding_id)
        temperatures = torch.as_tensor(prune_temperature).expand(len(images))
        pruning = Pruning(pruner, temperatures, keep_mode)
        if branch == VISION:
            return network.encode_image(images, pruning)
        if row is not None:
            token_ids, mask = token_ids[:, mask[0]], mask[:, mask[0]]
        return network.encode_question(token_ids, mask, dense_images[row], None, pruning)

    return run


def real_rows(encoded: Encoded) -> list[tuple[Tensor, list[int], list[float]]]:
    """Hidden, position and size of each row, without padding."""
    tokens = encoded.tokens.unpack()
    return [
        (tokens.hidden[row, :n], tokens.position[row, :n].tolist(), tokens.size[row, :n].tolist())
        for row, n in enumerate(tokens.lengths().tolist())
    ]


@torch.no_grad()
def test_the_class_token_stands_first_and_order_is_kept(
    encode_branch: Encode, keep_mode: str, lengths: list[int], pruner: Pruner
) -> None:
    for (_, position, _), length in zip(real_rows(encode_branch(keep_mode)), lengths, strict=True):
        originals = [p for p in position if p != MERGED]
        assert originals[0] == 0
        assert all(a < b for a, b in pairwise(originals))
        assert position == originals + [MERGED] * (len(position) - len(originals))
        assert pruner.appends_merged or position == originals
        assert originals[-1] < length  # padding is never kept


@torch.no_grad()
def test_sizes_tell_what_each_token_stands_for(
    encode_branch: Encode, keep_mode: str, lengths: list[int], name: str, pruner: Pruner
) -> None:
    for (_, position, size), length in zip(real_rows(encode_branch(keep_mode)), lengths, strict=True):
        if name in ABSORBING or pruner.appends_merged:
            assert sum(size) == length
        if name not in ABSORBING:
            assert all(s == 1 for s, p in zip(size, position, strict=True) if p != MERGED)
        assert size[0] == 1


@torch.no_grad()
def test_the_counts_tell_what_happened(
    encode_branch: Encode, keep_mode: str, lengths: list[int], pruner: Pruner, prunes: bool
) -> None:
    encoded = encode_branch(keep_mode)
    assert encoded.appends_merged == pruner.appends_merged
    entering = torch.tensor(lengths) - 1
    for tokens_in, needed, kept in zip(encoded.tokens_in, encoded.needed, encoded.kept, strict=True):
        assert torch.equal(tokens_in, entering)
        assert (needed <= kept).all() and (kept <= tokens_in).all()
        pruned = kept < tokens_in
        if keep_mode == PER_INSTANCE:
            assert torch.equal(needed, kept)
        elif pruned.any():
            assert (kept[pruned] == needed[pruned].max()).all()
        if pruner.appends_merged:
            assert (tokens_in - kept != 1).all()  # dropping one would gain nothing
        entering = kept + pruned * pruner.appends_merged
    assert torch.equal(encoded.tokens.lengths() - 1, entering)
    assert bool((encoded.kept < encoded.tokens_in).any()) == prunes


@torch.no_grad()
def test_a_row_alone_keeps_what_its_schedule_foresaw(
    encode_branch: Encode, keep_mode: str, branch: str, lengths: list[int], pruner: Pruner
) -> None:
    if not isinstance(pruner, ScheduledPruner):
        pytest.skip("what MADTP keeps follows from the row")
    for row, length in enumerate(lengths):
        encoded = encode_branch(keep_mode, row=row)
        counts = pruner.counts(branch, length - 1, 3)
        foreseen = scheduled_trace(length - 1, counts, pruner.appends_merged, pruner.fewest_kept)
        assert encoded.tokens_in[:, 0].tolist() == list(foreseen.tokens_in)
        assert encoded.kept[:, 0].tolist() == list(foreseen.kept)


@torch.no_grad()
@pytest.mark.parametrize("branch", [TEXT])
def test_what_lies_in_the_padding_does_not_matter(encode_branch: Encode, keep_mode: str) -> None:
    before, after = encode_branch(keep_mode), encode_branch(keep_mode, padding_id=7)
    assert torch.equal(before.needed, after.needed) and torch.equal(before.kept, after.kept)
    for (hidden, position, _), (other, other_position, _) in zip(
        real_rows(before), real_rows(after), strict=True
    ):
        assert position == other_position
        torch.testing.assert_close(hidden, other, atol=1e-6, rtol=0)


@torch.no_grad()
def test_prune_temperature_zero_is_the_dense_model(
    encode_branch: Encode,
    keep_mode: str,
    branch: str,
    network: VqaNetwork,
    dense_images: dict[int | None, Encoded],
    ragged_questions: tuple[Tensor, Tensor],
) -> None:
    encoded, dense = encode_branch(keep_mode, 0.0), dense_images[None]
    if branch == TEXT:
        dense = network.encode_question(*ragged_questions, dense)
    assert torch.equal(encoded.kept, dense.tokens_in) and torch.equal(encoded.needed, dense.tokens_in)
    for (hidden, position, _), (other, _, _) in zip(real_rows(encoded), real_rows(dense), strict=True):
        assert position == list(range(len(other)))
        torch.testing.assert_close(hidden, other, atol=5e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("prune_temperature", [[4.0, 4.0, 4.0], [16.0, 0.0, 4.0]], ids=["same", "mixed"])
def test_per_instance_a_row_of_a_batch_equals_the_row_alone(
    encode_branch: Encode, prune_temperature: list[float]
) -> None:
    together = encode_branch(PER_INSTANCE, prune_temperature)
    for row, (hidden, position, size) in enumerate(real_rows(together)):
        alone = encode_branch(PER_INSTANCE, prune_temperature[row], row)
        ((alone_hidden, alone_position, alone_size),) = real_rows(alone)
        assert (position, size) == (alone_position, alone_size)
        assert torch.equal(together.kept[:, row], alone.kept[:, 0])
        torch.testing.assert_close(hidden, alone_hidden, atol=1e-5, rtol=0)


def test_gradients_are_finite(
    encode_branch: Encode, keep_mode: str, branch: str, name: str, network: VqaNetwork
) -> None:
    assert network.alignment is not None
    tower = network.blip.vision_model if branch == VISION else network.blip.text_encoder
    parameters = [*tower.parameters(), network.alignment.tokens]
    loss = torch.stack([hidden.square().mean() for hidden, _, _ in real_rows(encode_branch(keep_mode))]).sum()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)
    assert (gradients[-1] is not None) == (name in GUIDED)  # merge weights reach the alignment tokens


# --- Layouts, on hand-made tokens: `encode` runs max_keep padded and per_instance packed


def step_of(tokens: Tokens, branch: str, keep_mode: str, block: int) -> PruneStep:
    guidance = torch.rand(tokens.batch_size, tokens.width - 1, ALIGNMENT_TOKENS)
    return PruneStep(branch, block, 3, keep_mode, torch.full((tokens.batch_size,), 4.0), guidance)


def signals_of(tokens: Tokens) -> Signals:
    """Noise with nothing at padding, as attention gives it."""
    batch, width = tokens.position.shape
    real = torch.ones(batch, width, dtype=torch.bool) if tokens.mask is None else tokens.mask
    row = torch.rand(batch, 4, width) * real.unsqueeze(1)
    both = real.unsqueeze(1) & real.unsqueeze(2)
    keys = torch.randn(batch, width, HEAD_WIDTH) * real.unsqueeze(2)
    return Signals(row[:, 0], row, row + 0.1, keys, torch.rand(batch, width, width) * both)


@pytest.mark.parametrize("is_causal", [False, True], ids=["", "causal"])
def test_padded_and_packed_tokens_are_pruned_alike(
    pruner: Pruner, branch: str, keep_mode: str, prunes: bool, is_causal: bool
) -> None:
    lengths = torch.tensor([26, 26] if branch == VISION else [14, 6])
    tokens = Tokens.from_hidden(torch.randn(2, 26, 8), torch.arange(26) < lengths.unsqueeze(1))
    tokens = replace(tokens, is_causal=is_causal)
    signals, dropped = signals_of(tokens), 0
    for block in range(3):
        step = step_of(tokens, branch, keep_mode, block)
        packed = pruner(tokens.pack(), signals, step)
        step.state.clear()
        padded = pruner(tokens, signals, step)
        assert torch.equal(packed.kept, padded.kept) and torch.equal(packed.needed, padded.needed)
        assert packed.tokens.is_packed and not padded.tokens.is_packed
        assert torch.equal(packed.tokens.position, padded.tokens.position)
        torch.testing.assert_close(packed.tokens.hidden, padded.tokens.pack().hidden)
        dropped += int((lengths - 1 - padded.kept).sum())
    assert (dropped > 0) == prunes


# --- Multiply-adds


def uncounted(name: str, trace: BranchTrace) -> int:
    """What fvcore counts of a method beyond our formulas: it sees matrix products and nothing else.

    A for the class token, too, and a merge over the whole row, weights of zero included. Not the threshold,
    a cosine, or a merge by addition.
    """
    total = 0
    for entering, kept in zip(trace.tokens_in, trace.kept, strict=True):
        if name in GUIDED:
            total += WIDTH * ALIGNMENT_TOKENS
        if name == "madtp":
            total -= entering * ALIGNMENT_TOKENS
        if name in (*GUIDED, "evit") and kept < entering:
            total += (kept + 1) * WIDTH
        if name == "topk":
            total -= entering * WIDTH
        if name in ABSORBING:
            total -= (entering - kept) * WIDTH
    return total


def test_multiply_adds_are_those_of_a_traced_forward(
    encode_branch: Encode,
    network: VqaNetwork,
    branch: str,
    geometry: PruningGeometry,
    pruner: Pruner,
    name: str,
) -> None:
    encoded = encode_branch(PER_INSTANCE, row=0)
    counts = (tuple(part[:, 0].tolist()) for part in (encoded.tokens_in, encoded.needed, encoded.kept))
    tokens_in, needed, kept = counts
    trace = BranchTrace(tokens_in[0], tokens_in, needed, kept, encoded.appends_merged)

    def run(_: Tensor) -> Tensor:
        return encode_branch(PER_INSTANCE, row=0).tokens.hidden

    expected = geometry.branches[branch].macs(trace, pruner.scoring(geometry.alignment))
    assert counted(network, run, torch.zeros(1)) == expected + uncounted(name, trace)
