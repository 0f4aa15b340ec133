"""In front of the engines: reads a request once, and asks another engine when the first one dies on it."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.responses import Response

from deploy.ray.exchange import Forwarded, Reply
from service.errors import ApiError
from service.middleware import REQUEST_ID_HEADER, error_response

if TYPE_CHECKING:
    from starlette.requests import Request

logger = logging.getLogger(__name__)

UNAVAILABLE = 503
_RETRY_WAIT_S = 0.2
_HOP_BY_HOP = frozenset({b"connection", b"transfer-encoding", b"content-length", b"expect", b"keep-alive"})
_NOT_PASSED_BACK = _HOP_BY_HOP | {REQUEST_ID_HEADER.encode()}  # Serve sets that one itself, to the same


class EngineLostError(Exception):
    """The engine that had the request died or went away, and gave no answer."""


class Gateway:
    """Answers requests by asking engines.

    `ask` gives one engine's reply and raises EngineLostError. A request that got none, or "not now" (503: an
    engine that drains or has failed), is asked again: every route is a function of its request alone, so
    asking twice does no harm. `deadline_s` bounds all attempts together.
    """

    def __init__(
        self,
        ask: Callable[[Forwarded], Awaitable[Reply]],
        *,
        max_body_bytes: int,
        deadline_s: float,
        attempts: int = 5,
        retry_wait_s: float = _RETRY_WAIT_S,
    ) -> None:
        self._ask = ask
        self._max_body_bytes = max_body_bytes
        self._deadline_s = deadline_s
        self._attempts = attempts
        self._retry_wait_s = retry_wait_s

    async def __call__(self, request: Request) -> Response:
        """Give the engine's answer as it is, or an error in the service's own shape."""
        try:
            async with asyncio.timeout(self._deadline_s):
                reply = await self._persistently(await self._read(request))
        except ApiError as error:
            return error_response(error, _request_id(request))
        except TimeoutError:
            return error_response(ApiError("deadline_exceeded"), _request_id(request))
        response = Response(reply.body, reply.status)
        response.raw_headers[:] = [pair for pair in reply.headers if pair[0].lower() not in _NOT_PASSED_BACK]
        response.headers["content-length"] = str(len(reply.body))
        return response

    async def _read(self, request: Request) -> Forwarded:
        """Raises ApiError: the body is larger than the service allows."""
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._max_body_bytes:
                raise ApiError("body_too_large", f"The body has more than {self._max_body_bytes} bytes.")
            parts.append(part)
        kept = (pair for pair in request.headers.raw if pair[0].lower() not in _HOP_BY_HOP)
        return Forwarded(
            method=request.method,
            path=request.url.path,
            query=request.scope["query_string"],
            headers=(*kept, (b"content-length", str(size).encode())),
            body=b"".join(parts),
        )

    async def _persistently(self, request: Forwarded) -> Reply:
        """Raises ApiError when no attempt got a reply."""
        reply = None
        for attempt in range(self._attempts):
            if attempt:
                await asyncio.sleep(self._retry_wait_s * 2 ** (attempt - 1))
            try:
                reply = await self._ask(request)
            except EngineLostError as error:
                logger.warning("engine lost", extra={"attempt": attempt + 1, "reason": repr(error.__cause__)})
                continue
            if reply.status != UNAVAILABLE:
                break
        if reply is None:
            raise ApiError("engine_failed")
        return reply


def _request_id(request: Request) -> str:
    return request.headers.get(REQUEST_ID_HEADER) or uuid.uuid4().hex
