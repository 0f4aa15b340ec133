"""What became of every sample, kept on disk while a run goes on, so that a broken one can be resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madtp_core.errors import ConfigError
from madtp_core.evaluate.outlay import Outlay, TokenCounts


@dataclass(frozen=True)
class Record:
    """One sample's answer, what is right, and what it took: JSON values all.

    said: what is judged of the answer, see `scores.said`. id, truth, groups: the sample's own.
    """

    id: int | str | None
    said: Any
    truth: Any
    groups: tuple[str, ...]
    outlay: Outlay

    def to_line(self) -> str:
        """The record as one line of JSON."""
        return json.dumps({**vars(self), "outlay": vars(self.outlay)}, separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str) -> Record:
        """The inverse of `to_line`; raises ValueError, KeyError or TypeError for any other line."""
        data = json.loads(line)
        outlay = data["outlay"]
        tokens = {
            kind: TokenCounts(needed, tuple(kept), dense, sequences)
            for kind, (needed, kept, dense, sequences) in outlay["tokens"].items()
        }
        spent = Outlay(outlay["flops"], outlay["dense_flops"], tokens)
        return cls(data["id"], data["said"], data["truth"], tuple(data["groups"]), spent)


class Journal:
    """The records of one run in a file of JSON lines, its first line saying which run it is.

    about: all that a run's records depend on. is_resumed: take up what the file holds, if it is there.
    Raises ConfigError for a file that is there but not resumed, that is of another run, or that holds none.
    """

    def __init__(self, path: Path, about: Mapping[str, object], *, is_resumed: bool = False) -> None:
        self.path = path
        self.records: list[Record] = []
        self._head = json.dumps({"about": dict(about)}) + "\n"
        if path.exists():
            if not is_resumed:
                raise ConfigError(f"{path.name} is there already: resume it, or name another file")
            self._take_up(about)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._head)

    def keep(self, count: int) -> None:
        """Forget all but the first `count` records, also in the file."""
        self.records = self.records[:count]
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text(self._head + "".join(record.to_line() + "\n" for record in self.records))
        part.replace(self.path)

    def add(self, records: Sequence[Record]) -> None:
        """Append the records of one batch and bring them to disk."""
        self.records += records
        with self.path.open("a") as file:
            file.writelines(record.to_line() + "\n" for record in records)

    def _take_up(self, about: Mapping[str, object]) -> None:
        head, *lines = self.path.read_text().split("\n")
        try:
            kept = json.loads(head)["about"]
            self.records = [
                Record.from_line(line) for line in lines[:-1]
            ]  # the last is empty, or half a line
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path.name} holds no records of a run: {error!r}") from error
        wanted = json.loads(self._head)["about"]
        names = sorted(kept.keys() | wanted.keys())
        unlike = {
            name: (kept.get(name), wanted.get(name)) for name in names if kept.get(name) != wanted.get(name)
        }
        if unlike:
            raise ConfigError(f"{self.path.name} is of another run: {unlike}")


def finished(journal: Journal, samples: int, batch_size: int) -> list[Record]:
    """The records of whole batches, as a batch shares what it keeps; the journal forgets the others."""
    done = len(journal.records)
    if done < samples:
        done -= done % batch_size
    journal.keep(min(done, samples))
    return list(journal.records)
