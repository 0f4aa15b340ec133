"""NLVR2: statements about two pictures, as in BLIP's nlvr_train.json, nlvr_dev.json and nlvr_test.json.

    [{"sentence": "The left image shows ...", "label": "True",
      "images": ["dev/dev-850-0-img0.png", "dev/dev-850-0-img1.png"]}]

Source of the format: salesforce/BLIP, data/nlvr_dataset.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from madtp_core.data.benchmarks.entries import entries
from madtp_core.data.benchmarks.texts import STATEMENT_WORDS, plain_caption
from madtp_core.data.fields import Fields, read_json
from madtp_core.data.records import Statement
from madtp_core.errors import ConfigError

_LABELS: Final = {"True": True, "False": False}


def read_nlvr2(files: Sequence[Path]) -> list[Statement]:
    """Statements, as the original BLIP shows them to a model, with their two pictures, left and right.

    Differs from the original: it swaps half of the pairs at random, in the words too, whenever an example is
    read. Raises ConfigError naming file and entry for a missing or misshapen field.
    """
    return [_statement(entry) for path in files for entry in entries(path, read_json(path))]


def _statement(entry: Fields) -> Statement:
    pictures = entry.pictures("images", 2)
    text = entry.checked_text("sentence", plain_caption(entry.text("sentence"), STATEMENT_WORDS))
    label = entry.text("label") if entry.has("label") else None
    if label is not None and label not in _LABELS:
        raise ConfigError(f"{entry.where}: 'label' must be 'True' or 'False', got {label!r}")
    identifier = entry.take("identifier", str, "a text") if entry.has("identifier") else None
    return Statement(entry.where, pictures, text, None if label is None else _LABELS[label], identifier)
