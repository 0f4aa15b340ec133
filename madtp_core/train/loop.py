"""The only training loop: a task supplies its batches and its loss, the loop everything else."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from madtp_core.errors import ConfigError
from madtp_core.train.best import BestModel, BestRule
from madtp_core.train.processes import current_processes, wait_for_all
from madtp_core.train.progress import Progress
from madtp_core.train.run_state import differing, load_run, save_run
from madtp_core.train.stepping import DTYPES, Stepper, parameter_groups
from madtp_core.train.task import TrainTask

__all__ = [
    "DTYPES",
    "LoopConfig",
    "TrainTask",
    "differing",
    "parameter_groups",
    "seed_everything",
    "train",
]


@dataclass(frozen=True)
class LoopConfig:
    """How long, how fast and how often; checked once.

    steps: optimiser steps of the schedule; stop_step ends the run earlier. learning_rate: peak, reached after
    warmup_steps, held for hold_steps, then cosine to zero. accumulate: micro-batches a step and process.
    dtype: autocast type of the forward; fp16 scales its loss. evaluate_every, checkpoint_every: in steps, 0
    for only at the end. loader_workers: processes that prepare batches. threads: intra-operation threads, 0
    for torch's default. tensorboard: also write what is logged for TensorBoard.
    """

    steps: int
    learning_rate: float
    stop_step: int | None = None
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    hold_steps: int = 0
    gradient_clip: float = 1.0
    accumulate: int = 1
    dtype: str = "bf16"
    seed: int = 0
    evaluate_every: int = 0
    checkpoint_every: int = 500
    log_every: int = 20
    loader_workers: int = 1
    threads: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        is_in_steps = min(self.warmup_steps, self.hold_steps) >= 0 and (
            self.warmup_steps + self.hold_steps <= self.steps
        )
        if self.steps < 1 or self.learning_rate <= 0 or not is_in_steps:
            raise ConfigError(
                "need steps >= 1, learning_rate > 0, warmup_steps and hold_steps >= 0 and together <= steps, "
                f"got {self.steps}, {self.learning_rate}, {self.warmup_steps} and {self.hold_steps}"
            )
        if self.accumulate < 1 or self.log_every < 1:
            raise ConfigError(
                f"need accumulate and log_every >= 1, got {self.accumulate} and {self.log_every}"
            )
        if self.dtype not in DTYPES:
            raise ConfigError(f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPES)}")

    @property
    def last_step(self) -> int:
        """The step at which the run ends."""
        return self.steps if self.stop_step is None else self.stop_step

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, the peak, then cosine to zero (SGDR, one cycle)."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        falls_at = self.warmup_steps + self.hold_steps
        progress = max(0, step - falls_at) / max(1, self.steps - falls_at)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    task: TrainTask, config: LoopConfig, directory: Path, *, best: BestRule | None = None
) -> dict[str, float]:
    """Train to config.last_step, from the directory's last checkpoint if there is one; returns final figures.

    Writes `last.pt` (weights, optimiser, step, random states), `log.jsonl` and, at the end, the task's model
    to `model`; with a rule, the best of the evaluated ones within its target to `best`. A resumed run repeats
    the uninterrupted one: batches are a function of the step, random states are restored. Within a process
    group all processes train together; the first one evaluates and writes.
    """
    processes = current_processes()
    if processes.is_first:
        directory.mkdir(parents=True, exist_ok=True)
    if config.threads:
        torch.set_num_threads(config.threads)
    seed_everything(config.seed + processes.rank)
    stepper = Stepper(task, config)
    keeper = BestModel(best, directory / "best")
    wait_for_all()
    start = load_run(task, stepper, keeper, config, directory)
    with Progress(directory, start, config.last_step, config.tensorboard) as progress:
        steps = zip(range(start, config.last_step), _steps(task, config, start), strict=True)
        for step, batches in steps:
            figures = stepper.step(batches, step)
            progress.stepped()
            if step % config.log_every == 0 or step + 1 == config.last_step:
                progress.log(step, figures)
            if step + 1 == config.last_step:
                break
            if config.evaluate_every and (step + 1) % config.evaluate_every == 0:
                progress.log_evaluation(step, keeper.judged(task, _evaluated(task)))
            if config.checkpoint_every and (step + 1) % config.checkpoint_every == 0:
                save_run(task, stepper, keeper, config, step + 1, directory)
        save_run(task, stepper, keeper, config, config.last_step, directory)
        final = keeper.judged(task, _evaluated(task))
        progress.log_evaluation(config.last_step, final)
    if processes.is_first:
        task.save(directory / "model")
    wait_for_all()
    return final


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _steps(task: TrainTask, config: LoopConfig, start: int) -> Iterator[Sequence[Any]]:
    """This process's micro-batches of every step from start on."""
    processes = current_processes()
    indices = [
        micro * processes.count + processes.rank
        for micro in range(start * config.accumulate, config.last_step * config.accumulate)
    ]
    loader = iter(
        DataLoader(
            task.batches(),
            batch_size=None,
            sampler=indices,
            num_workers=config.loader_workers,
            prefetch_factor=4 if config.loader_workers else None,
            generator=torch.Generator(),  # else it would draw from what the model draws from
        )
    )
    for _ in range(start, config.last_step):
        yield [next(loader) for _ in range(config.accumulate)]


def _evaluated(task: TrainTask) -> dict[str, float]:
    """The first process's figures; none in the others."""
    figures = dict(task.evaluate()) if current_processes().is_first else {}
    wait_for_all()
    return figures
