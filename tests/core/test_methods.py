"""Each pruning method against a case computed by hand or by plain loops, on hand-made signals."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from madtp_core.attention import (
    CLASS_ROW,
    GUIDANCE,
    HEAD_NORMS,
    KEYS,
    MEAN_MAP,
    PROPORTIONAL,
    RECEIVED,
    Signals,
)
from madtp_core.errors import ConfigError
from madtp_core.flops import AlignmentGeometry
from madtp_core.pruning import (
    MAX_KEEP,
    PER_INSTANCE,
    TEXT,
    VISION,
    BranchGeometry,
    Pruned,
    Pruner,
    PruneStep,
    PruningGeometry,
    build_pruner,
)
from madtp_core.pruning.random_choice import hashed_uniform
from madtp_core.pruning.spatial import first_of_cell, pooled_grid
from madtp_core.tokens import MERGED, Tokens

HEAD_WIDTH = 4


def tokens_of(count: int, rows: int = 1, width: int = 3) -> Tokens:
    """Rows of so many tokens behind the class token."""
    return Tokens.from_hidden(torch.randn(rows, 1 + count, width))


def step_of(rows: int = 1, *, block: int = 0, blocks: int = 1, branch: str = VISION) -> PruneStep:
    return PruneStep(branch, block, blocks, PER_INSTANCE, torch.ones(rows))


def grid_geometry(rows: int, columns: int) -> PruningGeometry:
    """Of an image whose cost no test here reads."""
    return PruningGeometry({VISION: BranchGeometry(lambda trace, scoring: 1, 1, HEAD_WIDTH, (rows, columns))})


def prune(pruner: Pruner, tokens: Tokens, signals: Signals | None = None) -> Pruned:
    return pruner(tokens, signals or Signals(), step_of(tokens.batch_size))


# --- stp


def test_stp_keeps_what_the_class_token_attends_to() -> None:
    tokens = tokens_of(4)
    heads = torch.tensor([[[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.0, 0.1, 0.5, 0.3]]])  # means .3 .1 .3 .2
    pruned = prune(build_pruner("stp", kept={VISION: [2]}), tokens, Signals(class_row=heads))
    assert pruned.tokens.position.tolist() == [[0, 1, 3]]
    assert torch.equal(pruned.tokens.hidden[0], tokens.hidden[0, [0, 1, 3]])


# --- evit


def test_evit_fuses_the_inattentive_by_their_attention() -> None:
    tokens = tokens_of(4)
    attention = torch.tensor([[[0.1, 0.4, 0.1, 0.3, 0.1], [0.1, 0.2, 0.3, 0.3, 0.1]]])  # means .3 .2 .3 .1
    pruned = prune(build_pruner("evit", kept={VISION: [2]}), tokens, Signals(class_row=attention)).tokens
    assert pruned.position.tolist() == [[0, 1, 3, MERGED]]
    expected = 0.2 * tokens.hidden[0, 2] + 0.1 * tokens.hidden[0, 4]  # a sum, as in the source
    torch.testing.assert_close(pruned.hidden[0, 3], expected)
    assert pruned.size.tolist() == [[1, 1, 1, 2]]


# --- topk


def test_topk_keeps_what_points_where_the_class_token_does() -> None:
    degrees = [0, 80, 10, 180, 40]
    lengths = [1.0, 9.0, 0.1, 9.0, 2.0]
    directions = [(math.cos(math.radians(a)), math.sin(math.radians(a))) for a in degrees]
    hidden = torch.tensor([directions]) * torch.tensor(lengths).view(1, 5, 1)
    pruner = build_pruner("topk", kept={VISION: [2]})
    importance, _ = pruner.decide(Tokens.from_hidden(hidden), Signals(), step_of())
    assert importance[0].tolist() == pytest.approx([math.cos(math.radians(a)) for a in degrees[1:]])
    assert prune(pruner, Tokens.from_hidden(hidden)).tokens.position.tolist() == [[0, 2, 4]]


# --- random


def mixed(word: int) -> int:
    """MurmurHash3's finaliser."""
    word = ((word ^ (word >> 16)) * 0x85EBCA6B) % 2**32
    word = ((word ^ (word >> 13)) * 0xC2B2AE35) % 2**32
    return word ^ (word >> 16)


def test_hashed_numbers_are_those_of_the_plain_hash() -> None:
    numbers = [0, 1, 2, 576, 2**31]
    for stream in (0, 7, 2**40 + 3):
        start = mixed(stream % 2**32)
        expected = [(mixed((number * 0x9E3779B1 + start) % 2**32) >> 8) / 2**24 for number in numbers]
        assert hashed_uniform(torch.tensor(numbers), stream).tolist() == expected


