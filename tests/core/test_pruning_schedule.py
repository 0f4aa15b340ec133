"""One target for every method: schedules that spend it, on BLIP-base's geometry by arithmetic alone."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest

from madtp_core.errors import ConfigError
from madtp_core.flops import (
    AlignmentGeometry,
    BranchTrace,
    Scoring,
    TextGeometry,
    VisionGeometry,
    memory_macs,
    text_encoder_macs,
    twin_text_encoder_macs,
    vision_macs,
)
from madtp_core.pruning import PRUNERS, TEXT, VISION, BranchGeometry, PruningGeometry, build_pruner
from madtp_core.pruning.schedule import (
    TOLERANCE,
    flops_ratio,
    geometric_counts,
    nearest_rate,
    scheduled_trace,
)
from madtp_core.pruning.scheduled import ScheduledPruner

BLOCKS, PATCHES, SEEN = 12, 576, 577
BERT = TextGeometry(width=768, mlp_width=3072, blocks=BLOCKS, memory_width=768)
MAG = AlignmentGeometry(num_tokens=100, dim=768)
METHODS = sorted(name for name, method in PRUNERS.items() if issubclass(method, ScheduledPruner))
GRID_TOLERANCE = 0.05  # of the wanted share, where whole rows and columns are all there is


def vit(height: int = 384, width: int = 384) -> VisionGeometry:
    return VisionGeometry(768, 3072, BLOCKS, 16, height, width)


def read(trace: BranchTrace, scoring: Scoring | None) -> int:
    """A text over a dense image, whose keys and values are not its own."""
    return text_encoder_macs(BERT, trace, SEEN, scoring) - memory_macs(BERT, SEEN)


def read_twice(trace: BranchTrace, scoring: Scoring | None) -> int:
    """A text over two dense images."""
    whole = twin_text_encoder_macs(BERT, trace, (SEEN, SEEN), 6, scoring)
    return whole - 2 * memory_macs(BERT, SEEN)


def geometry(vision: VisionGeometry | None = None) -> PruningGeometry:
    vision = vision or vit()
    grid = vision.image_height // 16, vision.image_width // 16
    branches = {
        VISION: BranchGeometry(partial(vision_macs, vision), BLOCKS, 64, grid),
        TEXT: BranchGeometry(read, BLOCKS, 64),
    }
    return PruningGeometry(branches, MAG)


def scheduled(name: str, target: float, of: PruningGeometry) -> ScheduledPruner:
    pruner = build_pruner(name, geometry=of, flops_ratio=target)
    assert isinstance(pruner, ScheduledPruner)
    return pruner


def spent(pruner: ScheduledPruner, branch: str, tokens: int) -> float:
    """The share of a dense sequence's multiply-adds that the method spends, its own scoring included."""
    counts = pruner.counts(branch, tokens, BLOCKS)
    trace = scheduled_trace(tokens, counts, pruner.appends_merged, pruner.fewest_kept)
    macs = pruner.geometry.branches[branch].macs
    return flops_ratio(macs, trace, pruner.scoring(MAG))


@pytest.mark.parametrize("target", [0.95, 0.7, 0.5, 0.3])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_spends_its_target_on_an_image(name: str, target: float) -> None:
    tolerance = GRID_TOLERANCE if name == "spatial" else TOLERANCE
    pruner = scheduled(name, target, geometry())
    assert spent(pruner, VISION, PATCHES) == pytest.approx(target, rel=tolerance)
    counts = pruner.counts(VISION, PATCHES, BLOCKS)
    assert all(a >= b for a, b in pairwise(counts)) and counts[-1] < PATCHES


@pytest.mark.parametrize("tokens", [13, 20, 34])
@pytest.mark.parametrize("target", [0.7, 0.5, 0.3])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "spatial"])
def test_every_method_spends_its_target_on_a_text_of_any_length(
    name: str, target: float, tokens: int
) -> None:
    assert spent(scheduled(name, target, geometry()), TEXT, tokens) == pytest.approx(target, abs=0.015)


def test_a_text_too_short_for_its_target_spends_what_is_nearest() -> None:
    pruner = scheduled("evit", 0.3, geometry())
    assert spent(pruner, TEXT, 5) > 0.4
    assert pruner.counts(TEXT, 5, BLOCKS)[-1] == 1
    assert pruner.counts(TEXT, 1, BLOCKS) == (1,) * BLOCKS


