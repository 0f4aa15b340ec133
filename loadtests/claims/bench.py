"""What all claims are measured with: the plan's sizes, the model, settings, and how a service is started."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from loadtests.compare import Say, StartService
from loadtests.requests import PreparedRequest, prepare_requests
from loadtests.scenario import Scenario, Task
from loadtests.server import serving
from madtp_core.checkpoint import read_config
from madtp_core.evaluate import ShapesSamples
from service.local_model import LocalModel
from service.model import Model
from service.settings import ModelSource, Settings, load_settings

FULL_SIZE: dict[str, int] = {}  # options of `blip_config`: BLIP-base is what it builds by itself
TINY_SIZE = {
    "width": 32,
    "heads": 2,
    "vision_blocks": 2,
    "text_blocks": 2,
    "image_size": 64,
    "patch_size": 8,
    "vocabulary": 512,
}


@dataclass(frozen=True)
class Plan:
    """How much is measured; the defaults are what the bars ask for.

    samples: requests of each run of control and keeping. window: requests over which a target is held, after
    as many to settle. requests: of a saturated run of the demo model, in_flight of them at once.
    full_size_requests, full_size_batch: the same of a full-size model, two batches at once. step_s, calm_s:
    of the overload and of the load before and after it. loads: of the keep modes, in unloaded rates.
    """

    checkpoint: str
    samples: int = 5000
    flops_target: float = 0.5
    window: int = 512
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    mixes: tuple[str, ...] = ("uniform", "90:10", "all easy", "all hard")
    rounds: int = 3
    requests: int = 2000
    in_flight: int = 64
    full_size: Mapping[str, int] = field(default_factory=lambda: dict(FULL_SIZE))
    full_size_requests: int = 96
    full_size_batch: int = 8
    latency_requests: int = 200
    step_s: float = 60.0
    calm_s: float = 20.0
    simulated_s: float = 120.0
    loads: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    load_s: float = 25.0

    @classmethod
    def tiny(cls, checkpoint: str) -> Plan:
        """As little as shows that everything runs; its figures mean nothing."""
        return cls(
            checkpoint,
            samples=24,
            window=8,
            batch_sizes=(4,),
            mixes=("90:10",),
            rounds=1,
            requests=24,
            in_flight=4,
            full_size=dict(TINY_SIZE),
            full_size_requests=12,
            full_size_batch=2,
            latency_requests=6,
            step_s=1.0,
            calm_s=1.0,
            simulated_s=8.0,
            loads=(4.0,),
            load_s=1.0,
        )

    def about(self) -> dict[str, Any]:
        """The plan as JSON holds it: what was measured by another one is not gone on with."""
        about: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return about


@dataclass
class Bench:
    """A plan with what it needs, made when it is first asked for. threads: of one forward pass."""

    plan: Plan
    say: Say
    start: StartService = serving
    threads: int = 1
    _samples: dict[str, ShapesSamples] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the model is served as."""
        return Path(self.plan.checkpoint).name

    @cached_property
    def model(self) -> Model:
        """The plan's model in this process."""
        return self.load(self.plan.checkpoint)

    def load(self, checkpoint: str) -> Model:
        """A checkpoint in this process, as the service loads it."""
        return LocalModel.load(ModelSource(Path(checkpoint).name, checkpoint), self.settings()).model

    def settings(self, **changes: Any) -> Settings:
        """Settings of an engine in this process; of the environment nothing but bad names matters."""
        fixed = {"threads": self.threads, "warm_up_s": 0.0, "probe_interval_s": 600.0}
        return load_settings(env_file=None, **fixed | {"flops_target": self.plan.flops_target} | changes)

    def environment(self, checkpoint: str | None = None, **changes: Any) -> dict[str, str]:
        """Settings of a service in a process of its own."""
        source = checkpoint or self.plan.checkpoint
        fixed: dict[str, Any] = {
            "models": f"{Path(source).name}={source}",
            "threads": self.threads,
            "probe_interval_s": 600,
            "flops_target": self.plan.flops_target,
        }
        return {f"MADTP_{name.upper()}": str(value) for name, value in (fixed | changes).items()}

    def samples(self, mix: str) -> ShapesSamples:
        """Labelled requests of the model's task that it was neither trained nor calibrated on."""
        if mix not in self._samples:
            self._samples[mix] = ShapesSamples(self.model.task, "test", self.plan.samples, mix=mix)
        return self._samples[mix]

    def requests(self, count: int, **changes: Any) -> list[PreparedRequest]:
        """Requests to be sent to the model's route; changes: of the scenario that describes them."""
        content: dict[str, Any] = {
            "name": "claims",
            "description": "Requests of a claim.",
            "arrivals": {"kind": "poisson", "rate": 1.0, "duration_s": 10.0},
            "tasks": {self.route: 1.0},
            "distinct_requests": count,
        }
        return prepare_requests(Scenario.model_validate(content | changes))

    @cached_property
    def route(self) -> Task:
        """The task that clients ask the model for."""
        task = read_config(self.plan.checkpoint).task
        return "retrieval" if task == "clip" else task  # type: ignore[return-value]


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Give one list a field: what a raw result holds."""
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
