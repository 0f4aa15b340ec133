"""What a run shows, in its first process: `log.jsonl`, a progress bar and, where wanted, TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from madtp_core.errors import ConfigError
from madtp_core.train.processes import current_processes


class Progress:
    """Shows and logs a run from its start to its end; a context manager.

    Raises ConfigError when TensorBoard is wanted and not installed.
    """

    def __init__(self, directory: Path, start: int, last_step: int, tensorboard: bool) -> None:
        self._directory, self._start, self._last_step = directory, start, last_step
        self._shows = current_processes().is_first
        self._board: Any = _board(directory) if tensorboard and self._shows else None

    def __enter__(self) -> Self:
        self._open = ExitStack()
        if self._shows:
            self._log = self._open.enter_context((self._directory / "log.jsonl").open("a"))
            if self._board is not None:
                self._open.callback(self._board.close)
        self._bar = self._open.enter_context(
            tqdm(
                total=self._last_step,
                initial=self._start,
                desc=self._directory.name,
                unit="step",
                mininterval=2.0,
                disable=not self._shows,
            )
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.close()

    def stepped(self) -> None:
        """One step more."""
        self._bar.update()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Note a step's figures."""
        self._bar.set_postfix({name: f"{value:.3f}" for name, value in figures.items()})
        self._write({"step": step, **figures})
        self._plot("train", step, figures)

    def log_evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        """Note figures on held-out data."""
        self._write({"step": step, "evaluation": dict(figures)})
        self._plot("evaluation", step, figures)

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._shows:
            self._log.write(json.dumps(record) + "\n")
            self._log.flush()

    def _plot(self, group: str, step: int, figures: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(f"{group}/{name}", value, step)


def _board(directory: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "TensorBoard is not installed: pip install 'madtp-serve[train]', or leave out tensorboard"
        ) from error
    return SummaryWriter(str(directory / "tensorboard"))
