"""The measurements of a study in one file, so that it stops anywhere and goes on, or is widened later."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from madtp_core.errors import ConfigError

DATA_JSON: Final = "data.json"

Place = Mapping[str, Any]  # what was measured: plain values by name
Found = Mapping[str, Any]  # what came of it


class Cells:
    """What one study has measured so far: a place and what was found there, each cell kept at once.

    Several processes may fill one file, say a seed each: whoever adds a cell takes in those of the others.
    models: by name, with what all of a model's cells have in common. on_cell: told of every new one.
    """

    def __init__(
        self, directory: Path, study: str, on_cell: Callable[[Place, Found], object] | None = None
    ) -> None:
        """Read what an earlier run has left; raises ConfigError for a file of another study."""
        self.path, self.study, self.on_cell = directory / DATA_JSON, study, on_cell
        self.models: dict[str, Mapping[str, Any]] = {}
        self.cells: list[tuple[Place, Found]] = []
        self._read()

    def begin(self, model: str, about: Mapping[str, Any]) -> None:
        """Note what a model is measured with; raises ConfigError where a value was another before."""
        plain = json.loads(json.dumps(dict(about)))
        with self._locked():
            self._read()
            known = plain | dict(self.models.get(model, {}))
            if unlike := [key for key, value in plain.items() if known[key] != value]:
                differences = "; ".join(f"{key} {known[key]}, not {plain[key]}" for key in unlike)
                raise ConfigError(
                    f"{self.path.name} has measured {model} otherwise: {differences}. Go on as it began, or "
                    "give another --out"
                )
            self.models[model] = known
            self._write()

    def measured(self, place: Place, measure: Callable[[], Found]) -> Found:
        """What was found at a place, measured now unless it was before."""
        place = json.loads(json.dumps(dict(place)))
        if (earlier := self._at(place)) is not None:
            return earlier
        found: Found = json.loads(json.dumps(dict(measure())))
        with self._locked():
            self._read()
            if (earlier := self._at(place)) is not None:  # another process was faster
                return earlier
            self.cells.append((place, found))
            self._write()
        if self.on_cell is not None:
            self.on_cell(place, found)
        return found

    def of(self, **wanted: Any) -> Iterator[tuple[Place, Found]]:
        """The cells whose places have these values."""
        for place, found in self.cells:
            if all(place.get(name) == value for name, value in wanted.items()):
                yield place, found

    def values(self, name: str, **wanted: Any) -> list[Any]:
        """What the places of some cells have under a name, each once, in the order measured."""
        return list(dict.fromkeys(place.get(name) for place, _ in self.of(**wanted)))

    def _at(self, place: Place) -> Found | None:
        return next((found for known, found in self.cells if known == place), None)

    def _read(self) -> None:
        if not self.path.exists():
            return
        try:
            data = json.loads(self.path.read_text())
            study, self.models = data["study"], dict(data["models"])
            self.cells = [(cell["place"], cell["found"]) for cell in data["cells"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path.name} holds no study: {error!r}") from error
        if study != self.study:
            raise ConfigError(f"{self.path.name} is of the study {study!r}, not {self.study!r}")

    def _write(self) -> None:
        """Write all of it beside the file, then take its place: a run may end at any moment."""
        lines = [
            json.dumps({"place": place, "found": found}, separators=(",", ":")) for place, found in self.cells
        ]
        head = json.dumps({"study": self.study, "models": self.models}, indent=1).removesuffix("\n}")
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(head + ',\n "cells": [\n' + ",\n".join(lines) + "\n]}\n")
        scratch.replace(self.path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all processes that fill this directory."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