def test_spatial_pooling_leaves_a_text_alone() -> None:
    assert spent(scheduled("spatial", 0.5, geometry()), TEXT, 13) == 1


@pytest.mark.parametrize("size", [(384, 640), (160, 320), (480, 480)])
@pytest.mark.parametrize("target", [0.7, 0.5, 0.3])
def test_spatial_pooling_spends_its_target_on_any_grid(size: tuple[int, int], target: float) -> None:
    vision = vit(*size)
    pruner = scheduled("spatial", target, geometry(vision))
    assert spent(pruner, VISION, vision.patches) == pytest.approx(target, rel=GRID_TOLERANCE)


def test_a_method_that_scores_dearly_keeps_less() -> None:
    static, stp = (scheduled(name, 0.5, geometry()) for name in ("static", "stp"))
    pairs = zip(static.counts(VISION, 576, BLOCKS), stp.counts(VISION, 576, BLOCKS), strict=True)
    assert all(ours < theirs for ours, theirs in pairs)


@pytest.mark.parametrize("name", ["stp", "evit", "tome"])
def test_a_text_alone_or_over_two_images_is_near_enough(name: str) -> None:
    """A schedule is fitted to one image; the same counts spend within a hundredth as much elsewhere."""
    fitted = geometry()
    pruner = scheduled(name, 0.5, fitted)
    counts = pruner.counts(TEXT, 34, BLOCKS)
    trace = scheduled_trace(34, counts, pruner.appends_merged, pruner.fewest_kept)
    alone = flops_ratio(_alone, trace, pruner.scoring(None))
    assert alone == pytest.approx(0.5, abs=0.01)
    twice = replace(fitted, branches={TEXT: BranchGeometry(read_twice, BLOCKS, 64)})
    assert spent(scheduled(name, 0.5, twice), TEXT, 34) == pytest.approx(0.5, abs=0.01)


def _alone(trace: BranchTrace, scoring: Scoring | None) -> int:
    return text_encoder_macs(BERT, trace, None, scoring)


@pytest.mark.parametrize("name", METHODS)
def test_a_target_out_of_reach_is_refused_when_the_pruner_is_built(name: str) -> None:
    with pytest.raises(ConfigError, match=r"spends 0\.01 .* ask for a ratio from 0\."):
        build_pruner(name, geometry=geometry(), flops_ratio=0.01)


@pytest.mark.parametrize("target", [0.0, 1.2, -1.0])
def test_a_target_that_is_no_share_is_refused(target: float) -> None:
    with pytest.raises(ConfigError, match="flops_ratio must be in"):
        build_pruner("stp", geometry=geometry(), flops_ratio=target)


def test_a_branch_without_a_geometry_is_refused() -> None:
    only_images = replace(geometry(), branches={VISION: geometry().branches[VISION]})
    with pytest.raises(ConfigError, match="no geometry of the text branch"):
        scheduled("stp", 0.5, only_images).counts(TEXT, 13, BLOCKS)


# --- The parts


def test_geometric_counts_follow_the_product_of_the_rates() -> None:
    assert geometric_counts(100, [0.5, 1.0, 0.5, 0.01]) == (50, 50, 25, 1)


def test_a_block_that_would_not_shorten_the_row_drops_nothing() -> None:
    merging = scheduled_trace(10, (9, 8, 7))
    assert (merging.tokens_in, merging.kept) == ((10, 10, 9), (10, 8, 7))
    assert merging.leaving() == (10, 9, 8)
    dropping = scheduled_trace(10, (9, 8, 7), appends_merged=False)
    assert (dropping.tokens_in, dropping.kept) == ((10, 9, 8), (9, 8, 7))
    assert dropping.leaving() == (9, 8, 7)


def test_a_method_s_own_limit_holds() -> None:
    halving = scheduled_trace(9, (2, 2, 2), False, lambda entering: entering - entering // 2)
    assert halving.kept == (5, 3, 2)


def test_what_a_dropping_method_needs_is_followed_to_single_tokens() -> None:
    trace = BranchTrace(10, (10, 9), (9, 8), (9, 9), appends_merged=False)
    assert trace.as_needed().kept == (9, 8)
    assert replace(trace, appends_merged=True).as_needed().kept == (10, 8)


def test_the_nearest_rate_is_nearest() -> None:
    steps = [0.2, 0.45, 0.7, 1.0]
    found = nearest_rate(lambda rate: steps[min(int(rate * 4), 3)], 0.55)
    assert steps[min(int(found * 4), 3)] == 0.45
