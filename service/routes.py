"""The routes: each validates, hands its job to the runtime, and builds the reply."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from service.body import read_fields
from service.errors import ApiError
from service.middleware import error_response
from service.preprocess import prepare_vqa
from service.report import build_reply
from service.runtime import Runtime
from service.schemas import ErrorReply, ReportLevel, ReportQuery, VqaFields, VqaReply, vqa_request_body

router = APIRouter()

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply} for status in (400, 404, 413, 415, 422, 429, 500, 503, 504)
}


@router.post(
    "/v1/vqa",
    tags=["tasks"],
    summary="Ask a question about an image",
    response_model=VqaReply,
    responses=_ERRORS,
    openapi_extra={"requestBody": vqa_request_body()},
)
async def vqa(request: Request, query: Annotated[ReportQuery, Query()]) -> Response:
    """Generates an answer, or ranks the candidates where there are any."""
    runtime = _runtime(request)
    job = runtime.open_job("vqa", request.state.request_id)
    request.state.job = job
    async with runtime.serving(job):
        fields = await _read_vqa(request, runtime)
        level = _report_level(query.report, fields.report)
        engine = runtime.engine(fields.model)
        job.model = engine.name
        if (problem := engine.health()) is not None:
            raise problem
        assert engine.model is not None, "a healthy engine has a model"
        prepare = partial(
            prepare_vqa,
            fields.image,
            fields.question,
            tuple(fields.candidates) if fields.candidates is not None else None,
            fields.num_beams,
            geometry=engine.model.image_geometry,
            limits=runtime.limits,
            asked_s=runtime.clock(),
            clock=runtime.clock,
        )
        await _unless_disconnected(request, runtime.answer(job, engine, prepare))
        content = build_reply(job, level).model_dump_json()
    return Response(content, media_type="application/json")


@router.get("/v1/models", tags=["models"], summary="Every loaded model")
async def models(request: Request) -> dict[str, Any]:
    """Name, phase, pruning, calibration and limits of every model; the first is the default one."""
    runtime = _runtime(request)
    settings = runtime.settings
    limits = {
        name: getattr(settings, name)
        for name in (
            "max_body_bytes",
            "max_image_bytes",
            "max_image_pixels",
            "max_candidates",
            "max_batch_size",
            "max_queue",
            "request_deadline_s",
        )
    }
    return {
        "models": [
            {
                "name": engine.name,
                "task": engine.task,
                "is_default": engine is runtime.engine(None),
                "phase": engine.phase,
                "keep_mode": settings.keep_mode,
                "flops_target": settings.flops_target,
                "prune_temperature": settings.prune_temperature,
                "limits": limits,
                "description": engine.description,
            }
            for engine in runtime.engines.values()
        ]
    }


@router.get("/livez", tags=["probes"], summary="The process answers")
async def livez() -> dict[str, str]:
    """Always 200: a process whose engine has died ends by itself."""
    return {"status": "alive"}


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
    phases = {engine.name: engine.phase for engine in runtime.engines.values()}
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


async def _read_vqa(request: Request, runtime: Runtime) -> VqaFields:
    settings = runtime.settings
    try:
        fields = await read_fields(
            request,
            VqaFields,
            files=("image",),
            repeated=("candidates",),
            max_bytes=settings.max_body_bytes,
        )
    except ClientDisconnect as error:
        raise ApiError("client_closed_request") from error
    if fields.candidates is not None and len(fields.candidates) > settings.max_candidates:
        raise ApiError(
            "invalid_value", f"At most {settings.max_candidates} candidates are allowed.", param="candidates"
        )
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
