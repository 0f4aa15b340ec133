"""Every setting of the service: from the environment (`MADTP_*`), a `.env` file, or flags; nowhere else."""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

import yaml
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import DotEnvSettingsSource

from service.schemas import MAX_ITEMS

PREFIX = "MADTP_"
DEMO_MODELS = "checkpoints"
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MIN_KEY_LENGTH = 16


class SettingsError(ValueError):
    """A setting is unknown or has a value that is not allowed; the message says which and what is."""


class ModelSource(NamedTuple):
    """A model to load: the name it is served under, and a directory or a hub id."""

    name: str
    source: str


class Settings(BaseSettings):
    """What an operator can choose; each field is the variable MADTP_<FIELD> and the flag --<field>."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    host: str = Field("127.0.0.1", description="address to listen on; containers set 0.0.0.0")
    port: int = Field(8000, ge=0, le=65535, description="TCP port")
    models: Annotated[tuple[ModelSource, ...], NoDecode] = Field(
        cast(Any, DEMO_MODELS),
        validate_default=True,
        description="what to serve: name=directory-or-hub-id,..., a YAML file of such pairs, or a folder of "
        "checkpoints; a task's first model is its default",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")
    otel_endpoint: str | None = Field(
        None, description="where OpenTelemetry spans go, OTLP over HTTP; needs the extra otel"
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="keys,... of which every /v1 route wants one as a bearer token; none: open"
    )
    monitoring_key: SecretStr | None = Field(
        None, description="key that probes, /metrics and /docs want as a bearer token; unset: open"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins,... whose pages may call this server, * for all; none: no CORS headers"
    )

    device: str = Field("cpu", description="torch device of the models: cpu, cuda, cuda:1, ...")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="number format of weights"
    )
    threads: int | None = Field(
        None, ge=1, description="threads of one forward pass; torch's choice if unset"
    )
    model_process: Literal["on", "off"] = Field(
        "on", description="models compute in a process of their own, not beside HTTP and decoding"
    )
    preprocess_threads: int = Field(2, ge=1, le=64, description="threads that decode and resize images")

    keep_mode: Literal["max_keep", "per_instance"] = Field(
        "max_keep", description="tokens kept: the batch's largest need (the paper's), or each request's own"
    )
    flops_target: float = Field(
        0.5, gt=0, le=1, description="floating-point operations wanted, spent / dense; 1 serves dense"
    )
    flops_floor: float = Field(
        0.4, gt=0, le=1, description="what quality=fast and overload bring flops_target down to"
    )
    controller: Literal["on", "off"] = Field(
        "on", description="hold flops_target whatever the batches, and lower it before shedding"
    )
    pruning_method: Literal["stp", "topk", "random", "spatial", "evit", "tome", "rollout"] | None = Field(
        None, description="prunes models that have no MADTP weights to flops_target, without training"
    )
    prune_temperature: float | None = Field(
        None, ge=0, description="fixed prune temperature instead of the one that flops_target asks for"
    )

    batching: Literal["sorted", "fifo"] = Field(
        "sorted", description="batches of predicted difficulty alike, or in order of arrival"
    )
    max_batch_size: int = Field(32, ge=1, le=1024, description="requests in one batch")
    max_batch_tokens: int | None = Field(
        None, ge=1, description="predicted tokens in one batch, pads included; unset: no limit"
    )
    max_batch_wait_s: float = Field(
        0.005, ge=0, le=1, description="longest wait for batch mates; none when the engine was idle"
    )
    warm_up_s: float = Field(5.0, ge=0, description="time to try batches of growing size before being ready")
    max_queue: int = Field(256, ge=1, description="requests inside for one model; one more is answered 429")
    max_queue_tokens: int | None = Field(
        None, ge=1, description="their predicted tokens; unset: max_queue unpruned requests of one image"
    )
    request_deadline_s: float = Field(30.0, gt=0, description="time to answer; after it the answer is 504")
    probe_interval_s: float = Field(15.0, gt=0, description="an engine idle for so long tests itself")
    engine_stall_s: float = Field(60.0, gt=0, description="a batch running for so long makes it not ready")
    state_dir: Path | None = Field(
        None, description="writable directory that keeps the difficulty predictors over restarts"
    )

    max_body_bytes: int = Field(16_000_000, ge=1, description="bytes of a request body")
    max_bytes_inside: int = Field(
        1_000_000_000, ge=1, description="bytes of all request bodies inside; more are turned away"
    )
    max_image_bytes: int = Field(10_000_000, ge=1, description="bytes of an image file")
    max_image_pixels: int = Field(25_000_000, ge=9, description="pixels of an image, read from its header")
    max_images: int = Field(16, ge=1, le=MAX_ITEMS, description="images of one request")
    max_candidates: int = Field(
        64, ge=1, le=MAX_ITEMS, description="candidate answers, or texts, of one request"
    )
    image_cache_bytes: int = Field(
        0, ge=0, description="encoded images that each model keeps, per_instance or dense; 0 keeps none"
    )
    image_url_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="hosts,... that images may be fetched from, *.host for all below; none: no URLs"
    )
    image_url_timeout_s: float = Field(5.0, gt=0, description="time for one image's URL, redirects included")

    drain_delay_s: float = Field(0.0, ge=0, description="time to keep listening, not ready, after SIGTERM")
    drain_timeout_s: float = Field(25.0, gt=0, description="time for requests in flight after SIGTERM")

    @field_validator("models", mode="before")
    @classmethod
    def _parse_models(cls, value: Any) -> Any:
        return parse_models(value) if isinstance(value, str) else value

    @field_validator("api_keys", "cors_origins", "image_url_hosts", mode="before")
    @classmethod
    def _parse_list(cls, value: Any) -> Any:
        return tuple(_items(value)) if isinstance(value, str) else value

    @field_validator("api_keys", "monitoring_key")
    @classmethod
    def _check_keys(cls, value: Any) -> Any:
        keys = value if isinstance(value, tuple) else filter(None, [value])
        if any(len(key.get_secret_value()) < _MIN_KEY_LENGTH for key in keys):
            raise ValueError(f"a key needs at least {_MIN_KEY_LENGTH} characters")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Checks the prefix's names before reading any: pydantic-settings ignores unknown ones."""
        in_file = dotenv_settings.env_vars if isinstance(dotenv_settings, DotEnvSettingsSource) else {}
        _refuse_unknown([*os.environ, *in_file])
        return init_settings, env_settings, dotenv_settings


