"""`python -m loadtests claims`: measure what the service must show, and say what is met."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path

from loadtests.claims.bench import Bench, Plan
from loadtests.claims.claim import Claim, measure
from loadtests.claims.control import CONTROL
from loadtests.claims.keep_modes import KEEP_MODES
from loadtests.claims.keeping import KEEPING
from loadtests.claims.overhead import OVERHEAD
from loadtests.claims.overload import OVERLOAD
from loadtests.claims.section import render

CLAIMS: dict[str, Claim] = {claim.name: claim for claim in (CONTROL, KEEPING, OVERHEAD, OVERLOAD, KEEP_MODES)}
SECTION = "section.md"


def run_claims(options: argparse.Namespace) -> int:
    """Measure the wanted claims, print each figure against its bar, and write the section; gives 0."""
    plan = Plan.tiny(options.checkpoint) if options.tiny else Plan(options.checkpoint)
    if options.samples is not None:
        plan = replace(plan, samples=options.samples)
    if options.batch_sizes is not None:
        plan = replace(plan, batch_sizes=tuple(options.batch_sizes))
    measure_claims([CLAIMS[name] for name in options.only or CLAIMS], Bench(plan, _say), options.out)
    (options.out / SECTION).write_text(render(list(CLAIMS.values()), options.out, _command(options)), "utf-8")
    _say(f"section: {options.out / SECTION}")
    return 0


def measure_claims(claims: list[Claim], bench: Bench, out: Path) -> None:
    """Measure claims one after the other and say each figure against its bar."""
    for claim in claims:
        found = measure(claim, bench, out)
        for verdict in claim.judge(found, bench.plan):
            bench.say(str(verdict))


def _command(options: argparse.Namespace) -> str:
    words = ["python", "-m", "loadtests", "claims", "--checkpoint", options.checkpoint]
    words += [] if options.samples is None else ["--samples", str(options.samples)]
    words += [] if options.batch_sizes is None else ["--batch-sizes", *map(str, options.batch_sizes)]
    words += ["--tiny"] if options.tiny else []
    return shlex.join([*words, "--out", str(options.out)])


def _say(text: str) -> None:
    print(text, flush=True)
