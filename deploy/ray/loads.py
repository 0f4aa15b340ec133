"""What each engine has before it, in predicted tokens, between one report and the next."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass


@dataclass
class _Load:
    """The last report, and what was sent after it."""

    report: int
    tokens: float
    typical_tokens: float


class Loads:
    """Ranks engines by the tokens inside them. Reports are seconds old: what was sent since is added.

    A report is a mapping of `report` (its number), `inside_tokens` and `typical_tokens` (of one request).
    The predicted tokens are the engine's own: its predictor's need of every request's image and text.
    """

    def __init__(self) -> None:
        self._loads: dict[Hashable, _Load] = {}

    def ranked(self, reports: Mapping[Hashable, Mapping[str, float]]) -> list[Hashable]:
        """Give the engines, the least loaded first; one that has reported nothing yet counts as idle."""
        for engine, report in reports.items():
            number = int(report.get("report", -1))
            known = self._loads.get(engine)
            if known is None or number > known.report:
                self._loads[engine] = _Load(
                    number, report.get("inside_tokens", 0.0), report.get("typical_tokens", 1.0)
                )
        return sorted(reports, key=lambda engine: self._loads[engine].tokens)

    def note_sent(self, engine: Hashable) -> None:
        """One more request went there."""
        if (load := self._loads.get(engine)) is not None:
            load.tokens += load.typical_tokens

    def forget_all_but(self, engines: Iterable[Hashable]) -> None:
        """Drop those that are gone."""
        self._loads = {engine: self._loads[engine] for engine in engines if engine in self._loads}
