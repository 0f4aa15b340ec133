"""BLIP behind Ray Serve with `@serve.batch`: decoded in the replica's handler, answered together."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import ray
from ray import serve as ray_serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from loadtests.peers.blip import HuggingFaceBlip, Query
from loadtests.peers.options import Peer
from loadtests.peers.wire import picture_bytes, reply

_ROOT = Path(__file__).parents[2]
_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 100_000_000


class Blip:
    """One replica."""

    def __init__(self, peer: Peer) -> None:
        self._model = HuggingFaceBlip(peer.checkpoint, device=peer.device, threads=peer.threads)
        self._answer.set_max_batch_size(peer.max_batch_size)
        self._answer.set_batch_wait_timeout_s(peer.batch_wait_s)

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer one request, with whoever comes at the same time."""
        if request.url.path == "/readyz":
            return JSONResponse({"status": "ready"})
        if request.headers["content-type"].startswith("multipart/form-data"):
            fields: Any = await request.form()
        else:
            fields = await request.json()
        query = self._model.prepare(picture_bytes(fields["image"]), fields["question"])
        return JSONResponse(await self._answer(query))

    @ray_serve.batch  # type: ignore[untyped-decorator]
    async def _answer(self, queries: list[Query]) -> list[dict[str, Any]]:
        return [reply(answer, len(queries)) for answer in self._model.answer(queries)]


def serve(peer: Peer, port: int) -> None:
    """Serve on the loopback address until SIGTERM or SIGINT."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "RAY_USAGE_STATS_ENABLED": "0"}
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    on_gpu = peer.device.startswith("cuda")
    ray.init(
        num_cpus=1,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address=_LOOPBACK,
    )
    # Ray's advice: a replica holds more requests than one batch, so that the next fills while one runs.
    deployment = ray_serve.deployment(
        Blip,
        name="blip",
        max_ongoing_requests=2 * peer.max_batch_size,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if on_gpu else 0},
    )
    try:
        ray_serve.start(http_options={"host": _LOOPBACK, "port": port})
        ray_serve.run(deployment.bind(peer), name="peer")
        stop.wait()
    finally:
        ray_serve.shutdown()
        ray.shutdown()
