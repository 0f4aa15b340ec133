"""The routes: one for each task, the list of models, probes and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from service.body import read_fields
from service.catalogue import listed
from service.errors import ApiError
from service.middleware import error_response
from service.openapi import request_body
from service.report import build_reply
from service.runtime import Runtime
from service.schemas import ErrorReply, ReportLevel, ReportQuery, RequestFields
from service.tasks import TASKS
from service.tasks.base import Task

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply} for status in (400, 401, 404, 413, 415, 422, 429, 500, 503, 504)
}
router = APIRouter()


def build_router() -> APIRouter:
    """All routes, in the order of the docs."""
    routes = APIRouter()
    for task in TASKS.values():
        routes.add_api_route(
            task.path,
            _handler(task),
            methods=["POST"],
            tags=["tasks"],
            name=task.name,
            summary=task.summary,
            description=task.description,
            response_model=task.reply,
            responses=_ERRORS,
            openapi_extra={"requestBody": request_body(task)},
        )
    routes.include_router(router)
    return routes


def _handler(task: Task) -> Callable[..., Awaitable[Response]]:
    async def serve(request: Request, query: Annotated[ReportQuery, Query()]) -> Response:
        runtime = _runtime(request)
        job = runtime.open_job(task.name, request.state.request_id, request.headers)
        request.state.job = job
        async with runtime.serving(job):
            fields = await _read(request, runtime, task)
            level = _report_level(query.report, fields.report)
            engine = runtime.assign(job, fields)
            await _unless_disconnected(request, runtime.answer(job, engine, fields))
            content = build_reply(job, level).model_dump_json()
        return Response(content, media_type="application/json")

    return serve


@router.get("/v1/models", tags=["models"], summary="Every loaded model")
async def models(request: Request) -> dict[str, Any]:
    """Name, phase, pruning, calibration and limits of every model; the first is the default one."""
    return listed(_runtime(request))


@router.get(
    "/livez", tags=["probes"], summary="The process need not be restarted", responses={503: _ERRORS[503]}
)
async def livez(request: Request) -> Response:
    """200 unless a batch hangs for good; a process whose engine has died ends by itself."""
    if any(engine.is_hung for engine in _runtime(request).fleet.engines.values()):
        return error_response(ApiError("engine_failed"), request.state.request_id)
    return JSONResponse({"status": "alive"})


@router.get("/readyz", tags=["probes"], summary="Requests will be served", responses={503: _ERRORS[503]})
async def readyz(request: Request) -> Response:
    """200 when every model is warmed up and its last batch or probe passed, and none stalls."""
    if (problem := _runtime(request).health()) is not None:
        return error_response(problem, request.state.request_id)
    return JSONResponse({"status": "ready"})


@router.get("/startupz", tags=["probes"], summary="How far the start is", responses={503: _ERRORS[503]})
async def startupz(request: Request) -> Response:
    """200 once every model is warmed up; before that 503, with the phase of each beside the error."""
    runtime = _runtime(request)
    phases = {engine.name: engine.phase for engine in runtime.fleet.engines.values()}
    content: dict[str, Any] = {"phase": runtime.phase, "models": phases}
    if runtime.phase in ("ready", "draining"):
        return JSONResponse(content)
    problem = runtime.health() or ApiError("engine_failed")
    return JSONResponse(problem.body(request.state.request_id) | content, status_code=problem.kind.status)


@router.get("/metrics", tags=["probes"], summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Text in Prometheus' format."""
    source = _runtime(request).metrics
    return Response(source.render(), headers={"content-type": source.content_type})


def _runtime(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


async def _read(request: Request, runtime: Runtime, task: Task) -> RequestFields:
    settings = runtime.settings
    try:
        fields = await read_fields(request, task.fields, max_bytes=settings.max_body_bytes)
    except ClientDisconnect as error:
        raise ApiError("client_closed_request") from error
    for name, most in (
        ("candidates", settings.max_candidates),
        ("texts", settings.max_candidates),
        ("images", settings.max_images),
    ):
        if len(getattr(fields, name, None) or ()) > most:
            raise ApiError("invalid_value", f"At most {most} {name} are allowed.", param=name)
    return fields


def _report_level(in_query: ReportLevel | None, in_body: ReportLevel | None) -> ReportLevel:
    if in_query and in_body and in_query != in_body:
        raise ApiError("duplicate_field", "The query and the body ask for different reports.", param="report")
    return in_query or in_body or "summary"


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, None]) -> None:
    """Runs the work, and cancels it when the client goes away first."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError("client_closed_request")
        task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
