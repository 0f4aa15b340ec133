"""Measured rows as a table for human eyes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def render(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown with aligned columns: columns maps a key of the rows to its format; None shows as a dash."""
    cells = [list(columns)]
    for row in rows:
        cells.append(["-" if row[key] is None else form.format(row[key]) for key, form in columns.items()])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in cells
    )
