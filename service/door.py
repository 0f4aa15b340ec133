"""Turns requests away before the framework sees them.

Under overload most are turned away, on the processors that the model computes on: to route and validate a
request that nobody will serve takes longer than to say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from service.middleware import error_response
from service.tasks import TASKS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from service.runtime import Runtime

_TASKS = {task.path: name for name, task in TASKS.items()}


class Door:
    """ASGI middleware: a request to a task all of whose models are full is answered `overloaded` at once."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in _TASKS:
            task, state = _TASKS[scope["path"]], scope["state"]
            if self._runtime.is_full(task):
                state["job"] = self._runtime.open_job(task, state["request_id"], Headers(scope=scope))
                error = self._runtime.turn_away(state["job"])
                await error_response(error, state["request_id"])(scope, receive, send)
                return
        await self._app(scope, receive, send)
