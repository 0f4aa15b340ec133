"""Calibration: what each prune temperature costs, and how well it answers, on labelled scenes."""

from __future__ import annotations

from collections.abc import Sequence

from madtp_core.calibration import Calibration, CalibrationRow
from madtp_core.data.shapes import ShapesVqa
from madtp_core.pruning import MAX_KEEP, PER_INSTANCE
from madtp_core.tasks.vqa import BlipVqa
from madtp_core.train.evaluate import evaluate_vqa


def calibrate(
    model: BlipVqa, scenes: ShapesVqa, temperatures: Sequence[float], batch_sizes: Sequence[int]
) -> Calibration:
    """Measure every temperature in every batch size under max_keep, and once under per_instance.

    What a per_instance request spends does not depend on its batch, so its rows stand at batch size 1.
    """
    runs = [(MAX_KEEP, size, temperature) for size in batch_sizes for temperature in temperatures]
    runs += [(PER_INSTANCE, 1, temperature) for temperature in temperatures]
    rows = []
    for keep_mode, batch_size, temperature in runs:
        result = evaluate_vqa(
            model,
            scenes,
            batch_size=batch_size if keep_mode == MAX_KEEP else 16,
            prune_temperature=temperature,
            keep_mode=keep_mode,
            progress=f"{keep_mode} x{batch_size} T={temperature:.3g}",
        )
        rows.append(
            CalibrationRow(
                keep_mode, batch_size, temperature, result.flops_ratio, result.accuracy(), len(scenes)
            )
        )
    return Calibration(tuple(rows))
