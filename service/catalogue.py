"""What GET /v1/models tells: every model, what it serves, how it is pruned, what bounds its requests."""

from __future__ import annotations

from typing import Any

from service.engine import Engine
from service.model import Calibration
from service.runtime import Runtime
from service.settings import Settings
from service.steering import floor_of
from service.tasks import TASKS

LIMITS = (
    "max_body_bytes",
    "max_image_bytes",
    "max_image_pixels",
    "max_images",
    "max_candidates",
    "max_batch_size",
    "max_queue",
    "request_deadline_s",
)


def listed(runtime: Runtime) -> dict[str, Any]:
    """Every model as plain values, in the order of the settings."""
    return {"models": [_entry(engine, runtime) for engine in runtime.fleet.engines.values()]}


def _entry(engine: Engine, runtime: Runtime) -> dict[str, Any]:
    settings = runtime.settings
    return {
        "name": engine.name,
        "task": engine.tasks[0] if engine.tasks else None,
        "routes": [TASKS[task].path for task in engine.tasks],
        "is_default": any(runtime.fleet.default(task) is engine for task in engine.tasks),
        "phase": engine.phase,
        "keep_mode": settings.keep_mode,
        "prune_temperature": settings.prune_temperature,
        "quality": _qualities(engine, settings),
        "limits": {name: getattr(settings, name) for name in LIMITS},
        "image_cache": _image_cache(engine),
        "description": engine.description,
    }


def _image_cache(engine: Engine) -> dict[str, int] | None:
    cache = None if engine.model is None else engine.model.image_cache
    return None if cache is None else cache.summary()


def _qualities(engine: Engine, settings: Settings) -> dict[str, dict[str, float | None]]:
    """What each `quality` aims at, and the accuracy that the calibration measured there, where it did.

    `fast` is also what an overloaded server comes down to before it turns anyone away.
    """
    model = engine.model
    calibration = None if model is None else model.calibration
    targets = {"exact": 1.0, "balanced": settings.flops_target, "fast": floor_of(settings)}
    return {
        name: {"flops_target": ratio, "accuracy": _accuracy(calibration, ratio, settings)}
        for name, ratio in targets.items()
    }


def _accuracy(calibration: Calibration | None, flops_ratio: float, settings: Settings) -> float | None:
    """In batches of the largest size, which are what an overloaded server runs."""
    if calibration is None:
        return None
    return calibration.accuracy_at(flops_ratio, settings.max_batch_size, settings.keep_mode)
