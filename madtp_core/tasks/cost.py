"""What each request of a batch cost, from its token counts in every branch; the tasks add what is theirs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from madtp_core.alignment import Alignment
from madtp_core.encoder import BatchPruning, Encoded
from madtp_core.flops import (
    FLOPS_PER_MULTIPLY_ADD,
    AlignmentGeometry,
    BranchTrace,
    RequestCost,
    Scoring,
    TextGeometry,
    VisionGeometry,
    memory_macs,
    text_encoder_macs,
    vision_macs,
    widest,
)
from madtp_core.pruning import MAX_KEEP, TEXT, VISION

Traces = Mapping[str, tuple[BranchTrace, ...]]
Passes = Sequence[tuple[int, int]]
MATCH = "match"  # a text that reads an image, beside the same text alone
BRANCH_OF = {VISION: VISION, TEXT: TEXT, MATCH: TEXT}


@dataclass(frozen=True)
class Spent:
    """What one request took.

    traces: its sequences of every kind (`vision`, `text`, and `match` where a text is read twice), in the
    request's order. difficulty: share of the tokens of all pruned branches' blocks that it needed; None where
    nothing was pruned.
    """

    traces: Traces
    cost: RequestCost
    difficulty: float | None

    @property
    def token_density(self) -> float:
        """Tokens kept / tokens of a dense run over all blocks of all sequences; a long one weighs more."""
        dense = sum(trace.dense * len(trace.kept) for trace in self._every())
        return sum(sum(trace.kept) for trace in self._every()) / dense

    @property
    def keep_efficiency(self) -> float:
        """Tokens needed / tokens kept: below one where batch mates made it keep more."""
        kept = sum(sum(trace.kept) for trace in self._every())
        return sum(sum(trace.needed) for trace in self._every()) / kept

    def _every(self) -> list[BranchTrace]:
        return [trace for traces in self.traces.values() for trace in traces]


class CostModel(ABC):
    """Counts what a model of one geometry spends on a request.

    Where parameters were pruned from the model, dense costs are those of the whole model before it: then a
    flops_ratio says what parameter and token pruning save together, as in the supplement's Table 6.
    """

    vision: VisionGeometry
    text: TextGeometry

    def __init__(self, alignment: Alignment | None) -> None:
        self.alignment: AlignmentGeometry | None = None
        if alignment is not None:
            self.alignment = AlignmentGeometry(
                alignment.num_tokens, alignment.dim, VISION in alignment.maps, TEXT in alignment.maps
            )

    @cached_property
    def whole(self) -> Self:
        """The same model before parameters were pruned."""
        model = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, VisionGeometry | TextGeometry):
                setattr(model, name, value.whole())
        return model

    @abstractmethod
    def macs(self, traces: Traces, passes: Passes, scoring: Mapping[str, Scoring | None]) -> int:
        """Multiply-adds of one request; passes: of its decoder, if it has one; scoring: by branch."""

    def branch_macs(self, branch: str, trace: BranchTrace, scoring: Scoring | None) -> int:
        """Multiply-adds of one sequence of a branch, which static methods fit their schedules to.

        A text reads a dense image, whose keys and values are not the text's own.
        """
        if branch == VISION:
            return vision_macs(self.vision, trace, scoring)
        image_tokens = self.vision.patches + 1
        whole = text_encoder_macs(self.text, trace, image_tokens, scoring)
        return whole - memory_macs(self.text, image_tokens)

    def scoring(self, pruning: BatchPruning | None) -> dict[str, Scoring | None]:
        """What the pruning method spends in each branch; nothing where a branch runs dense."""
        return {
            branch: pruning.pruner.scoring(self.alignment) if pruning and branch in pruning.branches else None
            for branch in (VISION, TEXT)
        }

    def spent_macs(self, traces: Traces, passes: Passes, pruning: BatchPruning | None) -> int:
        """Multiply-adds of one request as it ran, scoring and merging included where it was pruned."""
        return self.macs(traces, passes, self.scoring(pruning))

    def dense_macs(self, traces: Traces, passes: Passes) -> int:
        """Multiply-adds of the same request with nothing pruned, neither tokens nor parameters."""
        return self.whole.macs(changed(traces, BranchTrace.unpruned), passes, {VISION: None, TEXT: None})

    def batch(
        self,
        traces: Sequence[Traces],
        passes: Sequence[Passes],
        padded_passes: Sequence[Passes],
        pruning: BatchPruning | None,
    ) -> list[Spent]:
        """What every request of one batch took; padded_passes: its passes with what the batch added."""
        groups = traces[0].keys() if traces else ()
        every = {group: [one for each in traces for one in each[group]] for group in groups}
        longest = {group: widest(rows) for group, rows in every.items() if rows}
        is_padded = pruning is None or pruning.keep_mode == MAX_KEEP
        scoring = self.scoring(pruning)
        results = []
        for own, steps, run in zip(traces, passes, padded_passes, strict=True):
            batch = {group: tuple(longest[group] for _ in own[group]) for group in own} if is_padded else own
            counts = (
                self.macs(own, steps, scoring),
                self.dense_macs(own, steps),
                self.macs(changed(own, BranchTrace.as_needed), steps, scoring),
                self.macs(batch, run, scoring),
            )
            cost = RequestCost(*(FLOPS_PER_MULTIPLY_ADD * count for count in counts))
            results.append(Spent(own, cost, difficulty(own, pruning)))
        return results


def changed(traces: Traces, change: Callable[[BranchTrace], BranchTrace]) -> Traces:
    """The same sequences with every trace changed."""
    return {group: tuple(change(trace) for trace in each) for group, each in traces.items()}


def difficulty(traces: Traces, pruning: BatchPruning | None) -> float | None:
    """Share of its tokens that a request needed in all blocks of pruned branches; None without any."""
    pruned = [
        trace
        for group, each in traces.items()
        for trace in each
        if pruning is not None and BRANCH_OF[group] in pruning.branches
    ]
    if not pruned:
        return None
    return sum(sum(part.needed) for part in pruned) / sum(part.dense * len(part.needed) for part in pruned)


def branch_traces(encoded: Encoded, dense: Sequence[int]) -> list[BranchTrace]:
    """One trace a row from a branch's counts; dense: unpruned tokens a row, class token left out."""
    tokens_in, needed, kept = (c.T.tolist() for c in (encoded.tokens_in, encoded.needed, encoded.kept))
    return [
        BranchTrace(
            dense[row], tuple(tokens_in[row]), tuple(needed[row]), tuple(kept[row]), encoded.appends_merged
        )
        for row in range(len(dense))
    ]
