"""Around every request: its id, the size of its body, a last resort for errors, one line of log."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from service.errors import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "x-request-id"
LINGER_S = 1.0
SMALL_BODY_BYTES = 65_536
MAX_URL_BYTES = 8192
_ids = random.Random()  # uuid4 asks the kernel, and other threads get the interpreter meanwhile
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def error_response(error: ApiError, request_id: str) -> JSONResponse:
    """An error as every route sends it."""
    return JSONResponse(error.body(request_id), status_code=error.kind.status, headers=error.headers)


class RequestGuard:
    """ASGI middleware; plain ASGI, so that bodies stream and disconnects are seen.

    max_body_bytes: of one request. max_bytes_inside: of all that are inside together; who brings more is
    answered `overloaded`, but one body always has room.
    """

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, max_bytes_inside: int, linger_s: float = LINGER_S
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._inside = _Inside(max(max_bytes_inside, max_body_bytes))
        self._linger_s = linger_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = time.monotonic()
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        body = _Body(scope, receive, self._max_body_bytes, self._inside)
        status = 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if body.is_soon_complete:  # to read the rest is cheaper than another connection
                    await body.discard(self._linger_s)
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                if not body.is_complete:
                    headers["connection"] = "close"
            elif body.is_being_sent and not message.get("more_body", False):
                # Closing on a client that still sends resets the connection, and it may lose the answer.
                await send({**message, "more_body": True})
                await body.discard(self._linger_s)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        try:
            if len(scope["path"]) + len(scope["query_string"]) > MAX_URL_BYTES:
                error = ApiError("bad_request", f"The URL has more than {MAX_URL_BYTES} bytes.")
                await error_response(error, request_id)(scope, receive, send_guarded)
            else:
                await self._app(scope, body.receive, send_guarded)
        except asyncio.CancelledError:  # the server waits no longer; uvicorn would send a 500 of its own
            if not status:
                await error_response(ApiError("draining"), request_id)(scope, receive, send_guarded)
            raise
        except Exception:
            logger.exception("request failed", extra={"request_id": request_id})
            if status:
                raise  # half an answer is out: only closing the connection tells the client
            await error_response(ApiError("internal"), request_id)(scope, receive, send_guarded)
        finally:
            body.release()
            _log(scope, request_id, status, time.monotonic() - began_s)


class _Inside:
    """Bytes of the bodies of all requests inside."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0


class _Body:
    """Counts a body as it streams; `receive` raises ApiError as soon as it is, or says it is, too large.

    What it has received counts as inside until `release`; what is thrown away does not.
    """

    def __init__(self, scope: Scope, receive: Receive, max_bytes: int, inside: _Inside) -> None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        self._announced_bytes = int(length) if length.isdecimal() else 0
        self._receive = receive
        self._max_bytes = max_bytes
        self._inside = inside
        self._received_bytes = self._held_bytes = 0
        self._waits_for_continue = "expect" in headers
        self.is_complete = not self._announced_bytes and "transfer-encoding" not in headers

    @property
    def is_being_sent(self) -> bool:
        """Whether the client is still sending; one that expects `100 Continue` has not begun."""
        return not (self.is_complete or self._waits_for_continue)

    @property
    def is_soon_complete(self) -> bool:
        """Whether what is still being sent is so little that it is most likely here already."""
        return self.is_being_sent and 0 < self._announced_bytes <= SMALL_BODY_BYTES

    async def receive(self) -> Message:
        if self._announced_bytes > self._max_bytes:
            raise self._too_large()
        message = await self._next()
        if self._received_bytes > self._max_bytes:
            raise self._too_large()
        self._hold(self._received_bytes)
        if self._inside.bytes > self._inside.max_bytes:
            self.release()
            raise ApiError("overloaded")
        return message

    def release(self) -> None:
        """The body is not needed any more."""
        self._hold(0)

    def _hold(self, held_bytes: int) -> None:
        self._inside.bytes += held_bytes - self._held_bytes
        self._held_bytes = held_bytes

    async def discard(self, time_s: float) -> None:
        """Reads what still comes, for a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(time_s):
                while not self.is_complete:
                    await self._next()

    async def _next(self) -> Message:
        self._waits_for_continue = False
        message = await self._receive()
        self._received_bytes += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.is_complete = True
        return message

    def _too_large(self) -> ApiError:
        return ApiError("body_too_large", f"The body has more than {self._max_bytes} bytes.")


def _request_id(scope: Scope) -> str:
    """The client's own id where it has a safe form, else a new one."""
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else f"{_ids.getrandbits(128):032x}"


def _log(scope: Scope, request_id: str, status: int, seconds: float) -> None:
    """One line a request, from its record where it has one; never its path as sent, never its contents."""
    route = getattr(scope.get("route"), "path", None)
    fields = {
        "request_id": request_id,
        "method": scope["method"],
        "route": route,
        "status": status,
        "seconds": round(seconds, 6),
    }
    if (job := scope["state"].get("job")) is not None:
        fields |= job.facts()
    is_of_interest = "job" in scope["state"] or status == 401
    logger.log(logging.INFO if is_of_interest else logging.DEBUG, "request", extra=fields)
