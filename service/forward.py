"""One forward pass of a batch: at which prune temperatures it runs, and what every job gets of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from service.controller import EXACT, Setting, TargetClass, target_class
from service.job import Job, Served
from service.model import BatchRecord, Computing, tasks_of, trial_query
from service.steering import floor_of, steering_of

if TYPE_CHECKING:
    from madtp_core.tasks.cost import Spent
    from service.settings import Settings


STEPS_AN_OCTAVE = 8  # of the prune temperature, where encoded images are kept: 9 % apart


class Forward:
    """Runs batches of one loaded model; every method is called on the engine's thread."""

    def __init__(self, name: str, model: Computing, settings: Settings, clock: Callable[[], float]) -> None:
        self.steering = steering_of(model, settings)
        self.tasks = tasks_of(model)
        self._name = name
        self._model = model
        self._settings = settings
        self._clock = clock

    def run(self, jobs: Sequence[Job]) -> tuple[list[Served], BatchRecord]:
        """What each job of a batch is to be answered; raises what the model raises, or RuntimeError.

        All jobs are of one task and, under max_keep, of one target class.
        """
        task = jobs[0].task
        classes = [job.target_class for job in jobs]
        settings = self._settings_of(classes)
        started_s = self._clock()
        answers, taken_s = self._predict(task, [job.query for job in jobs], settings)
        shown = self._shown(task, answers)
        inference_s = max(0.0, taken_s - sum(answer.postprocess_s for answer in answers))
        self.steering.observe(classes, settings, [answer.spent.cost.flops_ratio for answer in answers])
        served = [
            Served(
                shown=plain,
                spent=answer.spent,
                started_s=started_s,
                batch_size=len(jobs),
                keep_mode=self._settings.keep_mode,
                setting=setting,
                inference_s=inference_s,
                postprocess_s=answer.postprocess_s,
            )
            for plain, answer, setting in zip(shown, answers, settings, strict=True)
        ]
        tokens = _entering_tokens([answer.spent for answer in answers])
        last = settings[-1]
        record = BatchRecord(task, self._name, len(jobs), tokens, last.prune_temperature, last.flops_ratio)
        return served, record

    def usual_target(self) -> TargetClass:
        """The class of a request that asks for nothing."""
        return target_class(None, None, balanced=self._settings.flops_target, fast=floor_of(self._settings))

    def probe(self) -> None:
        """Runs one query of our own; raises what the model raises."""
        self._try(self.tasks[0], 1, self.usual_target())

    def warm_up(self) -> None:
        """Runs every task, dense and pruned, in batches of 1, 2, 4, ... as far as the time allows.

        Raises what the model raises; a calibration without the keep mode is found here, not while serving.
        """
        started_s, size = self._clock(), 1
        while size <= self._settings.max_batch_size:
            for task in self.tasks:
                for target in {self.usual_target(), EXACT} if size == 1 else {self.usual_target()}:
                    self._try(task, size, target)
            if self._clock() - started_s >= self._settings.warm_up_s:
                break
            size *= 2

    def _settings_of(self, classes: Sequence[TargetClass]) -> list[Setting]:
        """The steering's; with a cache of images, temperatures go in steps, so that equal images meet.

        Otherwise every correction would make another temperature, and each has encodings of its own.
        """
        settings = self.steering.settings(classes)
        if not self._settings.image_cache_bytes or self._settings.keep_mode == "max_keep":
            return settings
        return [replace(one, prune_temperature=in_steps(one.prune_temperature)) for one in settings]

    def _try(self, task: str, size: int, target: TargetClass) -> None:
        settings = self._settings_of([target] * size)
        answers, _ = self._predict(task, [trial_query(self._model, task)] * size, settings)
        self._shown(task, answers)

    def _predict(
        self, task: str, queries: Sequence[Any], settings: Sequence[Setting]
    ) -> tuple[list[Any], float]:
        """The answers, and how many seconds the model took."""
        is_shared = self._settings.keep_mode == "max_keep"
        temperatures = [setting.prune_temperature for setting in settings]
        answers, taken_s = self._model.run(
            task,
            queries,
            prune_temperature=temperatures[0] if is_shared else temperatures,
            keep_mode=self._settings.keep_mode,
        )
        if len(answers) != len(queries):
            raise RuntimeError(f"the model returned {len(answers)} answers to {len(queries)} queries")
        return answers, taken_s

    def _shown(self, task: str, answers: Sequence[Any]) -> list[dict[str, Any]]:
        from madtp_core.tasks.plain import plain_task

        shown = [plain_task(task).shown(answer) for answer in answers]
        if not all(math.isfinite(number) for number in _numbers(shown)):
            raise RuntimeError("the model returned a number that is not finite")
        return shown


def in_steps(prune_temperature: float) -> float:
    """The nearest of eight temperatures an octave; 0 stays 0."""
    if prune_temperature == 0:
        return 0.0
    return float(2 ** (round(STEPS_AN_OCTAVE * math.log2(prune_temperature)) / STEPS_AN_OCTAVE))


def _numbers(value: Any) -> Iterable[float]:
    """Every number in plain values."""
    match value:
        case dict():
            return (number for part in value.values() for number in _numbers(part))
        case list():
            return (number for part in value for number in _numbers(part))
        case float():
            return (value,)
        case _:
            return ()


def _entering_tokens(batch: Sequence[Spent]) -> int:
    """Tokens that enter a batch, pads included: of every kind of sequence, how many times the longest."""
    kinds = {kind for spent in batch for kind in spent.traces}
    lengths = [[trace.dense for spent in batch for trace in spent.traces.get(kind, ())] for kind in kinds]
    return sum(len(each) * max(each) for each in lengths if each)
