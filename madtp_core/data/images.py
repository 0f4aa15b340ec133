"""Where the pictures of a data set lie: looked up before anything runs, opened when they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from madtp_core.data.records import Record
from madtp_core.errors import ConfigError
from madtp_core.images import upright_rgb

OnChecked = Callable[[int], object]  # told how many more pictures have been looked up
_TOLD_AT_ONCE = 10_000


@dataclass(frozen=True)
class PictureFile:
    """A picture in a file; named_in says where it was named, for the error when it does not open."""

    path: Path
    named_in: str

    def open(self) -> Image.Image:
        """The picture, RGB; raises ConfigError for a file that holds none."""
        try:
            with Image.open(self.path) as image:
                return upright_rgb(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ConfigError(f"{self.named_in}: {str(self.path)!r} does not open: {error}") from error


class Located:
    """The pictures of a data set by the names they have in it, each in a file that is there."""

    def __init__(self, paths: dict[str, str]) -> None:
        self._paths = paths
        self._keys = {name: key for key, name in enumerate(paths)}

    def files(self, record: Record) -> tuple[PictureFile, ...]:
        """A record's pictures."""
        return tuple(PictureFile(Path(self._paths[name]), record.where) for name in record.pictures)

    def key(self, name: str) -> int:
        """Which picture it is, counted as they come."""
        return self._keys[name]


def locate(records: Sequence[Record], roots: Sequence[Path], on_checked: OnChecked | None = None) -> Located:
    """Look up every picture of the records in the first of the roots that has it.

    Folders are listed once each, which for half a million pictures takes a second or two. Raises ConfigError
    naming the first that is nowhere, and how many more are not.
    """
    folders = _Folders()
    paths: dict[str, str] = {}
    missing: dict[str, str] = {}
    untold = 0
    for record in records:
        for name in record.pictures:
            if name in paths or name in missing:
                continue
            candidates = (os.path.join(root, name) for root in roots)
            path = next((path for path in candidates if folders.has(path)), None)
            if path is None:
                missing[name] = record.where
            else:
                paths[name] = path
            untold += 1
            if on_checked is not None and untold == _TOLD_AT_ONCE:
                on_checked(untold)
                untold = 0
    if on_checked is not None:
        on_checked(untold)
    if missing:
        name, where = next(iter(missing.items()))
        others = f"; of {len(paths) + len(missing)} images {len(missing)} are missing"
        raise ConfigError(
            f"{where}: there is no image {name!r} in {', '.join(repr(str(root)) for root in roots)}"
            + (others if len(missing) > 1 else "")
        )
    return Located(paths)


class _Folders:
    """Which files there are, from one listing of each folder."""

    def __init__(self) -> None:
        self._files: dict[str, frozenset[str]] = {}

    def has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._files:
            self._files[folder] = _files_of(folder)
        return name in self._files[folder]


def _files_of(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:  # a folder that is not there, or not ours to read, has none for us
        return frozenset()
