"""The keep-and-merge step by hand, the registry, and the contract that every pruning method fulfils."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from madtp_core.attention import Signals
from madtp_core.encoder import Encoded, Pruning
from madtp_core.errors import ConfigError, UnknownNameError
from madtp_core.pruning import (
    KEEP_MODES,
    MAX_KEEP,
    PER_INSTANCE,
    PRUNERS,
    TEXT,
    VISION,
    PruneStep,
    build_pruner,
    check_keep_mode,
    keep_and_merge,
)
from madtp_core.tasks.vqa_network import VqaNetwork
from madtp_core.tokens import MERGED, Tokens
from tests.core import reference

# --- keep_and_merge, rules 7 to 9 of the method


def sequence(*lengths: int) -> Tokens:
    """Rows of so many tokens behind the class token, of width 2."""
    width = 1 + max(lengths)
    mask = torch.arange(width) <= torch.tensor(lengths).unsqueeze(1)
    return Tokens.from_hidden(torch.randn(len(lengths), width, 2), mask)


def scored(tokens: Tokens) -> Tensor:
    """Distinct positive importances, padding the most important of all."""
    importance = torch.rand(tokens.batch_size, tokens.width - 1) + 0.1
    return importance if tokens.mask is None else importance.masked_fill(~tokens.mask[:, 1:], 9.0)


def test_the_most_important_stay_in_their_order_before_the_merged_one() -> None:
    tokens = sequence(5)
    importance = torch.tensor([[0.1, 0.4, 0.2, 0.3, 0.05]])
    pruned = keep_and_merge(tokens, importance, torch.tensor([2]), MAX_KEEP)
    assert pruned.tokens.position.tolist() == [[0, 2, 4, MERGED]]
    assert torch.equal(pruned.tokens.hidden[0, :3], tokens.hidden[0, [0, 2, 4]])
    merged = (0.1 * tokens.hidden[0, 1] + 0.2 * tokens.hidden[0, 3] + 0.05 * tokens.hidden[0, 5]) / 0.35
    torch.testing.assert_close(pruned.tokens.hidden[0, 3], merged)
    assert pruned.tokens.size.tolist() == [[1, 1, 1, 3]]


def test_a_merged_token_is_an_ordinary_one_the_next_time() -> None:
    once = keep_and_merge(sequence(5), torch.tensor([[5.0, 4, 3, 2, 1]]), torch.tensor([2]), MAX_KEEP).tokens
    kept = keep_and_merge(once, torch.tensor([[1.0, 2, 3]]), torch.tensor([1]), MAX_KEEP).tokens
    dropped = keep_and_merge(once, torch.tensor([[3.0, 2, 1]]), torch.tensor([1]), MAX_KEEP).tokens
    assert (kept.position.tolist(), kept.size.tolist()) == ([[0, MERGED, MERGED]], [[1, 3, 2]])
    assert (dropped.position.tolist(), dropped.size.tolist()) == ([[0, 1, MERGED]], [[1, 1, 4]])


@pytest.mark.parametrize("needed", range(1, 7))
def test_a_row_equals_the_loop(needed: int) -> None:
    tokens = sequence(8)
    importance = scored(tokens)
    pruned = keep_and_merge(tokens, importance, torch.tensor([needed]), PER_INSTANCE).tokens
    row = reference.Instance(tokens.hidden[0].double(), list(range(9)))
    expected = reference.prune_in_place(row, importance[0].tolist(), needed)
    assert pruned.position[0].tolist() == expected.position
    torch.testing.assert_close(pruned.hidden[0].double(), expected.hidden, atol=1e-6, rtol=0)


def test_max_keep_gives_every_row_the_neediest_rows_number() -> None:
    tokens = sequence(8, 8, 8)
    pruned = keep_and_merge(tokens, scored(tokens), torch.tensor([2, 5, 0]), MAX_KEEP)
    assert pruned.kept.tolist() == [5, 5, 5]
    assert pruned.needed.tolist() == [2, 5, 0]
    assert pruned.tokens.mask is None and pruned.tokens.width == 1 + 5 + 1


def test_per_instance_gives_every_row_its_own() -> None:
    tokens = sequence(8, 8)
    pruned = keep_and_merge(tokens, scored(tokens), torch.tensor([2, 5]), PER_INSTANCE)
    assert pruned.kept.tolist() == pruned.needed.tolist() == [2, 5]
    assert pruned.tokens.lengths().tolist() == [4, 7]


@pytest.mark.parametrize("keep_mode", KEEP_MODES)
@pytest.mark.parametrize(("needed", "kept"), [(0, 8), (1, 1), (6, 6), (7, 8), (8, 8)])
def test_a_row_that_would_keep_none_or_drop_fewer_than_two_is_left_alone(
    needed: int, kept: int, keep_mode: str
) -> None:
    tokens = sequence(8)
    pruned = keep_and_merge(tokens, scored(tokens), torch.tensor([needed]), keep_mode)
    assert pruned.kept.tolist() == pruned.needed.tolist() == [kept]
    if kept == 8:
        assert pruned.tokens is tokens


def test_per_instance_leaves_single_rows_alone() -> None:
    tokens = sequence(8, 8, 8)
    pruned = keep_and_merge(tokens, scored(tokens), torch.tensor([0, 3, 7]), PER_INSTANCE)
    assert pruned.kept.tolist() == pruned.needed.tolist() == [8, 3, 8]
    assert pruned.tokens.lengths().tolist() == [9, 5, 9]
    for row in (0, 2):
        assert torch.equal(pruned.tokens.hidden[row], tokens.hidden[row])


def test_a_padded_max_keep_row_keeps_at_most_what_it_has() -> None:
    tokens = sequence(8, 3, 5, 4)  # k = 3: the row of 3 has no more, that of 4 would drop one only
    pruned = keep_and_merge(tokens, scored(tokens), torch.tensor([3, 1, 2, 0]), MAX_KEEP)
    assert pruned.kept.tolist() == [3, 3, 3, 4]
    assert pruned.needed.tolist() == [3, 3, 2, 4]
    assert pruned.tokens.lengths().tolist() == [5, 4, 5, 5]
    assert (pruned.tokens.position == MERGED).sum(1).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_padding_is_neither_kept_nor_merged_however_important(keep_mode: str) -> None:
    tokens = sequence(8, 5)
    importance = scored(tokens)
    together = keep_and_merge(tokens, importance, torch.tensor([3, 3]), keep_mode).tokens
    short = Tokens.from_hidden(tokens.hidden[1:, :6])
    alone = keep_and_merge(short, importance[1:, :5], torch.tensor([3]), keep_mode).tokens
    assert torch.equal(together.position[1, :5], alone.position[0])
    assert torch.equal(together.size[1, :5], alone.size[0])
    torch.testing.assert_close(together.hidden[1, :5], alone.hidden[0])


def test_of_equal_scores_the_earlier_token_stays() -> None:
    pruned = keep_and_merge(sequence(6), torch.ones(1, 6), torch.tensor([3]), MAX_KEEP)
    assert pruned.tokens.position.tolist() == [[0, 1, 2, 3, MERGED]]


def test_a_negative_score_weighs_nothing_in_the_merge() -> None:
    # Differs from the reference, where such a token is subtracted.
    tokens = sequence(4)
    pruned = keep_and_merge(tokens, torch.tensor([[0.9, 0.2, -0.5, 0.1]]), torch.tensor([1]), MAX_KEEP)
    expected = (0.2 * tokens.hidden[0, 2] + 0.1 * tokens.hidden[0, 4]) / 0.3
    torch.testing.assert_close(pruned.tokens.hidden[0, 2], expected)
    assert pruned.tokens.size.tolist() == [[1, 1, 3]]


def test_if_all_dropped_scores_are_negative_they_merge_into_their_mean() -> None:
    tokens = sequence(4)
    pruned = keep_and_merge(tokens, torch.tensor([[0.9, -0.2, -0.5, -0.1]]), torch.tensor([1]), MAX_KEEP)
    torch.testing.assert_close(pruned.tokens.hidden[0, 2], tokens.hidden[0, 2:].mean(0))


@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_the_layout_stays(keep_mode: str) -> None:
    tokens = sequence(8, 5)
    importance, needed = scored(tokens), torch.tensor([4, 2])
    padded = keep_and_merge(tokens, importance, needed, keep_mode).tokens
    packed = keep_and_merge(tokens.pack(), importance, needed, keep_mode).tokens
    assert packed.is_packed and not padded.is_packed
    torch.testing.assert_close(packed.hidden, padded.pack().hidden)
    assert torch.equal(packed.position, padded.position)


# --- MADTP's decision


def decide(guidance: Tensor, prune_temperature: float) -> tuple[Tensor, Tensor]:
    """MADTP on one row: importance [1, N] and needed [1]."""
    count = guidance.shape[1]
    received, class_row = torch.rand(1, 1 + count), torch.rand(1, 2, 1 + count)
    signals = Signals(received, class_row, torch.rand(1, 2, 1 + count))
    step = PruneStep(VISION, 0, 1, MAX_KEEP, torch.tensor([prune_temperature]), guidance)
    return build_pruner("madtp").decide(sequence(count), signals, step)


def test_the_token_that_the_threshold_ties_with_is_not_needed() -> None:
    guidance = torch.tensor([[5.0, 1.0, 1.0, 1.0]]).unsqueeze(-1)  # the softmax at a small T picks the first
    importance, needed = decide(guidance, 1e-3)
    assert needed.item() == (importance[0] > importance[0, 0]).sum().item()


def test_prune_temperature_zero_needs_every_token() -> None:
    _, needed = decide(torch.randn(1, 7, 3), 0.0)
    assert needed.tolist() == [7]


# --- Registry


def test_an_unknown_pruner_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="madtp, none, static"):
        build_pruner("random")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("madtp", {"kept": {}}),
        ("static", {}),
        ("static", {"kept": {}}),
        ("static", {"kept": {VISION: [4, 0, 2]}}),
    ],
)
def test_options_a_pruner_does_not_take_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        build_pruner(name, **options)


def test_an_unknown_keep_mode_is_refused() -> None:
    assert check_keep_mode(MAX_KEEP) == MAX_KEEP
    with pytest.raises(UnknownNameError, match="max_keep, per_instance"):
        check_keep_mode("mean_keep")


# --- The contract, for every pruner, branch and keep mode

OPTIONS: dict[str, dict[str, object]] = {
    "none": {},
    "madtp": {},
    "static": {"kept": {VISION: (18, 12, 7), TEXT: (9, 5, 3)}},
}
PRUNE_TEMPERATURE = 4.0

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


@pytest.fixture
def lengths(branch: str, pixel_values: Tensor, ragged_questions: tuple[Tensor, Tensor]) -> list[int]:
    """Tokens of each row, class token included."""
    return [26] * len(pixel_values) if branch == VISION else ragged_questions[1].sum(1).tolist()


@pytest.fixture
def encode_branch(
    network: VqaNetwork,
    pixel_values: Tensor,
    ragged_questions: tuple[Tensor, Tensor],
    name: str,
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
        pruning = Pruning(build_pruner(name, **OPTIONS[name]), temperatures, keep_mode)
        if branch == VISION:
            return network.encode_image(images, pruning)
        if row is not None:
            token_ids, mask = token_ids[:, mask[0]], mask[:, mask[0]]
        return network.encode_question(token_ids, mask, network.encode_image(images), None, pruning)

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
    encode_branch: Encode, keep_mode: str, lengths: list[int]
) -> None:
    for (_, position, _), length in zip(real_rows(encode_branch(keep_mode)), lengths, strict=True):
        originals = [p for p in position if p != MERGED]
        assert originals[0] == 0
        assert all(a < b for a, b in pairwise(originals))
        assert position == originals + [MERGED] * (len(position) - len(originals))
        assert originals[-1] < length  # padding is never kept


@torch.no_grad()
def test_sizes_sum_to_the_tokens_that_came_in(
    encode_branch: Encode, keep_mode: str, lengths: list[int]
) -> None:
    for (_, position, size), length in zip(real_rows(encode_branch(keep_mode)), lengths, strict=True):
        assert sum(size) == length
        assert all(s == 1 for s, p in zip(size, position, strict=True) if p != MERGED)


@torch.no_grad()
def test_the_counts_tell_what_happened(
    encode_branch: Encode, keep_mode: str, lengths: list[int], name: str
) -> None:
    encoded = encode_branch(keep_mode)
    entering = torch.tensor(lengths) - 1
    for tokens_in, needed, kept in zip(encoded.tokens_in, encoded.needed, encoded.kept, strict=True):
        assert torch.equal(tokens_in, entering)
        assert (needed <= kept).all() and (kept <= tokens_in).all()
        pruned = kept < tokens_in
        if keep_mode == PER_INSTANCE:
            assert torch.equal(needed, kept)
        elif pruned.any():
            assert (kept[pruned] == needed[pruned].max()).all()
        assert (tokens_in - kept != 1).all()  # dropping one would gain nothing
        entering = kept + pruned
    assert torch.equal(encoded.tokens.lengths() - 1, entering)
    assert bool((encoded.kept < encoded.tokens_in).any()) == (name != "none")


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
    pixel_values: Tensor,
    ragged_questions: tuple[Tensor, Tensor],
) -> None:
    encoded = encode_branch(keep_mode, 0.0)
    dense = network.encode_image(pixel_values)
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
    assert (gradients[-1] is not None) == (name != "none")  # merge weights reach the alignment tokens


@torch.no_grad()
def test_a_static_schedule_keeps_what_it_says(network: VqaNetwork, pixel_values: Tensor) -> None:
    pruner = build_pruner("static", kept={VISION: (18, 12, 7)})
    encoded = network.encode_image(pixel_values, Pruning(pruner, torch.ones(3), MAX_KEEP))
    assert encoded.kept.tolist() == [[18] * 3, [12] * 3, [7] * 3]
    assert encoded.tokens_in.tolist() == [[25] * 3, [19] * 3, [13] * 3]


@torch.no_grad()
def test_a_static_schedule_shorter_than_the_branch_is_refused(
    network: VqaNetwork, pixel_values: Tensor
) -> None:
    pruner = build_pruner("static", kept={VISION: (18, 12)})
    with pytest.raises(ConfigError, match="2 counts"):
        network.encode_image(pixel_values, Pruning(pruner, torch.ones(3), MAX_KEEP))


@torch.no_grad()
def test_a_branch_without_a_schedule_keeps_all(network: VqaNetwork, pixel_values: Tensor) -> None:
    pruner = build_pruner("static", kept={TEXT: (5, 4, 3)})
    encoded = network.encode_image(pixel_values, Pruning(pruner, torch.ones(3), MAX_KEEP))
    assert torch.equal(encoded.kept, encoded.tokens_in)
