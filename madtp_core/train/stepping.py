"""One optimiser step: micro-batches, autocast, loss scaling, processes, clipping, AdamW."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from madtp_core.train.batches import to_device
from madtp_core.train.processes import current_processes, mean_of_all
from madtp_core.train.task import TrainTask, Weighted

if TYPE_CHECKING:
    from madtp_core.train.loop import LoopConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SMALLEST_SCALE = 1.0  # a loss that overflows fp16 unscaled is not one to go on with


class _Loss(nn.Module):
    """A task's loss as a module's forward, which is what DistributedDataParallel wraps.

    It holds what is trained alone: buffers, as a queue's, the task keeps alike in all processes itself.
    """

    def __init__(self, task: TrainTask) -> None:
        super().__init__()
        self.trained = nn.ParameterList(p for p in task.modules.parameters() if p.requires_grad)
        self._task = task

    def forward(self, batch: Any, step: int) -> tuple[Tensor, Mapping[str, float]]:
        return self._task.loss(batch, step)


class Stepper:
    """A task's optimiser and the way of a step through it.

    The step descends the mean over all micro-batches of all processes, weighted where the task says how much
    each holds (`task.Weighted`).
    """

    def __init__(self, task: TrainTask, config: LoopConfig) -> None:
        self.task, self.config, self.processes = task, config, current_processes()
        self.device = next(task.modules.parameters()).device
        self.optimizer = torch.optim.AdamW(
            parameter_groups(task.modules, config.weight_decay), lr=config.learning_rate, betas=config.betas
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.dtype == "fp16")
        self._loss: nn.Module = _Loss(task)
        if self.processes.count > 1:
            # Not every step runs every parameter: nothing reads the alignment tokens of a branch that runs
            # dense.
            self._loss = DistributedDataParallel(self._loss, find_unused_parameters=True)

    def step(self, batches: Sequence[Any], step: int) -> dict[str, float]:
        """Descend one step on this process's micro-batches; figures in the mean over all of all processes.

        Raises FloatingPointError when the gradient is not finite, in fp16 when no scaling helps.
        """
        self.task.modules.train()
        rate = self.config.learning_rate_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        shares = self._shares(batches)
        figures: dict[str, float] = {}
        for micro, (batch, share) in enumerate(zip(batches, shares, strict=True)):
            loss, seen = self._descend(batch, share, step, is_last=micro + 1 == len(batches))
            for name, value in {"loss": loss, **seen}.items():
                figures[name] = figures.get(name, 0.0) + share * value
        figures = mean_of_all(figures, self.device)
        self._update(step, figures)
        self.task.after_step(figures)
        return {"loss": figures.pop("loss"), "learning_rate": rate, **figures}

    def state(self) -> dict[str, Any]:
        """Optimiser and loss scale, to be saved."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def _shares(self, batches: Sequence[Any]) -> list[float]:
        """What each micro-batch counts in the step's mean, 1 / their number where all count alike."""
        if not isinstance(self.task, Weighted):
            return [1 / len(batches)] * len(batches)
        weights = [float(self.task.weight(batch)) for batch in batches]
        mean = mean_of_all({"weight": sum(weights)}, self.device)["weight"]
        return [weight / mean for weight in weights]

    def _descend(
        self, batch: Any, share: float, step: int, *, is_last: bool
    ) -> tuple[float, Mapping[str, float]]:
        """Add a micro-batch's gradient; processes exchange gradients with the last one."""
        wrapped = self._loss
        waits: AbstractContextManager[None] = nullcontext()
        if isinstance(wrapped, DistributedDataParallel) and not is_last:
            waits = wrapped.no_sync()
        with waits:
            with torch.autocast(
                self.device.type, DTYPES[self.config.dtype], enabled=self.config.dtype != "fp32"
            ):
                loss, figures = wrapped(to_device(batch, self.device), step)
            torch.autograd.backward(self.scaler.scale(loss * share))
        return loss.item(), figures

    def _update(self, step: int, figures: Mapping[str, float]) -> None:
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.task.modules.parameters(), self.config.gradient_clip)
        is_finite = bool(torch.isfinite(norm))
        can_rescale = self.scaler.is_enabled() and self.scaler.get_scale() > _SMALLEST_SCALE
        if not is_finite and not can_rescale:
            raise FloatingPointError(f"the gradient is not finite at step {step}; figures: {dict(figures)}")
        self.scaler.step(self.optimizer)
        self.scaler.update()


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups: matrices decay; norms, biases and other vectors do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
