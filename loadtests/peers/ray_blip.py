"""BLIP behind Ray Serve with `@serve.batch`: decoded in the replica's handler, answered together."""

from __future__ import annotations

from typing import Any

from ray import serve as ray_serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from deploy.ray.local import local_ray
from loadtests.peers.blip import HuggingFaceBlip, Query
from loadtests.peers.options import Peer
from loadtests.peers.wire import picture_bytes, reply

_MAX_ONGOING = 1024  # more than the load tests ever have inside


class Blip:
    """One replica."""

    def __init__(self, peer: Peer) -> None:
        self._model = HuggingFaceBlip(peer.checkpoint, device=peer.device, threads=peer.threads)
        self._answer.set_max_batch_size(peer.max_batch_size)
        self._answer.set_batch_wait_timeout_s(peer.batch_wait_s)

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer one request, with whoever comes at the same time."""
        if request.method == "GET":
            is_known = request.url.path == "/readyz"
            return JSONResponse({"status": "ready" if is_known else "unknown"}, 200 if is_known else 404)
        if request.headers["content-type"].startswith("multipart/form-data"):
            fields: Any = await request.form()
        else:
            fields = await request.json()
        query = self._model.prepare(picture_bytes(fields["image"]), fields["question"])
        return JSONResponse(await self._answer(query))

    @ray_serve.batch  # type: ignore[untyped-decorator]
    async def _answer(self, queries: list[Query]) -> list[dict[str, Any]]:
        # In the event loop: beside a thread, every step of every request waits for the interpreter.
        answers = self._model.answer(queries)
        return [reply(answer, len(queries)) for answer in answers]


def serve(peer: Peer, port: int) -> None:
    """Serve on the loopback address until SIGTERM or SIGINT."""
    on_gpu = peer.device.startswith("cuda")
    # A replica holds all who wait: a full one is asked again ever more seldom, and its batches stay small.
    deployment = ray_serve.deployment(
        Blip,
        name="blip",
        max_ongoing_requests=_MAX_ONGOING,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if on_gpu else 0},
    )
    with local_ray(cpus=1, port=port) as stop:
        ray_serve.run(deployment.bind(peer), name="peer")
        stop.wait()
