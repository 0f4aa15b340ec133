"""The Ray Serve application: a gateway before engines, as many as the queued tokens ask for."""

# No `from __future__ import annotations`: Ray reads the type of `build`'s argument to check what it is given.
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import exceptions, serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

from deploy.ray.engine import EngineReplica
from deploy.ray.exchange import Forwarded, Reply
from deploy.ray.gateway import EngineLostError, Gateway
from deploy.ray.routing import LeastTokensRouter
from deploy.ray.scaling import QueuedTokensPolicy
from service.settings import Settings, load_settings

_LOST = (
    exceptions.RayActorError,
    exceptions.WorkerCrashedError,
    exceptions.ObjectLostError,
    DeploymentUnavailableError,
)
_ROUTING_PERIOD_S = 0.5
_HEALTH_PERIOD_S = 2.0
_GATEWAY_PLACES = 10_000  # the engines' own admission turns requests away, and says when to come again


class Options(BaseModel):
    """What can be chosen beside the service's own settings, which replicas read from their environment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engines: int = Field(2, ge=1, description="engines at least, and at the start")
    max_engines: int = Field(2, ge=1, description="engines at most")
    gateways: int = Field(1, ge=1, description="gateways; what one holds when it dies is lost to its clients")
    routing: Literal["tokens", "requests"] = Field(
        "tokens", description="the engine with the fewest predicted tokens inside, or Serve's own choice"
    )
    queued_tokens: float = Field(2000, gt=0, description="predicted tokens waiting that ask for one engine")
    cpus: float = Field(1, ge=0, description="processors of one engine, as Ray counts them")
    gpus: float = Field(0, ge=0, description="GPUs of one engine")

    @model_validator(mode="after")
    def _bounded(self) -> "Options":
        if self.max_engines < self.engines:
            raise ValueError(f"max_engines is {self.max_engines}, below engines, {self.engines}")
        return self


class ServedEngine(EngineReplica):
    """An engine as Serve constructs and destroys it."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Serve awaits it
        super().__init__(load_settings())
        await self.ready()

    def __del__(self) -> None:
        """Called by Serve when the last request has left."""
        self.stop()


class ServedGateway:
    """The gateway as Serve calls it."""

    def __init__(self, engine: DeploymentHandle) -> None:
        settings = load_settings()
        self._engine = engine
        self._gateway = Gateway(
            self._ask, max_body_bytes=settings.max_body_bytes, deadline_s=settings.request_deadline_s
        )

    async def __call__(self, request: Request) -> Response:
        """Answer a client's request."""
        return await self._gateway(request)

    async def _ask(self, request: Forwarded) -> Reply:
        try:
            reply: Reply = await self._engine.serve.remote(request)
        except _LOST as error:
            raise EngineLostError from error
        return reply


def build(options: Options) -> serve.Application:
    """Bind the application; the import path of `serve run` and of a RayService."""
    settings = load_settings()
    shutdown = {"graceful_shutdown_timeout_s": settings.drain_timeout_s, "graceful_shutdown_wait_loop_s": 0.5}
    engine = serve.deployment(
        ServedEngine,
        name="engine",
        max_ongoing_requests=_places(settings),
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        health_check_period_s=_HEALTH_PERIOD_S,
        request_router_config=_router(options),
        **_number(options),
        **shutdown,
    )
    gateway = serve.deployment(
        ServedGateway,
        name="gateway",
        num_replicas=options.gateways,
        max_ongoing_requests=_GATEWAY_PLACES,
        ray_actor_options={"num_cpus": 0},
        **shutdown,
    )
    return gateway.bind(engine.bind())


def _places(settings: Settings) -> int:
    """More than the models let in together, so that it is they who refuse."""
    return (settings.max_queue + 1) * len(settings.models) + settings.max_queue


def _router(options: Options) -> RequestRouterConfig:
    if options.routing == "requests":
        return RequestRouterConfig()
    return RequestRouterConfig(
        request_router_class=LeastTokensRouter, request_routing_stats_period_s=_ROUTING_PERIOD_S
    )


def _number(options: Options) -> dict[str, Any]:
    if options.engines == options.max_engines:
        return {"num_replicas": options.engines}
    policy = AutoscalingPolicy(
        policy_function=QueuedTokensPolicy, policy_kwargs={"tokens_per_replica": options.queued_tokens}
    )
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=options.engines,
            max_replicas=options.max_engines,
            upscale_delay_s=5,
            downscale_delay_s=120,
            policy=policy,
        )
    }
