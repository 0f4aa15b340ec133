"""A run's answers as the files that benchmarks take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from madtp_core.errors import ConfigError
from madtp_core.evaluate.records import Record

# What an entry calls the sample and its answer: VQA's results format, COCO's.
_NAMES: Final = {"vqa": ("question_id", "answer"), "caption": ("image_id", "caption")}


def check_submission(task: str) -> None:
    """Raise ConfigError for a task whose benchmark takes no file of answers."""
    if task not in _NAMES:
        raise ConfigError(f"a submission is for {' or '.join(_NAMES)}, not for {task!r}")


def write_submission(path: Path, task: str, records: Sequence[Record]) -> None:
    """Write the answers as one JSON array, each with the id of its question or image.

    Raises ConfigError for another task, and for samples without an id, or with one that came before.
    """
    check_submission(task)
    ids = [record.id for record in records]
    if None in ids or len(set(ids)) < len(ids):
        raise ConfigError("a submission needs an id of every sample, each its own: these are of no benchmark")
    id_name, answer_name = _NAMES[task]
    entries = [{id_name: record.id, answer_name: record.said} for record in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries) + "\n")
