"""Where data comes from, as the command line says it: a manifest, or a benchmark's files and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from madtp_core.data.benchmarks.coco import read_captions
from madtp_core.data.benchmarks.nlvr2 import read_nlvr2
from madtp_core.data.benchmarks.vqav2 import read_vqav2
from madtp_core.data.manifest import read_lines
from madtp_core.data.records import Record
from madtp_core.errors import ConfigError, UnknownNameError

MANIFEST: Final = "manifest"
_RANKED: Final = ("retrieval", "clip")
_CAPTIONED: Final = ("caption", *_RANKED)
# The formats of benchmarks: what reads their files, and the tasks that they are for.
FORMATS: Final[Mapping[str, tuple[Callable[[Sequence[Path]], Sequence[Record]], tuple[str, ...]]]] = {
    "coco": (read_captions, _CAPTIONED),
    "flickr30k": (read_captions, _CAPTIONED),
    "vqav2": (read_vqav2, ("vqa",)),
    "nlvr2": (read_nlvr2, ("reasoning",)),
}


@dataclass(frozen=True)
class DataSource:
    """Files of one format, and the folders that their pictures' names start from."""

    format: str
    files: tuple[Path, ...]
    images: tuple[Path, ...]

    def has_gallery(self, task: str) -> bool:
        """Whether the task is measured over all pictures and captions of these files, not by requests."""
        return self.format != MANIFEST and task in _RANKED and task in FORMATS[self.format][1]


def parse_source(text: str, images: Sequence[Path] = ()) -> DataSource:
    """`FORMAT:FILE,FILE` with a format of FORMATS, or the path of a manifest.

    images: folders, of which a picture is looked for in the first that has it; none: the files' own. Raises
    UnknownNameError for another format and ConfigError for no file.
    """
    name, colon, names = text.partition(":")
    if name in FORMATS and colon:
        files = tuple(Path(part.strip()) for part in names.split(",") if part.strip())
        if not files:
            raise ConfigError(f"{text!r} names no file: write {name}:FILE, or {name}:FILE,FILE")
    else:
        if colon and not Path(text).exists():
            raise UnknownNameError("data format", name, FORMATS)
        name, files = MANIFEST, (Path(text),)
    return DataSource(name, files, tuple(images) or tuple(dict.fromkeys(file.parent for file in files)))


def read_records(source: DataSource, task: str) -> Sequence[Record]:
    """The source's records for a task; raises ConfigError for a format of other tasks, and as readers do."""
    if source.format == MANIFEST:
        return read_lines(source.files, task)
    read, tasks = FORMATS[source.format]
    if task not in tasks:
        raise ConfigError(f"{source.format} is data for {' or '.join(tasks)}, not for {task!r}")
    return read(source.files)
