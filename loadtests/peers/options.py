"""A peer of a comparison, and how its process is started."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from loadtests.server import free_port, started

Framework = Literal["litserve", "ray"]


class Peer(BaseModel):
    """What serves Hugging Face's BLIP, with which weights, threads and batches.

    The framework must be installed where the load test runs (the extra `peers`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    framework: Framework
    checkpoint: str
    device: str = "cpu"
    threads: Annotated[int, Field(ge=1)] = 1
    max_batch_size: Annotated[int, Field(ge=1)] = 32
    batch_wait_s: Annotated[float, Field(ge=0)] = 0.005

    def flags(self) -> list[str]:
        """Give what `python -m loadtests.peers` is told."""
        chosen = self.model_dump(exclude={"framework"})
        pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in chosen.items()]
        return [self.framework, *(word for pair in pairs for word in pair)]

    def settings(self) -> dict[str, str]:
        """Give what a report shows of it."""
        return {name: str(value) for name, value in self.model_dump().items()}


@contextmanager
def serving_peer(peer: Peer) -> Iterator[str]:
    """Start a peer on a free loopback port and give its address once it answers; raises LoadTestError."""
    port = free_port()
    command = [sys.executable, "-m", "loadtests.peers", *peer.flags(), "--port", str(port)]
    with started(command, {}, f"http://127.0.0.1:{port}") as server:
        yield server.url
