"""BLIP behind LitServe with its batching: requests are decoded and batched in its worker process."""

# No `from __future__ import annotations`: LitServe reads the type of `request` to know how a body is parsed.
from collections.abc import Sequence
from typing import Any

import litserve

from loadtests.peers.blip import HuggingFaceBlip, Query
from loadtests.peers.options import Peer
from loadtests.peers.wire import picture_bytes, reply


class BlipApi(litserve.LitAPI):  # type: ignore[misc]
    """The four steps of a LitServe API."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(
            max_batch_size=peer.max_batch_size, batch_timeout=peer.batch_wait_s, api_path="/v1/vqa"
        )
        self._peer = peer

    def setup(self, device: str) -> None:
        """Load the model in the worker process."""
        self._model = HuggingFaceBlip(self._peer.checkpoint, device=device, threads=self._peer.threads)

    def decode_request(self, request: litserve.Request, **_: Any) -> Query:
        """Prepare one request."""
        fields: Any = request  # by now the form or the JSON of the body
        return self._model.prepare(picture_bytes(fields["image"]), fields["question"])

    def predict(self, queries: Query | Sequence[Query], **_: Any) -> list[dict[str, Any]]:
        """Answer a batch; LitServe hands over a lone query where a batch holds one at most."""
        batch = [queries] if isinstance(queries, Query) else queries
        return [reply(answer, len(batch)) for answer in self._model.answer(batch)]

    def encode_response(self, output: Any, **_: Any) -> dict[str, Any]:
        """Give an answer as it is sent."""
        found: dict[str, Any] = output[0] if isinstance(output, list) else output
        return found


def serve(peer: Peer, port: int) -> None:
    """Serve on the loopback address until a signal."""
    accelerator = "cuda" if peer.device.startswith("cuda") else "cpu"
    server = litserve.LitServer(BlipApi(peer), accelerator=accelerator, devices=1, healthcheck_path="/readyz")
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
