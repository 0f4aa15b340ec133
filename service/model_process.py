"""`python -m service.model_process FD ...`: the process that models compute in, one socket a model.

A small model spends much of its time in Python, and so do HTTP and the decoding of images. In one process
they wait for each other's turn at the interpreter, in two they do not (vLLM's engine core is a process of its
own for the same reason). It ends when the server closes its sockets, however the server ended.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from madtp_core.errors import MadtpError
from service.device import GpuReadings, free_memory, is_out_of_memory
from service.local_model import LocalModel
from service.logs import configure_logging
from service.messages import (
    CalibrationOf,
    Call,
    Drop,
    Hold,
    Load,
    Message,
    Raised,
    Readings,
    Reply,
    Returned,
    Run,
)
from service.model import Known

if TYPE_CHECKING:
    from service.model import Computing
    from service.settings import ModelSource, Settings

    Connected = Connection[Any, Any]
else:
    Connected = Connection

logger = logging.getLogger(__name__)

GPU_PERIOD_S = 1.0  # a driver takes its time to tell
_EXIT_TIMEOUT_S = 5.0


class ModelHost:
    """One model and who asks it: a thread reads, so that queries arrive while the model computes."""

    def __init__(
        self, connection: Connected, load: Callable[[ModelSource, Settings], Computing] = LocalModel.load
    ) -> None:
        self._connection = connection
        self._load_model = load
        self._model: Computing | None = None
        self._queries: dict[int, Any] = {}
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._gpu_readings: GpuReadings = None, None
        self._gpu: tuple[float | None, float | None] = None, None  # memory in bytes, power in watts
        self._gpu_due_s = 0.0

    def read(self) -> None:
        """Takes messages until the server closes the socket."""
        try:
            while True:
                self._take(self._connection.recv())
        except (EOFError, OSError):
            self._calls.put(None)

    def compute(self) -> None:
        """Answers calls, one after the other, until nothing is read any more."""
        try:
            while (call := self._calls.get()) is not None:
                self._connection.send(self._reply(call))
        except OSError:
            logger.debug("the server has gone")
        except BaseException:
            logger.critical("the model's thread ended", exc_info=True)
        finally:
            _hang_up(self._connection)  # whatever ended this, the server must not wait for an answer

    def _take(self, message: Message) -> None:
        match message:
            case Hold():
                self._queries[message.key] = message.query
            case Drop():
                for key in message.keys:
                    self._queries.pop(key, None)
            case _:
                self._calls.put(message)

    def _reply(self, call: Call) -> Reply:
        began_s = time.monotonic()
        try:
            value = self._answer(call)
        except Exception as error:
            raised = _raised(error)
        else:
            return Returned(value, time.monotonic() - began_s, self._read())
        if raised.kind == "memory":
            free_memory()
        return raised

    def _answer(self, call: Call) -> Any:
        match call:
            case Load():
                return self._load(call)
            case Run():
                return self._run(call)
            case CalibrationOf():
                assert self._model is not None, "a model is loaded before it is asked"
                return self._model.calibration_of(call.shape, call.keep_mode)

    def _load(self, call: Load) -> Known:
        configure_logging(call.settings.log_level)
        self._model = model = self._load_model(call.source, call.settings)
        self._gpu_readings = model.gpu_readings()
        gc.freeze()  # what a model is made of need not be searched for garbage
        return Known.of(model)

    def _run(self, call: Run) -> list[Any]:
        assert self._model is not None, "a model is loaded before it is asked"
        queries = [self._queries[each] if isinstance(each, int) else each for each in call.queries]
        answers, _ = self._model.run(
            call.task, queries, prune_temperature=call.prune_temperature, keep_mode=call.keep_mode
        )
        return answers

    def _read(self) -> Readings:
        cache_of = None if self._model is None else self._model.image_cache
        summary = None if cache_of is None else cache_of.summary()
        now_s = time.monotonic()
        if now_s >= self._gpu_due_s:
            memory_bytes, power_watts = self._gpu_readings
            self._gpu = memory_bytes and memory_bytes(), power_watts and power_watts()
            self._gpu_due_s = now_s + GPU_PERIOD_S
        return Readings(*self._gpu, summary)


class ModelProcess:
    """The server's end: starts the process when its first model is asked for. Any thread may call it."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._process: subprocess.Popen[bytes] | None = None
        self._connections: dict[str, Connected] = {}
        self._open: set[str] = set()
        self._lock = threading.Lock()

    def pid(self) -> int | None:
        """Of the process, once it was started."""
        return None if self._process is None else self._process.pid

    def connect(self, name: str) -> Connected:
        """The socket of one of the models."""
        with self._lock:
            if self._process is None:
                self._start()
            self._open.add(name)
            return self._connections[name]

    def leave(self, name: str) -> None:
        """Closes a model's socket; with the last one the process ends, or is ended."""
        with self._lock:
            self._connections[name].close()
            self._open.discard(name)
            if self._open or self._process is None:
                return
            for connection in self._connections.values():
                connection.close()
            try:
                self._process.wait(_EXIT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _start(self) -> None:
        pairs = [Pipe() for _ in self._names]
        theirs = [pair[1] for pair in pairs]
        # In a session of its own: who interrupts the server at a terminal does not interrupt its last batch.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *(str(end.fileno()) for end in theirs)],
            pass_fds=[end.fileno() for end in theirs],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        for end in theirs:
            end.close()
        self._connections = {name: pair[0] for name, pair in zip(self._names, pairs, strict=True)}


def _hang_up(connection: Connected) -> None:
    """Ends what the other side reads, also while a thread of ours does; closing alone would wait for it."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


def _raised(error: Exception) -> Raised:
    """The error as it travels: not pickled itself, as not every class of the libraries can be."""
    kind = "refused" if isinstance(error, MadtpError) else "memory" if is_out_of_memory(error) else "failed"
    if kind == "failed":
        logger.error("the model raised", exc_info=error)
    return Raised(kind, type(error).__name__, str(error))  # type: ignore[arg-type]


def main(arguments: Sequence[str]) -> None:
    """Serves the models of all sockets until the server has closed them."""
    for number in (signal.SIGTERM, signal.SIGINT):  # a supervisor may signal all: the server drains first
        signal.signal(number, signal.SIG_IGN)
    readers = []
    for descriptor in arguments:
        host = ModelHost(Connection(int(descriptor)))
        threading.Thread(target=host.compute, name=f"model-{descriptor}", daemon=True).start()
        readers.append(threading.Thread(target=host.read, name=f"reader-{descriptor}", daemon=True))
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    os._exit(0)  # a batch that still runs is for nobody


if __name__ == "__main__":
    main(sys.argv[1:])
