"""Turns requests away before the framework sees them.

Under overload most are turned away, on the processors that the model computes on: to route and validate a
request that nobody will serve takes longer than to say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.errors import ApiError
from service.middleware import error_response
from service.tasks import asked_task

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from service.runtime import Runtime


class Door:
    """ASGI middleware: a request to a task all of whose models are full is answered `overloaded` at once."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (task := asked_task(scope)) is not None and self._runtime.is_full(task):
            error = ApiError("overloaded")
            self._runtime.turn_away(task, scope, error)
            await error_response(error, scope["state"]["request_id"])(scope, receive, send)
            return
        await self._app(scope, receive, send)
