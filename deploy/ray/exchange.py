"""One HTTP request and its reply as plain data, and an ASGI app that answers it within this process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Forwarded:
    """A request whose body was read; `query` is the part of its address after the question mark, encoded."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    status: int
    headers: Headers
    body: bytes


async def answer(app: ASGIApp, request: Forwarded) -> Reply:
    """Have the app answer; when the caller is cancelled, the app sees its client disconnect."""
    is_gone = asyncio.Event()
    to_receive: list[Message] = [{"type": "http.request", "body": request.body, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if to_receive:
            return to_receive.pop()
        await is_gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode(),
        "query_string": request.query,
        "root_path": "",
        "headers": list(request.headers),
        "server": None,
        "client": None,
        "state": {},
    }
    work = asyncio.ensure_future(app(scope, receive, send))
    try:
        await asyncio.shield(work)
    finally:
        is_gone.set()
        await asyncio.wait([work])
    start = next(message for message in sent if message["type"] == "http.response.start")
    body = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
    return Reply(start["status"], tuple(map(tuple, start["headers"])), body)
