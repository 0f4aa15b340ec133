"""`last.pt`: everything that a run needs to go on as if it had not been interrupted."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from madtp_core.errors import CheckpointError
from madtp_core.train.best import BestModel
from madtp_core.train.processes import current_processes, wait_for_all
from madtp_core.train.task import TrainTask

if TYPE_CHECKING:
    from madtp_core.train.loop import LoopConfig
    from madtp_core.train.stepping import Stepper

LAST = "last.pt"
_FREE_TO_CHANGE = {
    "stop_step",
    "evaluate_every",
    "checkpoint_every",
    "log_every",
    "loader_workers",
    "threads",
    "tensorboard",
}


def save_run(
    task: TrainTask, stepper: Stepper, keeper: BestModel, config: LoopConfig, step: int, directory: Path
) -> None:
    """Write the run behind `step` steps, whole or not at all; the first process writes for all."""
    random_states = _random_states_of_all()
    if current_processes().is_first:
        partial = directory / f"{LAST}.partial"
        torch.save(
            {
                "step": step,
                "config": asdict(config),
                "modules": task.modules.state_dict(),
                **stepper.state(),
                "task": task.state(),
                "best": keeper.state(),
                "random": random_states,
            },
            partial,
        )
        os.replace(partial, directory / LAST)
    wait_for_all()


def load_run(
    task: TrainTask, stepper: Stepper, keeper: BestModel, config: LoopConfig, directory: Path
) -> int:
    """Restore the directory's run, if there is one; the step at which to go on.

    Raises CheckpointError when it was trained with other settings or another number of processes.
    """
    path = directory / LAST
    if not path.exists():
        return 0
    saved = torch.load(path, map_location="cpu", weights_only=True)
    changed = differing(saved["config"], asdict(config), _FREE_TO_CHANGE)
    if changed:
        raise CheckpointError(f"{path} was trained with another {', '.join(changed)}; use a new directory")
    processes, states = current_processes(), saved["random"]
    if len(states) != processes.count:
        raise CheckpointError(
            f"{path} was trained by {len(states)} processes, this run has {processes.count}; go on with as "
            "many, or use a new directory"
        )
    task.modules.load_state_dict(saved["modules"])
    stepper.load_state(saved)
    task.load_state(saved["task"])
    keeper.load_state(saved["best"])
    _set_random_state(states[processes.rank])
    return int(saved["step"])


def differing(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], free: Sequence[str] | set[str]
) -> list[str]:
    """Names whose values differ between two configurations, those free to change left out."""
    return [k for k in wanted if k not in free and _plain(saved.get(k)) != _plain(wanted[k])]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _random_states_of_all() -> list[dict[str, Any]]:
    """Every process's random states, by rank."""
    own = _random_state()
    states: list[Any] = [own] * current_processes().count
    if len(states) > 1:
        dist.all_gather_object(states, own)
    return states


def _random_state() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators as plain values and tensors."""
    _, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [torch.from_numpy(np.asarray(keys, np.int64)), int(place), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: Mapping[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
