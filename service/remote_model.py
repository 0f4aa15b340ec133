"""A model in the model process, as the engine sees it."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from madtp_core.errors import MadtpError
from service.device import GpuReadings
from service.messages import (
    CalibrationOf,
    Call,
    Drop,
    Hold,
    Load,
    Message,
    Readings,
    Reply,
    Returned,
    Run,
)
from service.model import KnownModel, ModelLost

if TYPE_CHECKING:
    from service.model import Calibration
    from service.model_process import Connected, ModelProcess
    from service.settings import ModelSource, Settings


class RemoteError(RuntimeError):
    """What a model raised in its process: the type's name and the text of the error there."""


class HeldQuery:
    """A query that the model process holds for as long as this object lives."""

    __slots__ = ("_let_go", "key", "shape")

    def __init__(self, key: int, shape: Mapping[str, int], let_go: Callable[[int], None]) -> None:
        self.key = key
        self.shape = shape
        self._let_go = let_go

    def __del__(self) -> None:
        self._let_go(self.key)


@dataclass(frozen=True)
class _CacheSummary:
    """What the model process told of its cache of images."""

    told: dict[str, int]

    def summary(self) -> dict[str, int]:
        return self.told


class RemoteModel(KnownModel):
    """A `service.model.Computing` whose model the model process holds."""

    def __init__(self, connection: Connected, close: Callable[[], None]) -> None:
        self._connection = connection
        self._close = close
        self._sending = threading.Lock()
        self._keys = itertools.count()
        self._let_go: deque[int] = deque()
        self._kind: Any = None
        self.readings: Readings | None = None
        self._seconds = 0.0

    @classmethod
    def load(cls, process: ModelProcess, source: ModelSource, settings: Settings) -> RemoteModel:
        """Has the process load a model; raises MadtpError or RemoteError as loading did."""
        connection = process.connect(source.name)
        model = cls(connection, lambda: process.leave(source.name))
        model._send(Load(source, settings))
        # Its answers are of these classes: they are imported here while it imports them, too.
        from madtp_core.tasks import model_class

        try:
            model.known = model._receive()
        except BaseException:
            model.close()  # nobody else knows of it yet
            raise
        model._kind = model_class(model.task)
        return model

    @property
    def image_cache(self) -> _CacheSummary | None:
        told = None if self.readings is None else self.readings.image_cache
        return None if told is None else _CacheSummary(told)

    def gpu_readings(self) -> GpuReadings:
        """As `service.device.gpu_readings`: what was told with the last answer."""
        told = self.readings
        if told is None:
            return None, None
        memory_bytes = None if told.gpu_memory_bytes is None else partial(self._told, "gpu_memory_bytes")
        power_watts = None if told.gpu_power_watts is None else partial(self._told, "gpu_power_watts")
        return memory_bytes, power_watts

    def _told(self, name: str) -> float:
        return float(getattr(self.readings, name))

    def hold(self, query: Any) -> HeldQuery:
        """Sends a query ahead; who has the returned object asks for it."""
        key = next(self._keys)
        self._send(Hold(key, query))
        return HeldQuery(key, self._kind.shape_of(query), self._let_go.append)

    def shape_of(self, query: HeldQuery) -> Mapping[str, int]:
        """How many sequences of each kind a query has."""
        return query.shape

    def calibration_of(self, shape: Mapping[str, int], keep_mode: str) -> Calibration | None:
        """The calibration of requests of a shape."""
        found: Calibration | None = self._call(CalibrationOf(shape, keep_mode))
        return found

    def run(
        self,
        task: str,
        queries: Sequence[Any],
        *,
        prune_temperature: float | Sequence[float],
        keep_mode: str,
    ) -> tuple[list[Any], float]:
        """As `Computing.run`, without what answers took on their way; others' errors come as RemoteError."""
        asked = [query.key if isinstance(query, HeldQuery) else query for query in queries]
        answers: list[Any] = self._call(Run(task, asked, prune_temperature, keep_mode))
        return answers, self._seconds

    def close(self) -> None:
        """The process ends when every model's socket is closed."""
        self._close()

    def _call(self, call: Call) -> Any:
        self._send(call)
        return self._receive()

    def _send(self, message: Message) -> None:
        try:
            with self._sending:
                if keys := self._taken():
                    self._connection.send(Drop(keys))
                self._connection.send(message)
        except OSError as error:
            raise ModelLost from error

    def _taken(self) -> list[int]:
        """Keys of queries let go since the last message: a finalizer appends them, whatever it interrupts."""
        keys = []
        with suppress(IndexError):
            while True:
                keys.append(self._let_go.popleft())
        return keys

    def _receive(self) -> Any:
        try:
            reply: Reply = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ModelLost from error
        if isinstance(reply, Returned):
            self.readings, self._seconds = reply.readings, reply.seconds
            return reply.value
        if reply.kind == "refused":
            raise MadtpError(reply.text)
        if reply.kind == "memory":
            raise MemoryError(reply.text)
        raise RemoteError(f"{reply.type_name}: {reply.text}")
