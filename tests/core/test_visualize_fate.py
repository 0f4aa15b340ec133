"""What becomes of every token, watched at the pruner: merged, merged again, joined, dropped."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from madtp_core.attention import Signals
from madtp_core.pruning import MAX_KEEP, PER_INSTANCE, TEXT, VISION, Pruned, Pruner, PruneStep
from madtp_core.pruning.base import keep_and_absorb
from madtp_core.tokens import Tokens
from madtp_core.visualize import Fate, State, WatchingPruner

K, J, N, A, B, D = State  # kept, joined, merged now, merged again, merged before, dropped
PRUNE_STEP = PruneStep(VISION, 0, 3, MAX_KEEP, torch.ones(1))


class Scripted(Pruner):
    """Keeps, block by block, the tokens at these places behind the class token."""

    def __init__(self, *places: Sequence[int], appends_merged: bool = True) -> None:
        self.places, self.appends_merged = places, appends_merged

    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
        importance = torch.full((tokens.batch_size, tokens.width - 1), 0.5)
        importance[:, list(self.places[step.block])] = 1.0
        return importance, torch.full((tokens.batch_size,), len(self.places[step.block]))


class Joining(Scripted):
    """As `Scripted`, but every other token joins the one at place 1."""

    def __call__(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Pruned:
        importance, needed = self.decide(tokens, signals, step)
        destination = torch.ones(tokens.batch_size, tokens.width, dtype=torch.int64)
        return keep_and_absorb(tokens, importance, needed, step.keep_mode, destination)


def sequence(count: int, batch: int = 1) -> Tokens:
    return Tokens.from_hidden(torch.randn(batch, 1 + count, 4))


def watched(pruner: Scripted, tokens: Tokens, keep_mode: str = MAX_KEEP) -> tuple[list[Fate], Tokens]:
    """Run as the loop does: the blocks change the features between two prunings."""
    watcher = WatchingPruner(pruner)
    for block in range(len(pruner.places)):
        step = replace(PRUNE_STEP, block=block, keep_mode=keep_mode)
        tokens = watcher(tokens, Signals(), step).tokens
        tokens = tokens.with_hidden(2 * tokens.hidden + 1)
    return watcher.fates(), tokens


def states(fate: Fate) -> list[list[State]]:
    return [[State(state) for state in fate.states(block)] for block in range(fate.blocks)]


def test_tokens_are_merged_stay_merged_and_are_merged_again() -> None:
    # six tokens; block 1 keeps 1, 2, 5; block 2 keeps 1 and the merged one; block 3 only 1
    (fate,), tokens = watched(Scripted([0, 1, 4], [0, 3], [0]), sequence(6))
    assert states(fate) == [[K, K, N, N, K, N], [K, N, B, B, N, B], [K, A, A, A, A, A]]
    assert [fate.kept(block) for block in range(3)] == [3, 1, 1]
    assert tokens.position.tolist() == [[0, 1, -1]]


def test_a_block_that_prunes_nothing_changes_nothing() -> None:
    (fate,), _ = watched(Scripted([0, 1, 4], [0, 1, 2, 3]), sequence(6))
    assert states(fate) == [[K, K, N, N, K, N], [K, K, B, B, K, B]]


def test_dropped_tokens_are_gone() -> None:
    (fate,), _ = watched(Scripted([0, 2, 3], [1], appends_merged=False), sequence(4))
    assert states(fate) == [[K, D, K, K], [D, D, K, D]]


def test_tokens_that_others_join_are_kept() -> None:
    (fate,), _ = watched(Joining([0, 2], [0], appends_merged=False), sequence(4))
    assert states(fate) == [[J, N, K, N], [J, B, N, B]]
    assert fate.kept(0) == 2


def test_a_causal_row_holds_its_merged_token_at_a_place_of_its_own() -> None:
    end_first = torch.tensor([[5, 0, 1, 2, 3, 4]])
    tokens = replace(sequence(5), position=end_first, is_causal=True)
    (fate,), left = watched(Scripted([1, 2, 4], [0, 1]), tokens)
    assert left.position.tolist() == [[5, 1, 2, 4]]
    assert fate.protected == 5
    assert states(fate) == [[N, K, K, N, K], [A, K, K, A, N]]


def test_the_last_token_of_a_causal_row_may_be_joined() -> None:
    tokens = replace(sequence(3), position=torch.tensor([[3, 0, 1, 2]]), is_causal=True)
    (fate,), _ = watched(Joining([0], appends_merged=False), tokens)
    assert states(fate) == [[J, N, N]]


def test_rows_of_a_packed_batch_are_watched_one_by_one() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    tokens = Tokens.from_hidden(torch.randn(2, 5, 4), mask).pack()
    (long, short), _ = watched(Scripted([0]), tokens, PER_INSTANCE)
    assert states(long) == [[K, N, N, N]]
    assert states(short) == [[K, K]]  # dropping one would gain nothing


def test_sequences_stand_in_the_order_in_which_they_began() -> None:
    watcher = WatchingPruner(Scripted([0]))
    for branch, count in ((VISION, 4), (TEXT, 3), (TEXT, 5)):
        watcher(sequence(count), Signals(), replace(PRUNE_STEP, branch=branch))
    assert [(fate.branch, fate.home.shape[1]) for fate in watcher.fates()] == [
        (VISION, 5),
        (TEXT, 4),
        (TEXT, 6),
    ]


@pytest.mark.parametrize("appends_merged", [True, False])
def test_watching_changes_nothing(appends_merged: bool) -> None:
    pruner, tokens = Scripted([0, 2], appends_merged=appends_merged), sequence(5, batch=2)
    watcher = WatchingPruner(pruner)
    seen, unseen = (each(tokens, Signals(), PRUNE_STEP) for each in (watcher, pruner))
    assert torch.equal(seen.tokens.hidden, unseen.tokens.hidden)
    assert torch.equal(seen.kept, unseen.kept)
    assert watcher.appends_merged == appends_merged and watcher.needs == pruner.needs
