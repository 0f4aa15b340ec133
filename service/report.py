"""The report of a served job: one place that turns its record into what the client reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from service.controller import Setting
from service.job import STAGES, Job
from service.schemas import (
    BranchReport,
    BranchSummary,
    DifficultyReport,
    Reply,
    Report,
    ReportLevel,
    SecondsReport,
    TargetReport,
)
from service.tasks import TASKS

if TYPE_CHECKING:
    from madtp_core.flops import BranchTrace
    from madtp_core.tasks.cost import Spent

# Kinds of sequences by branch: a text that reads an image to be matched with it is a text too.
BRANCHES = {"vision": ("vision",), "text": ("text", "match")}


def build_reply(job: Job, level: ReportLevel) -> Reply:
    """The answer of a served job with as much of its report as was asked for."""
    assert job.served is not None, "only a served job has a reply"
    report = None if level == "none" else build_report(job, with_lists=level == "full")
    return TASKS[job.task].reply(**job.served.shown, report=report)


def build_report(job: Job, *, with_lists: bool) -> Report:
    """What a served job cost, and in which batch; `with_lists` adds the counts of every block."""
    assert job.served is not None, "only a served job has a report"
    served, spent = job.served, job.served.spent
    return Report(
        request_id=job.request_id,
        model=job.model,
        batch_size=served.batch_size,
        keep_mode=served.keep_mode,
        prune_temperature=served.setting.prune_temperature,
        flops_target=_target(job, served.setting),
        difficulty=DifficultyReport(predicted=job.predicted_difficulty, measured=spent.difficulty),
        vision=_branch(branch_traces(spent, "vision"), with_lists=with_lists),
        text=_branch(branch_traces(spent, "text"), with_lists=with_lists),
        token_density=spent.token_density,
        flops=spent.cost.flops,
        dense_flops=spent.cost.dense_flops,
        flops_ratio=spent.cost.flops_ratio,
        flops_reduction=spent.cost.flops_reduction,
        seconds=SecondsReport(**{stage: job.seconds[stage] for stage in STAGES}),
    )


def branch_traces(spent: Spent, branch: str) -> list[BranchTrace]:
    """All sequences of a request in a branch."""
    return [trace for kind in BRANCHES[branch] for trace in spent.traces.get(kind, ())]


def branch_density(traces: Sequence[BranchTrace]) -> float:
    """Mean over blocks of kept / dense; a long sequence weighs more than a short one."""
    return sum(sum(trace.kept) for trace in traces) / sum(trace.dense * len(trace.kept) for trace in traces)


def _target(job: Job, setting: Setting) -> TargetReport:
    served = setting.asked_ratio if setting.reason == "floor" else setting.flops_ratio
    return TargetReport(asked=job.target_class.flops_ratio, served=served, reason=setting.reason)


def _branch(traces: Sequence[BranchTrace], *, with_lists: bool) -> BranchSummary | None:
    if not traces:
        return None
    if not with_lists:
        return BranchSummary(token_density=branch_density(traces))
    return BranchReport(
        tokens_in=_sums([trace.tokens_in for trace in traces]),
        needed=_sums([trace.needed for trace in traces]),
        kept=_sums([trace.kept for trace in traces]),
        token_density=branch_density(traces),
    )


def _sums(counts: Sequence[Sequence[int]]) -> list[int]:
    """Block by block, over all sequences."""
    return [sum(block) for block in zip(*counts, strict=True)]
