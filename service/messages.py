"""What the server and its model process say to each other: pickled, over a socket that only these two hold.

The server sends `Load`, then `Hold` and `Drop` at any time and calls (`Run`, `CalibrationOf`) one at a time;
`Load` and every call are answered by `Returned` or `Raised`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from service.settings import ModelSource, Settings


@dataclass(frozen=True)
class Load:
    """The first message: answered by `service.model.Known`."""

    source: ModelSource
    settings: Settings


@dataclass(frozen=True)
class Hold:
    """A query to keep under a key: it travels while others compute, not when its batch begins."""

    key: int
    query: Any


@dataclass(frozen=True)
class Drop:
    """Queries that will not be asked for any more."""

    keys: Sequence[int]


@dataclass(frozen=True)
class Run:
    """A batch of a task; of queries that are held, their keys."""

    task: str
    queries: Sequence[Any]
    prune_temperature: float | Sequence[float]
    keep_mode: str


@dataclass(frozen=True)
class CalibrationOf:
    """The calibration of requests of a shape."""

    shape: Mapping[str, int]
    keep_mode: str


@dataclass(frozen=True)
class Readings:
    """Of a model at the time of an answer; None where there is nothing to tell."""

    gpu_memory_bytes: float | None
    gpu_power_watts: float | None
    image_cache: dict[str, int] | None


@dataclass(frozen=True)
class Returned:
    """The value of a call; seconds: what it took there."""

    value: Any
    seconds: float
    readings: Readings


@dataclass(frozen=True)
class Raised:
    """The error of a call: `refused` by the model with a text for the client, no `memory`, or `failed`."""

    kind: Literal["refused", "memory", "failed"]
    type_name: str
    text: str


Call = Load | Run | CalibrationOf
Message = Call | Hold | Drop
Reply = Returned | Raised
