"""The application factory: settings and models in, one FastAPI app out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from service.auth import ApiKeys
from service.body import field_error
from service.door import Door
from service.errors import ApiError
from service.local_model import LocalModel
from service.middleware import REQUEST_ID_HEADER, RequestGuard, error_response
from service.model import Computing, Model
from service.model_process import ModelProcess
from service.remote_model import RemoteModel
from service.routes import build_router
from service.runtime import Runtime
from service.settings import ModelSource, Settings, load_settings

DESCRIPTION = """
Vision-language models whose tokens are pruned by MADTP. Every answer comes with a report of what it cost:
tokens kept in each branch, floating-point operations spent and saved, and where the time went.

Errors of every route have one shape; `docs/api.md` holds the table of their codes.
"""
_HTTP_CODES = {400: "bad_request", 404: "route_not_found", 405: "method_not_allowed"}


def create_app(settings: Settings | None = None, models: Mapping[str, Model] | None = None) -> FastAPI:
    """Builds the app; models are loaded in the background once it runs.

    `settings` default to the environment. `models` are served instead of those that the settings name. Raises
    SettingsError.
    """
    settings = settings or load_settings()
    process = None
    if models is None and settings.model_process == "on":
        process = ModelProcess([model.name for model in settings.models])
    runtime = Runtime(settings, _loaders(settings, models, process))
    if process is not None:
        runtime.metrics.add_process(process.pid)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        runtime.start()
        yield
        await asyncio.to_thread(runtime.stop)

    app = FastAPI(
        title="madtp-serve",
        version="1",
        description=DESCRIPTION,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.runtime, app.state.model_process = runtime, process
    app.add_middleware(Door, runtime=runtime)
    app.add_middleware(ApiKeys, runtime=runtime)
    app.add_middleware(
        RequestGuard, max_body_bytes=settings.max_body_bytes, max_bytes_inside=settings.max_bytes_inside
    )
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, **_cors(settings))
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_query)
    app.include_router(build_router())
    return app


def _loaders(
    settings: Settings, models: Mapping[str, Model] | None, process: ModelProcess | None
) -> dict[str, Callable[[], Computing]]:
    if models is not None:
        return {name: partial(LocalModel, model, settings.device) for name, model in models.items()}
    load: Callable[[ModelSource, Settings], Computing] = LocalModel.load
    if process is not None:
        load = partial(RemoteModel.load, process)
    return {model.name: partial(load, model, settings) for model in settings.models}


def _cors(settings: Settings) -> dict[str, Any]:
    """What pages of other origins may do: all that the API offers, without cookies."""
    return {
        "allow_origins": settings.cors_origins,
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["authorization", "content-type", REQUEST_ID_HEADER],
        "expose_headers": [REQUEST_ID_HEADER, "retry-after"],
    }


async def _on_api_error(request: Request, error: Exception) -> Response:
    return error_response(cast(ApiError, error), request.state.request_id)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Errors of the framework itself: no such route, no such method."""
    error = cast(HTTPException, error)
    known = ApiError(_HTTP_CODES.get(error.status_code, "internal"), headers=error.headers)
    return error_response(known, request.state.request_id)


async def _on_invalid_query(request: Request, error: Exception) -> Response:
    """A query parameter is unknown or has a value that is not allowed."""
    problems = [
        {**problem, "loc": problem["loc"][1:]} for problem in cast(RequestValidationError, error).errors()
    ]
    return error_response(field_error(problems), request.state.request_id)
