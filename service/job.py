"""The record of one request, from its headers' arrival to its answer; metrics, log and report read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from service.admission import Place
from service.controller import Setting, TargetClass

if TYPE_CHECKING:
    from madtp_core.tasks.cost import Spent

Features = tuple[float, ...]
STAGES = ("queue", "decode", "preprocess", "inference", "postprocess")


@dataclass(frozen=True)
class Prepared:
    """What a preprocessing thread hands back: the query, and seconds: waiting, decoding, resizing.

    dense_tokens: of the request unpruned, all branches, words counted for tokens. features: what its
    difficulty is predicted from; None where nothing is to be predicted, and until `find_features` is called,
    which holds the pictures.
    """

    query: Any
    images: int
    dense_tokens: float
    features: Features | None
    thread_wait_s: float
    decode_s: float
    preprocess_s: float
    find_features: Callable[[], Features] | None = None


@dataclass(frozen=True)
class Served:
    """What the engine hands back: an answer as plain values and the batch it was made in.

    `started_s` is when that batch began (the last attempt, when a failed batch was split); `inference_s` is
    the batch's forward pass and decoding, without the detokenising of its members.
    """

    shown: dict[str, Any]
    spent: Spent
    started_s: float
    batch_size: int
    keep_mode: str
    setting: Setting
    inference_s: float
    postprocess_s: float


@dataclass(eq=False)
class Job:
    """One request. Times are seconds of one monotonic clock; `seconds` are durations per stage.

    The event loop alone writes here: threads hand over `Prepared` and `Served`, and the engine touches only
    `future`, which takes exactly one answer or one error. `model` is the name of the task's default model
    until the request has named another; `tokens` are those that it is predicted to need.
    """

    request_id: str
    task: str
    model: str
    arrived_s: float
    deadline_s: float
    target: TargetClass | None = None
    place: Place | None = None
    priority: int = 0
    tokens: float = 0.0
    future: Future[Served] = field(default_factory=Future)
    prepared: Prepared | None = None
    predicted_difficulty: float | None = None
    submitted_s: float | None = None
    served: Served | None = None
    outcome: str = "open"
    error_code: str | None = None
    finished_s: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    trace_headers: Mapping[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, str | int | float | None]:
        """What log and trace tell of a request: never its images, texts or keys."""
        facts: dict[str, str | int | float | None] = {
            "request_id": self.request_id,
            "task": self.task,
            "model": self.model,
            "outcome": self.outcome,
            "code": self.error_code,
            **{f"{stage}_s": round(seconds, 6) for stage, seconds in self.seconds.items()},
        }
        if self.served is not None:
            facts |= {
                "batch_size": self.served.batch_size,
                "prune_temperature": self.served.setting.prune_temperature,
                "flops_ratio": round(self.served.spent.cost.flops_ratio, 4),
                "difficulty_predicted": self.predicted_difficulty,
                "difficulty_measured": self.served.spent.difficulty,
            }
        return facts

    @property
    def query(self) -> Any:
        """What the model is asked; only a prepared job has it."""
        assert self.prepared is not None, "a job is prepared before it is submitted"
        return self.prepared.query

    @property
    def target_class(self) -> TargetClass:
        """What it may spend; only a job that was assigned to a model has it."""
        assert self.target is not None, "a job knows its target before it is submitted"
        return self.target

    @property
    def is_settled(self) -> bool:
        """Whether the job has its answer or error, or nobody waits for one any more."""
        return self.future.done()

    def succeed(self, served: Served) -> None:
        """Hands the answer to whoever waits; nothing happens when the job is already settled."""
        with suppress(InvalidStateError):
            self.future.set_result(served)

    def fail(self, error: Exception) -> None:
        """Hands an error to whoever waits; nothing happens when the job is already settled."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def note_prepared(self, prepared: Prepared) -> None:
        """Writes down what preprocessing made and took; waiting for its thread counts as queueing."""
        self.prepared = prepared
        self.seconds["queue"] = prepared.thread_wait_s
        self.seconds["decode"] = self.seconds.get("decode", 0.0) + prepared.decode_s
        self.seconds["preprocess"] = prepared.preprocess_s

    def note_features(self, features: Features) -> None:
        """Writes down what was found of a prepared job while it ran already."""
        assert self.prepared is not None, "a job is prepared before it is submitted"
        self.prepared = replace(self.prepared, features=features, find_features=None)

    def note_served(self, served: Served) -> None:
        """Writes down what the engine made and took."""
        self.served = served
        if self.submitted_s is not None:
            self.seconds["queue"] = self.seconds.get("queue", 0.0) + served.started_s - self.submitted_s
        self.seconds["inference"] = served.inference_s
        self.seconds["postprocess"] = served.postprocess_s
