"""The only training loop: a task supplies its batches and its loss, the loop everything else."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from madtp_core.errors import CheckpointError, ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LoopConfig:
    """How long, how fast and how often; checked once.

    steps: optimiser steps of the schedule; stop_step ends the run earlier. learning_rate: peak, reached after
    warmup_steps, held for hold_steps, then cosine to zero. dtype: autocast type of the forward.
    evaluate_every, checkpoint_every: in steps, 0 for only at the end. loader_workers: processes that prepare
    batches. threads: intra-operation threads, 0 for torch's default.
    """

    steps: int
    learning_rate: float
    stop_step: int | None = None
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    hold_steps: int = 0
    gradient_clip: float = 1.0
    dtype: str = "bf16"
    seed: int = 0
    evaluate_every: int = 0
    checkpoint_every: int = 500
    log_every: int = 20
    loader_workers: int = 1
    threads: int = 0

    def __post_init__(self) -> None:
        is_in_steps = min(self.warmup_steps, self.hold_steps) >= 0 and (
            self.warmup_steps + self.hold_steps <= self.steps
        )
        if self.steps < 1 or self.learning_rate <= 0 or not is_in_steps:
            raise ConfigError(
                "need steps >= 1, learning_rate > 0, warmup_steps and hold_steps >= 0 and together <= steps, "
                f"got {self.steps}, {self.learning_rate}, {self.warmup_steps} and {self.hold_steps}"
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


class TrainTask(Protocol):
    """What a task gives the loop."""

    @property
    def modules(self) -> nn.Module:
        """Every module with parameters to train."""

    def batches(self) -> Dataset[Any]:
        """A map from step to that step's batch: what makes a run resumable."""

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """The loss to descend and figures to log; called under autocast in training mode."""

    def after_step(self, figures: Mapping[str, float]) -> None:
        """Adjust what is steered rather than learned, from this step's figures."""

    def evaluate(self) -> Mapping[str, float]:
        """Figures on held-out data."""

    def state(self) -> dict[str, Any]:
        """What is steered, to be saved with a checkpoint."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`."""

    def save(self, directory: Path) -> None:
        """Write the trained model."""


def train(task: TrainTask, config: LoopConfig, directory: Path) -> dict[str, float]:
    """Train to config.last_step, from the directory's last checkpoint if there is one; returns final figures.

    Writes `last.pt` (weights, optimiser, step, random states), `log.jsonl` and, at the end, the task's model.
    A resumed run repeats the uninterrupted one: batches are a function of the step, random states are
    restored.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if config.threads:
        torch.set_num_threads(config.threads)
    seed_everything(config.seed)
    optimizer = torch.optim.AdamW(
        parameter_groups(task.modules, config.weight_decay), lr=config.learning_rate, betas=config.betas
    )
    start = _resume(task, optimizer, config, directory)
    loader = DataLoader(
        task.batches(),
        batch_size=None,
        sampler=range(start, config.last_step),
        num_workers=config.loader_workers,
        prefetch_factor=4 if config.loader_workers else None,
    )
    with (
        (directory / "log.jsonl").open("a") as log,
        tqdm(total=config.last_step, initial=start, desc=directory.name, unit="step", mininterval=2.0) as bar,
    ):
        for step, batch in zip(range(start, config.last_step), loader, strict=True):
            figures = _step(task, optimizer, batch, step, config)
            bar.update()
            if step % config.log_every == 0 or step + 1 == config.last_step:
                bar.set_postfix({name: f"{value:.3f}" for name, value in figures.items()})
                _write(log, {"step": step, **figures})
            if (
                config.evaluate_every
                and (step + 1) % config.evaluate_every == 0
                and step + 1 < config.last_step
            ):
                _write(log, {"step": step, "evaluation": dict(task.evaluate())})
            if config.checkpoint_every and (step + 1) % config.checkpoint_every == 0:
                _checkpoint(task, optimizer, config, step + 1, directory)
        _checkpoint(task, optimizer, config, config.last_step, directory)
        final = dict(task.evaluate())
        _write(log, {"step": config.last_step, "evaluation": final})
    task.save(directory / "model")
    return final


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups: matrices decay; norms, biases and other vectors do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def _step(
    task: TrainTask, optimizer: torch.optim.Optimizer, batch: Any, step: int, config: LoopConfig
) -> dict[str, float]:
    task.modules.train()
    rate = config.learning_rate_at(step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    device = next(task.modules.parameters()).device
    with torch.autocast(device.type, DTYPES[config.dtype], enabled=config.dtype != "fp32"):
        loss, figures = task.loss(batch, step)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    norm = nn.utils.clip_grad_norm_(task.modules.parameters(), config.gradient_clip)
    if not bool(torch.isfinite(norm)):
        raise FloatingPointError(f"the gradient is not finite at step {step}; figures: {dict(figures)}")
    optimizer.step()
    task.after_step(figures)
    return {"loss": loss.item(), "learning_rate": rate, **figures}


def _write(log: Any, record: Mapping[str, Any]) -> None:
    log.write(json.dumps(record) + "\n")
    log.flush()


def _checkpoint(
    task: TrainTask, optimizer: torch.optim.Optimizer, config: LoopConfig, step: int, directory: Path
) -> None:
    partial = directory / "last.pt.partial"
    torch.save(
        {
            "step": step,
            "config": asdict(config),
            "modules": task.modules.state_dict(),
            "optimizer": optimizer.state_dict(),
            "task": task.state(),
            "torch_random": torch.get_rng_state(),
        },
        partial,
    )
    os.replace(partial, directory / "last.pt")


_FREE_TO_CHANGE = {
    "stop_step",
    "evaluate_every",
    "checkpoint_every",
    "log_every",
    "loader_workers",
    "threads",
}


def _resume(task: TrainTask, optimizer: torch.optim.Optimizer, config: LoopConfig, directory: Path) -> int:
    path = directory / "last.pt"
    if not path.exists():
        return 0
    saved = torch.load(path, map_location="cpu", weights_only=True)
    changed = differing(saved["config"], asdict(config), _FREE_TO_CHANGE)
    if changed:
        raise CheckpointError(f"{path} was trained with another {', '.join(changed)}; use a new directory")
    task.modules.load_state_dict(saved["modules"])
    optimizer.load_state_dict(saved["optimizer"])
    task.load_state(saved["task"])
    torch.set_rng_state(saved["torch_random"])
    return int(saved["step"])


def differing(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], free: Sequence[str] | set[str]
) -> list[str]:
    """Names whose values differ between two configurations, those free to change left out."""
    return [k for k in wanted if k not in free and _plain(saved.get(k)) != _plain(wanted[k])]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