def test_hashed_numbers_look_uniform() -> None:
    numbers = hashed_uniform(torch.arange(4096), 1)
    assert torch.histc(numbers, 8, 0, 1).tolist() == pytest.approx([512] * 8, rel=0.15)
    assert abs(torch.corrcoef(torch.stack([numbers[1:], numbers[:-1]]))[0, 1]) < 0.05


def random_choice(seed: int, block: int = 0, branch: str = VISION, rows: int = 1) -> list[list[int]]:
    pruner = build_pruner("random", kept={branch: [6, 6]}, seed=seed)
    step = step_of(rows, block=block, blocks=2, branch=branch)
    return pruner(tokens_of(20, rows), Signals(), step).tokens.position.tolist()


def test_a_random_choice_differs_by_seed_block_and_branch_only() -> None:
    (first,) = random_choice(0)
    assert [first] * 3 == random_choice(0, rows=3)  # neither by batch nor by what the tokens hold
    others = [random_choice(1), random_choice(0, block=1), random_choice(0, branch=TEXT)]
    assert all(other != [first] for other in others)


# --- spatial


def test_a_grid_that_does_not_divide_is_cut_as_evenly_as_can_be() -> None:
    # 3 rows into 2: two and one; 5 columns into 2: three and two.
    assert first_of_cell((3, 5), (2, 2)) == [0, 0, 0, 3, 3, 0, 0, 0, 3, 3, 10, 10, 10, 13, 13]
    assert first_of_cell((2, 3), (2, 3)) == [0, 1, 2, 3, 4, 5]


def test_spatial_pooling_averages_the_patches_of_each_cell() -> None:
    pruner = build_pruner("spatial", geometry=grid_geometry(2, 4), keep_rate={VISION: 0.25})
    tokens = tokens_of(8)
    pruned = prune(pruner, tokens)
    assert (pruned.needed.tolist(), pruned.kept.tolist()) == ([2], [2])
    assert pruned.tokens.position.tolist() == [[0, 1, 3]]
    assert pruned.tokens.size.tolist() == [[1, 4, 4]]
    patches = tokens.hidden[0, 1:].view(2, 4, 3)
    expected = torch.stack([patches[:, :2].mean((0, 1)), patches[:, 2:].mean((0, 1))])
    torch.testing.assert_close(pruned.tokens.hidden[0, 1:], expected)
    assert torch.equal(pruned.tokens.hidden[0, 0], tokens.hidden[0, 0])


@pytest.mark.parametrize(
    ("grid", "cells", "expected"),
    [
        ((24, 24), 288, (17, 17)),
        ((24, 24), 272, (16, 17)),
        ((10, 20), 50, (5, 10)),
        ((10, 20), 16.5, (3, 6)),  # as near as (3, 5), and of the image's shape
        ((4, 6), 1, (1, 1)),
    ],
)
def test_the_pooled_grid_has_nearly_the_image_s_shape(
    grid: tuple[int, int], cells: float, expected: tuple[int, int]
) -> None:
    assert pooled_grid(grid, cells) == expected


def test_only_the_first_block_pools_and_a_text_never_does() -> None:
    pruner = build_pruner("spatial", geometry=grid_geometry(2, 4), keep_rate={VISION: 0.25})
    tokens = tokens_of(8)
    for step in (step_of(block=1, blocks=2), step_of(branch=TEXT)):
        assert pruner(tokens, Signals(), step).tokens is tokens


def test_an_image_of_another_grid_is_refused() -> None:
    pruner = build_pruner("spatial", geometry=grid_geometry(2, 4), keep_rate={VISION: 0.25})
    with pytest.raises(ConfigError, match=r"grid of \(2, 4\), the image has 9"):
        prune(pruner, tokens_of(9))


# --- tome


def matched(tokens: Tokens, keys: Tensor, kept: int) -> tuple[list[list[int]], Tensor, list[float]]:
    """ToMe by loops, one row of float64 keys: groups of places, their means, their sizes, in their order.

    Tokens behind the class token take turns in B and A; the A tokens that are most similar to some B token
    join it.
    """
    count = len(keys) - 1
    in_b, in_a = range(1, count + 1, 2), range(2, count + 1, 2)

    def cosine(i: int, j: int) -> float:
        return float(keys[i] @ keys[j] / (keys[i].norm() * keys[j].norm()))

    best = {i: max(in_b, key=lambda j: cosine(i, j)) for i in in_a}
    merging = sorted(in_a, key=lambda i: -cosine(i, best[i]))[: count - kept]
    groups = [[i] + [j for j in merging if best[j] == i] for i in range(count + 1) if i not in merging]
    size = tokens.size[0].double()
    hidden = tokens.hidden[0].double() * size.unsqueeze(1)
    sizes = [float(size[group].sum()) for group in groups]
    means = torch.stack([hidden[group].sum(0) / total for group, total in zip(groups, sizes, strict=True)])
    return groups, means, sizes


