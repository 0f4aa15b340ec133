"""The report of a served job: one place that turns its record into what the client reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.job import STAGES, Job
from service.schemas import (
    BranchReport,
    BranchSummary,
    DifficultyReport,
    RankedCandidate,
    Report,
    ReportLevel,
    SecondsReport,
    VqaReply,
)

if TYPE_CHECKING:
    from madtp_core.flops import BranchTrace


def build_reply(job: Job, level: ReportLevel) -> VqaReply:
    """The answer of a served job with as much of its report as was asked for."""
    assert job.served is not None, "only a served job has a reply"
    answer = job.served.answer
    ranked = None
    if answer.ranked is not None:
        ranked = [RankedCandidate(candidate=text, score=score) for text, score in answer.ranked]
    return VqaReply(
        answer=answer.answer,
        score=answer.score,
        ranked=ranked,
        report=None if level == "none" else build_report(job, with_lists=level == "full"),
    )


def build_report(job: Job, *, with_lists: bool) -> Report:
    """What a served job cost, and in which batch; `with_lists` adds the counts of every block."""
    assert job.served is not None, "only a served job has a report"
    served, spent = job.served, job.served.answer.spent
    return Report(
        request_id=job.request_id,
        model=job.model,
        batch_size=served.batch_size,
        keep_mode=served.keep_mode,
        prune_temperature=served.prune_temperature,
        difficulty=DifficultyReport(predicted=None, measured=spent.difficulty),
        vision=_branch(spent.traces["vision"][0], with_lists=with_lists),
        text=_branch(spent.traces["text"][0], with_lists=with_lists),
        token_density=spent.token_density,
        flops=spent.cost.flops,
        dense_flops=spent.cost.dense_flops,
        flops_ratio=spent.cost.flops_ratio,
        flops_reduction=spent.cost.flops_reduction,
        seconds=SecondsReport(**{stage: job.seconds[stage] for stage in STAGES}),
    )


def _branch(trace: BranchTrace, *, with_lists: bool) -> BranchSummary:
    if not with_lists:
        return BranchSummary(token_density=trace.token_density)
    return BranchReport(
        tokens_in=list(trace.tokens_in),
        needed=list(trace.needed),
        kept=list(trace.kept),
        token_density=trace.token_density,
    )
