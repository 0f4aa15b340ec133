"""Numbers on the command line, checked."""

from __future__ import annotations

import argparse
import math


def positive(text: str) -> float:
    """A number above 0; raises what argparse shows."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def count(text: str) -> int:
    """How many: at least one; raises what argparse shows."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
