"""Values and options that several commands share."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from madtp_core.errors import ConfigError
from madtp_core.pruning import KEEP_MODES, MAX_KEEP

if TYPE_CHECKING:
    from madtp_core.tasks.base import PrunedModel

DEMO_CHECKPOINT: Final = Path("checkpoints/blip-vqa-shapes")
SPLITS: Final = ("train", "validation", "test")
_CLOSE: Final = 0.005  # of a flops_ratio: nearer is what was asked for

logger = logging.getLogger(__name__)


def add_cost_options(parser: argparse.ArgumentParser, default_ratio: float) -> None:
    """--keep-mode, and --prune-temperature or --flops-ratio."""
    parser.add_argument("--keep-mode", choices=KEEP_MODES, default=MAX_KEEP)
    cost = parser.add_mutually_exclusive_group()
    cost.add_argument("--prune-temperature", type=float, help="0 is dense")
    cost.add_argument(
        "--flops-ratio", type=float, default=default_ratio, help="looked up in the calibration; 1 is dense"
    )


def add_images_option(parser: argparse.ArgumentParser, of: str) -> None:
    """--images; of: whose pictures lie there."""
    parser.add_argument(
        "--images",
        nargs="+",
        type=Path,
        default=(),
        metavar="FOLDER",
        help=f"where the pictures of {of} lie, the first that has one; default: beside the files",
    )


def prune_temperature(
    model: PrunedModel, args: argparse.Namespace, batch_size: int, shape: Mapping[str, int] | None = None
) -> float:
    """What `add_cost_options` asks for; says so where the calibration cannot reach the ratio.

    shape: of the requests; None: as they were calibrated. No shape gets a higher temperature than that one:
    nobody knows how well it would answer. Raises ConfigError for a ratio below 1 of a model without a
    calibration.
    """
    if args.prune_temperature is not None:
        return float(args.prune_temperature)
    if args.flops_ratio >= 1:
        return 0.0
    calibration = model.calibration_of(shape or {}, args.keep_mode)
    if calibration is None:
        raise ConfigError(f"{args.checkpoint} has no calibration; give --prune-temperature")
    setting = calibration.setting_for(args.flops_ratio, batch_size, args.keep_mode)
    if abs(setting.flops_ratio - args.flops_ratio) > _CLOSE:
        low, high = calibration.reachable(batch_size, args.keep_mode)
        logger.warning(
            "flops_ratio %.3g is out of reach of %s in batches of %d: pruning spends %.3f to %.3f there",
            *(args.flops_ratio, args.keep_mode, batch_size, low, high),
        )
    assert model.calibration is not None, "where requests of a shape have one, so has the model"
    highest = model.calibration.temperature_for(args.flops_ratio, batch_size, args.keep_mode)
    return min(setting.prune_temperature, highest)


def field_of(text: str) -> tuple[str, object]:
    """Name and value of NAME=VALUE, a value that is JSON or else a text; raises ConfigError."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--field must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
