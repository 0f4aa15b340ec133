"""Claims as one Markdown section, made again from the raw results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtests.claims.bench import Plan
from loadtests.claims.claim import Claim, read
from loadtests.claims.verdict import Verdict
from loadtests.report import markdown_table


def plan_of(raw: dict[str, Any]) -> Plan:
    """The plan that a raw result was measured by."""
    about: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in raw["about"].items()
    }
    return Plan(**about)


def render(claims: Sequence[Claim], out: Path, command: str) -> str:
    """Write the section from what `out` holds; claims that were not measured to the end are left out."""
    read_in = [(claim, read(claim, out)) for claim in claims]
    parts = [(claim, raw, plan_of(raw)) for claim, raw in read_in if raw is not None and raw["is_whole"]]
    verdicts = [(claim, verdict) for claim, raw, plan in parts for verdict in claim.judge(raw["steps"], plan)]
    lines = [
        "## The service against its bars",
        f"    {command}",
        "",
        *markdown_table(["claim", "what", "measured", "bar", ""], [_row(*one) for one in verdicts]),
    ]
    for claim, raw, plan in parts:
        took_s = sum(raw["seconds"].values())
        lines += [
            "",
            f"### {claim.title}",
            *_text(claim, plan),
            f"Measured in {took_s / 60:.0f} minutes.",
            "",
        ]
        lines += claim.tables(raw["steps"], plan)
    return "\n".join(lines) + "\n"


def _row(claim: Claim, verdict: Verdict) -> list[str]:
    said = "**not met**" if verdict.is_met is False else verdict.said
    return [claim.name, verdict.what, verdict.figure, verdict.bar, said]


def _text(claim: Claim, plan: Plan) -> list[str]:
    figures = plan.about() | {"size": max(plan.batch_sizes)}
    return claim.text.format(**figures).splitlines()