def parse_models(text: str) -> tuple[ModelSource, ...]:
    """Reads `name=directory-or-hub-id,...`, or a YAML file of names and sources, or a folder of checkpoints.

    A checkpoint of a folder is called as its directory. Raises ValueError on none, a bad name, or one given
    twice, and on a file that is not such a mapping.
    """
    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        pairs = _read_pairs(path)
    elif path.is_dir():
        pairs = [(file.parent.name, str(file.parent)) for file in sorted(path.glob("*/config.json"))]
    else:
        pairs = [(name, source) for name, _, source in (item.partition("=") for item in _items(text))]
    models = tuple(ModelSource(name.strip(), source.strip()) for name, source in pairs)
    for model in models:
        if not model.source or not _MODEL_NAME.fullmatch(model.name):
            raise ValueError(f"expected name=directory-or-hub-id, got {model.name!r}")
    names = [model.name for model in models]
    if not models:
        raise ValueError("expected at least one name=directory-or-hub-id, or a folder that holds checkpoints")
    if len(set(names)) < len(names):
        raise ValueError(f"every model needs a name of its own, got {', '.join(names)}")
    return models


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(part, str) for pair in data.items() for part in pair):
        raise ValueError(f"{path} must hold lines of `name: directory-or-hub-id`")
    return list(data.items())


def _items(text: str) -> list[str]:
    """The parts between commas that are not empty."""
    return [item for item in (part.strip() for part in text.split(",")) if item]


def load_settings(env_file: Path | str | None = ".env", **overrides: Any) -> Settings:
    """Reads overrides, then the environment, then the `.env` file, then defaults; raises SettingsError."""
    _refuse_unknown([f"{PREFIX}{name}" for name in overrides])
    try:
        return Settings(_env_file=env_file, **overrides)
    except ValidationError as error:
        raise SettingsError("; ".join(map(_told, error.errors()))) from error


def _told(problem: Any) -> str:
    """One problem for the operator; of a key only its name."""
    name = str(problem["loc"][0])
    value = "" if name.endswith(("_key", "_keys")) else f", got {problem['input']!r}"
    return f"{PREFIX}{name.upper()}: {problem['msg']}{value}"


def _refuse_unknown(names: list[str]) -> None:
    known = sorted(f"{PREFIX}{field.upper()}" for field in Settings.model_fields)
    given = {name.upper() for name in names if name.upper().startswith(PREFIX)}
    if unknown := sorted(given - set(known)):
        nearest = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise SettingsError(f"unknown setting {', '.join(unknown)}{hint}; known: {', '.join(known)}")
