"""A scenario: what is sent, when, and what counts as good; read from YAML, checked once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from loadtests.arrivals import Segment, arrival_times_s, read_trace_s
from loadtests.errors import LoadTestError

Task = Literal["vqa", "caption", "reasoning", "retrieval", "embeddings"]
Band = Literal["natural", "easy", "middle", "hard"]
Format = Literal["png", "jpeg", "webp"]
Quality = Literal["exact", "balanced", "fast"]

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


def parse_size(text: str) -> tuple[int, int]:
    """Read `640x480` as (width, height) in pixels; raises ValueError for anything else."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"wanted a size such as 640x480, got {text!r}")
    return int(match[1]), int(match[2])


def _check_size(text: str) -> str:
    parse_size(text)
    return text


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Constant(_Strict):
    rate: _Positive
    duration_s: _Positive

    def segments(self) -> list[Segment]:
        return [Segment(self.duration_s, self.rate, self.rate)]


class Poisson(_Constant):
    """Independent arrivals at a constant rate."""

    kind: Literal["poisson"]
    cv: Literal[1] = 1


class Gamma(_Constant):
    """Bursts: gaps with the coefficient of variation `cv`; 1 is Poisson, 0 a clock."""

    kind: Literal["gamma"]
    cv: Annotated[float, Field(ge=0, le=20)]


class Ramp(_Strict):
    """Poisson arrivals whose rate changes linearly."""

    kind: Literal["ramp"]
    start_rate: _NotNegative
    end_rate: _NotNegative
    duration_s: _Positive
    cv: Annotated[float, Field(ge=0, le=20)] = 1

    @model_validator(mode="after")
    def _some(self) -> Ramp:
        if self.start_rate + self.end_rate <= 0:
            raise ValueError("start_rate or end_rate must be above 0")
        return self

    def segments(self) -> list[Segment]:
        return [Segment(self.duration_s, self.start_rate, self.end_rate)]


class Step(_Strict):
    """One step: a rate, and how long it is held."""

    rate: _NotNegative
    duration_s: _Positive


class Steps(_Strict):
    """Poisson arrivals whose rate jumps."""

    kind: Literal["steps"]
    steps: Annotated[list[Step], Field(min_length=1)]
    cv: Annotated[float, Field(ge=0, le=20)] = 1

    @model_validator(mode="after")
    def _some(self) -> Steps:
        if not any(step.rate for step in self.steps):
            raise ValueError("one step must have a rate above 0")
        return self

    def segments(self) -> list[Segment]:
        return [Segment(step.duration_s, step.rate, step.rate) for step in self.steps]


class Trace(_Strict):
    """Send times from a file (see `read_trace_s`); a path is relative to the scenario's folder."""

    kind: Literal["trace"]
    path: str


Arrivals = Annotated[Poisson | Gamma | Ramp | Steps | Trace, Field(discriminator="kind")]
_Mix = Annotated[dict[str, _NotNegative], Field(min_length=1)]


class Slo(_Strict):
    """A request is good when it is answered in time. The objective holds when enough are, and none failed."""

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.99
    times_unloaded_median: _Positive = 10
    latency_s: _Positive | None = Field(None, description="instead of a multiple of the unloaded median")

    def limit_s(self, unloaded_median_s: float) -> float:
        """The latency up to which an answer is good."""
        return self.latency_s or self.times_unloaded_median * unloaded_median_s


class Images(_Strict):
    """Scenes are drawn at 96 x 96 and scaled to a size drawn from `sizes`, encoded in one of `formats`."""

    sizes: dict[Annotated[str, AfterValidator(_check_size)], _NotNegative] = {"96x96": 1}
    formats: dict[Format, _NotNegative] = {"png": 1}