@pytest.mark.parametrize(("count", "kept"), [(8, 6), (9, 7), (9, 5), (8, 4), (8, 1)])
def test_tome_equals_the_loops(count: int, kept: int) -> None:
    size = torch.randint(1, 5, (1, 1 + count)).float()
    tokens = replace(tokens_of(count), size=size)
    keys = torch.randn(1, 1 + count, HEAD_WIDTH)
    pruner = build_pruner("tome", kept={VISION: [kept]})
    pruned = prune(pruner, tokens, Signals(keys=keys)).tokens
    groups, means, sizes = matched(tokens, keys[0].double(), max(kept, count - count // 2))  # at most half
    assert pruned.position.tolist() == [[group[0] for group in groups]]
    assert pruned.size[0].tolist() == sizes
    torch.testing.assert_close(pruned.hidden[0].double(), means, atol=1e-6, rtol=0)


def test_tome_by_hand() -> None:
    keys = torch.tensor([[[9.0, 9], [1, 0], [2, 0.1], [0, 1], [-1, 1]]])  # 2 joins 1; 4 is nearest to 3
    tokens = tokens_of(4)
    pruned = prune(build_pruner("tome", kept={VISION: [3]}), tokens, Signals(keys=keys)).tokens
    assert (pruned.position.tolist(), pruned.size.tolist()) == ([[0, 1, 3, 4]], [[1, 2, 1, 1]])
    torch.testing.assert_close(pruned.hidden[0, 1], tokens.hidden[0, 1:3].mean(0))


def test_tome_asks_for_proportional_attention() -> None:
    assert build_pruner("tome", kept={VISION: [3]}).needs == {KEYS, PROPORTIONAL}


def test_in_a_causal_text_a_token_merges_into_a_later_one_only() -> None:
    tokens = replace(tokens_of(4), is_causal=True)
    keys = torch.tensor([[[9.0, 9], [1, 0], [1, 0], [0, 1], [0, 1]]])  # alike: 1 and 2, 3 and 4
    pruned = prune(build_pruner("tome", kept={VISION: [2]}), tokens, Signals(keys=keys))
    assert pruned.tokens.position.tolist() == [[0, 1, 3, 4]]  # 2 joined 3; nothing comes after 4
    assert (pruned.needed.tolist(), pruned.tokens.size.tolist()) == ([3], [[1, 1, 2, 1]])


# --- rollout


def rollout_pruner(blocks: int, group: int) -> Pruner:
    return build_pruner("rollout", keep_rate={VISION: [0.5] * blocks}, group=group)


def test_rollout_follows_attention_and_residual_through_its_group() -> None:
    maps = [torch.rand(1, 5, 5).softmax(-1) for _ in range(2)]
    tokens, pruner = tokens_of(4), rollout_pruner(2, group=2)
    first = step_of(block=0, blocks=2)
    assert pruner(tokens, Signals(mean_map=maps[0]), first).tokens is tokens
    second = replace(first, block=1)
    importance, _ = pruner.decide(tokens, Signals(mean_map=maps[1]), second)
    identity = torch.eye(5, dtype=torch.float64)
    one, two = ((attention[0].double() + identity) / 2 for attention in maps)
    torch.testing.assert_close(importance[0].double(), (two @ one)[0, 1:], atol=1e-6, rtol=0)


def test_every_group_begins_anew_and_a_short_last_one_prunes_too() -> None:
    pruner, tokens, state = rollout_pruner(3, group=2), tokens_of(8), {}
    kept, last = [], Tensor()
    for block in range(3):
        width = tokens.width
        last = torch.rand(1, width, width).softmax(-1)
        step = replace(step_of(block=block, blocks=3), state=state)
        importance, _ = pruner.decide(tokens, Signals(mean_map=last), replace(step, state=dict(state)))
        pruned = pruner(tokens, Signals(mean_map=last), step)
        kept.append(pruned.kept.tolist())
        tokens = pruned.tokens
    assert kept == [[8], [4], [2]]
    torch.testing.assert_close(importance[0], last[0, 0, 1:] / 2)


# --- Terms, needs and costs

MAG = AlignmentGeometry(num_tokens=5, dim=7)


@pytest.mark.parametrize(
    ("name", "terms", "needs"),
    [
        ("madtp", ["self", "token", "cls"], {RECEIVED, GUIDANCE, CLASS_ROW, HEAD_NORMS}),
        ("madtp", ["token"], {GUIDANCE}),
        ("madtp", ["cls"], {GUIDANCE, CLASS_ROW, HEAD_NORMS}),  # guidance for the threshold
        ("madtp", ["self", "cls"], {RECEIVED, GUIDANCE, CLASS_ROW, HEAD_NORMS}),
        ("static", ["self", "cls"], {RECEIVED, CLASS_ROW, HEAD_NORMS}),
        ("static", ["self", "token"], {RECEIVED, GUIDANCE}),
    ],
)
def test_a_method_needs_what_its_terms_read(name: str, terms: list[str], needs: set[str]) -> None:
    options = {"kept": {VISION: [4]}} if name == "static" else {}
    assert build_pruner(name, terms=terms, **options).needs == needs


@pytest.mark.parametrize("name", ["stp", "evit", "topk", "random", "tome", "rollout", "static"])
def test_only_static_pruning_by_guidance_needs_alignment_tokens(name: str) -> None:
    needs = build_pruner(name, kept={VISION: [4]}).needs
    assert (GUIDANCE in needs) == (name == "static")
    assert (MEAN_MAP in needs) == (name == "rollout")


@pytest.mark.parametrize(
    ("name", "options", "macs"),
    [
        ("none", {}, 0),
        ("stp", {"kept": {VISION: [6]}}, 0),
        ("random", {"kept": {VISION: [6]}}, 0),
        ("topk", {"kept": {VISION: [6]}}, 11 * 30),
        ("evit", {"kept": {VISION: [6]}}, 5 * 30),
        ("spatial", {"keep_rate": {VISION: 0.5}}, 5 * 30),
        ("tome", {"kept": {VISION: [6]}}, 5 * 6 * HEAD_WIDTH + 5 * 30),
        ("rollout", {"kept": {VISION: [6]}}, 12 * 12),
        ("madtp", {}, 11 * 5 * 7 + 11 * 5 + 5 * 30),
        ("static", {"kept": {VISION: [6]}}, 11 * 5 * 7 + 5 * 30),  # no threshold
        ("static", {"kept": {VISION: [6]}, "terms": ["self", "cls"]}, 5 * 30),
    ],
)
def test_what_a_method_spends_on_a_block(name: str, options: dict[str, object], macs: int) -> None:
    pruner = build_pruner(name, geometry=grid_geometry(3, 4), **options)
    scoring = pruner.scoring(MAG)
    assert (0 if scoring is None else scoring.macs(VISION, entering=11, kept=6, width=30)) == macs


# --- Schedules at work


def test_a_prune_temperature_switches_rows_on_and_off() -> None:
    pruner = build_pruner("topk", kept={VISION: [4]})
    step = PruneStep(VISION, 0, 1, PER_INSTANCE, torch.tensor([0.3, 0.0, 7.0]))
    assert pruner(tokens_of(9, 3), Signals(), step).kept.tolist() == [4, 9, 4]
    together = pruner(tokens_of(9, 3), Signals(), replace(step, keep_mode=MAX_KEEP))
    assert (together.needed.tolist(), together.kept.tolist()) == ([9, 9, 9], [9, 9, 9])


def test_a_row_needs_what_its_own_length_asks_for() -> None:
    mask = torch.arange(11) <= torch.tensor([[10], [6]])
    tokens = Tokens.from_hidden(torch.randn(2, 11, 3), mask)
    pruner = build_pruner("topk", keep_rate={VISION: 0.5})
    step = replace(step_of(2, blocks=2), keep_mode=MAX_KEEP)
    first = pruner(tokens, Signals(), step)
    assert (first.needed.tolist(), first.kept.tolist()) == ([5, 3], [5, 5])
    second = pruner(first.tokens, Signals(), replace(step, block=1))
    assert (second.needed.tolist(), second.kept.tolist()) == ([2, 2], [2, 2])  # 10 and 6 to a quarter


@pytest.mark.parametrize("options", [{"kept": {VISION: [3, 2]}}, {"keep_rate": {VISION: [0.5, 0.5]}}])
def test_a_schedule_of_another_length_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="is for 2 blocks, the branch has 1"):
        prune(build_pruner("topk", **options), tokens_of(9))


def test_a_branch_that_the_schedule_does_not_name_keeps_all() -> None:
    tokens = tokens_of(9)
    assert prune(build_pruner("topk", kept={TEXT: [4]}), tokens).tokens is tokens
