"""The service's own engine, batcher and controller in this process, without HTTP, under a full queue."""

from __future__ import annotations

import gc
import io
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from PIL import Image

from loadtests.errors import LoadTestError
from loadtests.requests import PreparedRequest
from madtp_core.evaluate import Outlay, Sample
from madtp_core.evaluate.samples import Picture
from madtp_core.evaluate.scores import MEASURES, score
from service.controller import target_class
from service.engine import Engine
from service.job import Job, Prepared, Served
from service.local_model import LocalModel
from service.model import Model
from service.preprocess import ImageLimits, prepare
from service.settings import Settings
from service.steering import floor_of
from service.tasks import TASKS

_START_TIMEOUT_S = 600.0
_ANSWER_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 60.0
_POLL_S = 0.0005
_WINDOW_BATCHES = 8  # the batcher's: so many full batches wait when the next is cut


@dataclass(frozen=True)
class Answered:
    """One request that was served. predicted: its difficulty as the predictor said it; finished_s: when."""

    served: Served
    predicted: float | None
    finished_s: float

    @property
    def flops_ratio(self) -> float:
        return self.served.spent.cost.flops_ratio

    @property
    def outlay(self) -> Outlay:
        return Outlay.of(self.served.spent)


class PacedModel(LocalModel):
    """A model whose batch ends only when `may_end`: so the next one finds the queue that it should find."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.may_end: Callable[[], bool] = lambda: True

    def run(self, task: str, queries: Sequence[Any], **options: Any) -> tuple[list[Any], float]:
        """The model's own answers."""
        ran = super().run(task, queries, **options)
        while not self.may_end():
            time.sleep(_POLL_S)
        return ran


@dataclass
class Serving:
    """A ready engine, and how requests are put into it."""

    engine: Engine
    settings: Settings
    paced: PacedModel

    def serve(
        self, task: str, prepared: Iterable[Prepared], *, in_flight: int, depth: int = 0
    ) -> list[Answered]:
        """Serve requests with `in_flight` of them inside, in the order in which they are given.

        depth: how many must wait before a batch ends, as long as any come. Raises what an answer failed by.
        """
        places = threading.Semaphore(in_flight)
        target = target_class(None, None, balanced=self.settings.flops_target, fast=floor_of(self.settings))
        finished_s: dict[Future[Served], float] = {}

        def note(future: Future[Served]) -> None:
            finished_s[future] = time.monotonic()
            places.release()

        if depth:
            self.paced.may_end = lambda: self.engine.depth() >= depth
        try:
            results: list[tuple[Future[Served], float | None]] = []
            for number, one in enumerate(prepared):
                job = Job(str(number), task, self.engine.name, time.monotonic(), math.inf, target)
                job.note_prepared(one)
                places.acquire()
                job.future.add_done_callback(note)
                self.engine.submit(job)
                results.append((job.future, job.predicted_difficulty))
        finally:
            self.paced.may_end = lambda: True
        served = [(future.result(_ANSWER_TIMEOUT_S), predicted, future) for future, predicted in results]
        return [Answered(one, predicted, finished_s[future]) for one, predicted, future in served]

    def serve_saturated(self, task: str, prepared: Iterable[Prepared]) -> list[Answered]:
        """Serve requests in full batches: the batcher's whole window waits when a batch is cut."""
        depth = _WINDOW_BATCHES * self.settings.max_batch_size
        return self.serve(task, prepared, in_flight=depth + 2 * self.settings.max_batch_size, depth=depth)


@contextmanager
def running_engine(name: str, model: Model, settings: Settings) -> Iterator[Serving]:
    """Start an engine around a loaded model and stop it at the end; raises LoadTestError if it cannot."""
    paced = PacedModel(model)
    engine = Engine(name, lambda: paced, settings)
    engine.start()
    try:
        give_up_s = time.monotonic() + _START_TIMEOUT_S
        while engine.phase != "ready":
            if engine.phase == "failed" or time.monotonic() > give_up_s:
                raise LoadTestError(f"the engine of {name} is {engine.phase}, not ready")
            time.sleep(_POLL_S)
        gc.freeze()  # as the service does
        yield Serving(engine, settings, paced)
    finally:
        engine.stop(_STOP_TIMEOUT_S)


def prepared_samples(serving: Serving, task: str, samples: Iterable[Sample]) -> Iterator[Prepared]:
    """Preprocess labelled requests one by one, from encoded pictures on, as the service does."""
    for sample in samples:
        images = [("image", _png(picture)) for picture in sample.pictures]
        yield _prepared(serving, task, sample.fields, images, sample.texts)


def prepared_requests(serving: Serving, requests: Iterable[PreparedRequest]) -> Iterator[Prepared]:
    """Preprocess requests that were encoded as JSON."""
    for request in requests:
        task = TASKS[request.task]
        fields = task.fields.model_validate_json(request.body)
        yield _prepared(serving, task.name, fields.task_fields(), fields.pictures(), fields.texts_read())


def outcomes_of(task: str, samples: Sequence[Sample], answers: Sequence[Answered]) -> list[float]:
    """What each answer is worth by the measure of a model's task."""
    shown = [_as_answer(answer.served.shown) for answer in answers]
    scores = score(task, [sample.truth for sample in samples], shown)
    return list(scores.outcomes[MEASURES[task]])


def _prepared(
    serving: Serving,
    task: str,
    fields: Any,
    images: Sequence[tuple[str, str | bytes]],
    texts: Sequence[str],
) -> Prepared:
    assert serving.engine.model is not None, "a ready engine has a model"
    return prepare(
        task,
        fields,
        images,
        texts,
        geometry=serving.engine.model.image_geometry,
        image_tokens=serving.engine.image_tokens,
        limits=ImageLimits.of(serving.settings),
        features="now" if serving.engine.predicts_difficulty else "never",
        asked_s=time.monotonic(),
    )


def _png(picture: Picture) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _as_answer(shown: dict[str, Any]) -> SimpleNamespace:
    """What was shown as the scores want it: a candidate's score is its match, where it was matched."""
    if "ranked" not in shown or shown["ranked"] is None or "similarity" not in shown["ranked"][0]:
        return SimpleNamespace(**shown)
    ranked = [
        SimpleNamespace(
            index=one["index"],
            itm=one["match_score"],
            score=one["similarity"] if one["match_score"] is None else one["match_score"],
        )
        for one in shown["ranked"]
    ]
    return SimpleNamespace(ranked=ranked)