class Scenario(_Strict):
    """Everything that a run is made of; weights of a mix are relative, they need not sum to 1."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    description: str
    arrivals: Arrivals
    rate_unit: Literal["per_s", "unloaded"] = Field(
        "per_s", description="unloaded: rates are multiples of what is answered one at a time, 1 / median"
    )
    warm_up_s: _NotNegative = 5.0
    tasks: dict[Task, _NotNegative] = {"vqa": 1}
    models: dict[Task, str] = Field({}, description="the model to name for a task; none: the server's choice")
    difficulty: dict[Band, _NotNegative] = {"natural": 1}
    images: Images = Images()
    encoding: Literal["multipart", "json"] = "multipart"
    texts: Annotated[int, Field(ge=2, le=64)] = Field(8, description="candidates of one retrieval")
    quality: dict[Quality, _NotNegative] | None = None
    flops_target: Annotated[float, Field(gt=0, le=1)] | None = None
    slo: Slo = Slo()
    timeout_s: _Positive = 60.0
    distinct_requests: Annotated[int, Field(ge=1, le=100_000)] = 400
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    seed: int = 0
    folder: str = Field(".", exclude=True, description="where a trace's path begins; set by the reader")

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        for field in ("tasks", "difficulty", "quality"):
            mix = getattr(self, field)
            if mix is not None and not sum(mix.values()) > 0:
                raise ValueError(f"{field}: some weight must be above 0")
        for field in ("sizes", "formats"):
            if not sum(getattr(self.images, field).values()) > 0:
                raise ValueError(f"images.{field}: some weight must be above 0")
        if self.quality is not None and self.flops_target is not None:
            raise ValueError("quality and flops_target exclude each other")
        if not isinstance(self.arrivals, Trace) and self.warm_up_s >= self.planned_s():
            raise ValueError(f"warm_up_s is {self.warm_up_s}, but the load lasts {self.planned_s()} s")
        return self

    def planned_s(self) -> float:
        """How long requests are sent, in seconds, warm-up included; of a trace: until its last time."""
        if isinstance(self.arrivals, Trace):
            return read_trace_s(Path(self.folder, self.arrivals.path))[-1]
        return sum(segment.duration_s for segment in self.arrivals.segments())

    def lasting(self, duration_s: float) -> Scenario:
        """Let this load last another time, a fifth of it warm-up; raises LoadTestError for steps, traces."""
        if isinstance(self.arrivals, Steps | Trace):
            raise LoadTestError(f"{self.name}: a load of the kind {self.arrivals.kind} has its own duration")
        arrivals = self.arrivals.model_copy(update={"duration_s": duration_s})
        return self.model_copy(update={"arrivals": arrivals, "warm_up_s": duration_s / 5})

    def mean_rate(self) -> float:
        """Requests a second in the mean, in the scenario's unit."""
        if isinstance(self.arrivals, Trace):
            return len(read_trace_s(Path(self.folder, self.arrivals.path))) / self.planned_s()
        expected = sum(segment.expected for segment in self.arrivals.segments())
        return expected / self.planned_s()

    def schedule_s(self, *, factor: float = 1.0, seed: int | None = None) -> list[float]:
        """Draw the send times, every rate times `factor`; raises LoadTestError for a trace and a factor."""
        if isinstance(self.arrivals, Trace):
            if factor != 1:
                raise LoadTestError(f"{self.name}: a trace is played as it is, it has no rate to change")
            return read_trace_s(Path(self.folder, self.arrivals.path))
        scaled = [
            Segment(segment.duration_s, segment.start_per_s * factor, segment.end_per_s * factor)
            for segment in self.arrivals.segments()
        ]
        return arrival_times_s(scaled, self.arrivals.cv, self.seed if seed is None else seed)


_Model = TypeVar("_Model", bound=BaseModel)


def read_checked(path: Path, model: type[_Model], **extra: Any) -> _Model:
    """Read a YAML file as a pydantic model; raises LoadTestError with every wrong field's name."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise LoadTestError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LoadTestError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise LoadTestError(f"{path}: wanted fields at the top, got {type(content).__name__}")
    try:
        return model.model_validate(content | extra)
    except ValidationError as error:
        problems = "".join(f"\n  {_said(problem)}" for problem in error.errors())
        raise LoadTestError(f"{path}:{problems}") from error


_PLAIN = {
    "extra_forbidden": "there is no such field",
    "missing": "is missing",
    "union_tag_not_found": "`kind` is missing",
}


def _said(problem: ErrorDetails) -> str:
    """Say where a file is wrong, what was wanted, and what was found."""
    where = ".".join(str(part) for part in problem["loc"] if part != "[key]") or "file"
    if (plain := _PLAIN.get(problem["type"])) is not None:
        return f"{where}: {plain}"
    found = "" if isinstance(problem["input"], dict) else f", got {problem['input']!r}"
    return f"{where}: {problem['msg']}{found}"


def read_scenario(path: Path) -> Scenario:
    """Read and check a scenario's file; raises LoadTestError."""
    return read_checked(path, Scenario, folder=str(path.parent))
