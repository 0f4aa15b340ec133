"""A claim: measured step by step, kept after each, and judged. What was kept is not measured again."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.claims.bench import Bench, Plan
from loadtests.claims.verdict import Verdict
from loadtests.errors import LoadTestError

SCHEMA = 1
Found = dict[str, Any]  # what steps gave, plain JSON values, by their names
Step = Callable[[Found], Any]  # told what the steps before it gave


@dataclass(frozen=True)
class Claim:
    """title, text: of its part of the section. tables: Markdown lines of what was found."""

    name: str
    title: str
    text: str
    steps: Callable[[Bench], Mapping[str, Step]]
    judge: Callable[[Found, Plan], list[Verdict]]
    tables: Callable[[Found, Plan], list[str]]


def measure(claim: Claim, bench: Bench, out: Path) -> Found:
    """Run the steps that `out` does not hold yet, and keep each result there.

    Raises LoadTestError where it holds results of another plan.
    """
    about = bench.plan.about()
    path = file_of(claim, out)
    kept = read(claim, out)
    if kept is not None and kept["about"] != about:
        raise LoadTestError(f"{path} was measured with other options: remove it, or choose another --out")
    found: Found = kept["steps"] if kept is not None else {}
    seconds: dict[str, float] = kept["seconds"] if kept is not None else {}
    steps = claim.steps(bench)
    for name, step in steps.items():
        if name in found:
            bench.say(f"{claim.name}, {name}: kept")
            continue
        began_s = time.monotonic()
        found[name] = step(found)
        seconds[name] = round(time.monotonic() - began_s, 2)
        bench.say(f"{claim.name}, {name}: measured in {seconds[name]:.0f} s")
        raw = {"claim": claim.name, "is_whole": set(steps) <= set(found), "about": about}
        _write(path, raw | {"seconds": seconds, "steps": found})
    return found


def read(claim: Claim, out: Path) -> dict[str, Any] | None:
    """What was kept of a claim, None where nothing was; raises LoadTestError for a file that is not ours."""
    path = file_of(claim, out)
    if not path.exists():
        return None
    try:
        raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if raw["schema"] != SCHEMA:
            raise ValueError(f"schema {raw['schema']}, wanted {SCHEMA}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadTestError(f"{path} is not a claim's result: {error!r}") from error
    return raw


def file_of(claim: Claim, out: Path) -> Path:
    """Where a claim's raw result stands."""
    return out / f"{claim.name}.json"


def _write(path: Path, raw: Mapping[str, Any]) -> None:
    machine = {"processors": os.cpu_count(), "architecture": platform.machine()}
    whole = {"schema": SCHEMA, "machine": machine, **raw}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(whole, separators=(",", ":")) + "\n", "utf-8")
    os.replace(beside, path)
