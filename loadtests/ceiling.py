"""How fast our own client is: the same load against a server that does nothing."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import cast

import uvloop

from loadtests.arrivals import Segment, arrival_times_s
from loadtests.load import plan_requests, run_load
from loadtests.outcome import OK
from loadtests.requests import PreparedRequest
from loadtests.search import Bracket, highest_rate
from loadtests.summary import quantile

_REPLY_BODY = b'{"answer":"yes","report":null}'
_REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(_REPLY_BODY),
    _REPLY_BODY,
)
_BODY_BYTES = 4000  # a question about a scene of 96 pixels, as PNG
_START_PER_S = 500.0
_TRIAL_S = 3.0
_LIMIT_S = 0.02
_TIMEOUT_S = 20.0


def client_ceiling(processes: int, say: Callable[[str], None]) -> Bracket:
    """Find the highest Poisson rate that the client keeps up with against the trivial server, here and now.

    It keeps up when the median reply is there 20 ms after its scheduled time: beyond the ceiling a backlog
    grows and the median with it, while other work on the machine disturbs only the tail.
    """
    request = PreparedRequest(
        "vqa", "/v1/vqa", "application/octet-stream", bytes(_BODY_BYTES), "yes", "natural"
    )

    def meets(rate_per_s: float) -> bool:
        times_s = arrival_times_s([Segment(_TRIAL_S, rate_per_s, rate_per_s)], cv=1, seed=0)
        plan = plan_requests(times_s, 1)
        load = run_load(url, [request], plan, processes=processes, timeout_s=_TIMEOUT_S)
        latencies_s = sorted(outcome.latency_s for outcome in load.outcomes)
        median_s, p99_s = quantile(latencies_s, 0.5), quantile(latencies_s, 0.99)
        is_held = median_s <= _LIMIT_S and all(outcome.status == OK for outcome in load.outcomes)
        say(
            f"{rate_per_s:.0f}/s: p50 {1000 * median_s:.1f} ms, p99 {1000 * p99_s:.1f} ms, "
            f"{1e6 * load.client_cpu_s / len(plan):.0f} us of the client's processor time a request, "
            f"{load.client_cpu_s / load.wall_s:.2f} cores: {'held' if is_held else 'not held'}"
        )
        return is_held

    with trivial_server() as url:
        return highest_rate(meets, start=_START_PER_S, tolerance=0.1, max_trials=12)


@contextmanager
def trivial_server() -> Iterator[str]:
    """Run a server in a process of its own that reads each body and answers it at once; give its address."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        port: int = ours.recv()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join()


class _Trivial(asyncio.Protocol):
    """HTTP/1.1 of exactly what our client sends: a content-length, kept connections, no pipelining."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # TCP's; uvloop's is no subclass
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            self._received = body[length:]
            self._transport.write(_REPLY)


def _serve(pipe: Connection) -> None:
    async def serve_forever() -> None:
        server = await asyncio.get_running_loop().create_server(_Trivial, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(serve_forever())
