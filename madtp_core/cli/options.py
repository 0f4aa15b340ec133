"""Values that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Final

DEMO_CHECKPOINT: Final = Path("checkpoints/blip-vqa-shapes")
SPLITS: Final = ("train", "validation", "test")
