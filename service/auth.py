"""Who may call: bearer tokens, compared in constant time before anything of a body is read."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from service.errors import ApiError
from service.middleware import error_response
from service.tasks import asked_task

if TYPE_CHECKING:
    from pydantic import SecretStr
    from starlette.types import ASGIApp, Receive, Scope, Send

    from service.runtime import Runtime

_SCHEME = "bearer"


class ApiKeys:
    """ASGI middleware: /v1 wants one of the API keys, all else the monitoring key; unset is open."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime
        settings = runtime.settings
        self._api_keys = _encoded(settings.api_keys)
        self._monitoring_keys = _encoded([settings.monitoring_key] if settings.monitoring_key else [])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            is_api = scope["path"] == "/v1" or scope["path"].startswith("/v1/")
            keys = self._api_keys if is_api else self._monitoring_keys
            if keys and not _is_one_of(_token(Headers(scope=scope)), keys):
                error = ApiError("unauthorized", headers={"www-authenticate": "Bearer"})
                if (task := asked_task(scope)) is not None:
                    self._runtime.turn_away(task, scope, error)
                await error_response(error, scope["state"]["request_id"])(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _encoded(keys: Sequence[SecretStr]) -> tuple[bytes, ...]:
    return tuple(key.get_secret_value().encode() for key in keys)


def _token(headers: Headers) -> bytes:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip().encode("latin-1") if scheme.lower() == _SCHEME else b""


def _is_one_of(token: bytes, keys: Sequence[bytes]) -> bool:
    """Compares with every key, so that the time tells nothing of which one or how much of it fits."""
    return sum(hmac.compare_digest(token, key) for key in keys) > 0
