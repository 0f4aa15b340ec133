"""Every setting of the service: from the environment (`MADTP_*`), a `.env` file, or flags; nowhere else."""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import DotEnvSettingsSource

PREFIX = "MADTP_"
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


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
        (ModelSource("blip-vqa-shapes", "checkpoints/blip-vqa-shapes"),),
        description="what to serve: name=directory-or-hub-id,...; the first is the default model",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")

    device: str = Field("cpu", description="torch device of the models: cpu, cuda, cuda:1, ...")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="number format of weights"
    )
    threads: int | None = Field(
        None, ge=1, description="threads of one forward pass; torch's choice if unset"
    )
    preprocess_threads: int = Field(2, ge=1, le=64, description="threads that decode and resize images")

    keep_mode: Literal["max_keep", "per_instance"] = Field(
        "max_keep", description="tokens kept: the batch's largest need (the paper's), or each request's own"
    )
    flops_target: float = Field(
        0.5, gt=0, le=1, description="floating-point operations wanted, spent / dense; 1 serves dense"
    )
    pruning_method: Literal["stp", "topk", "random", "spatial", "evit", "tome", "rollout"] | None = Field(
        None, description="prunes models that have no MADTP weights to flops_target, without training"
    )
    prune_temperature: float | None = Field(
        None, ge=0, description="fixed prune temperature instead of the one calibrated for flops_target"
    )

    max_batch_size: int = Field(32, ge=1, le=1024, description="requests in one batch")
    max_batch_wait_s: float = Field(
        0.005, ge=0, le=1, description="longest wait for batch mates; none when the engine was idle"
    )
    max_queue: int = Field(256, ge=1, description="requests inside the service; one more is answered 429")
    request_deadline_s: float = Field(30.0, gt=0, description="time to answer; after it the answer is 504")
    probe_interval_s: float = Field(15.0, gt=0, description="an engine idle for so long tests itself")
    engine_stall_s: float = Field(60.0, gt=0, description="a batch running for so long makes it not ready")

    max_body_bytes: int = Field(16_000_000, ge=1, description="bytes of a request body")
    max_image_bytes: int = Field(10_000_000, ge=1, description="bytes of an image file")
    max_image_pixels: int = Field(25_000_000, ge=9, description="pixels of an image, read from its header")
    max_candidates: int = Field(64, ge=1, description="candidate answers of one request")

    drain_delay_s: float = Field(0.0, ge=0, description="time to keep listening, not ready, after SIGTERM")
    drain_timeout_s: float = Field(25.0, gt=0, description="time for requests in flight after SIGTERM")

    @field_validator("models", mode="before")
    @classmethod
    def _parse_models(cls, value: Any) -> Any:
        return parse_models(value) if isinstance(value, str) else value

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
    """Reads `name=directory-or-hub-id,...`; raises ValueError on none, a bad name, or one given twice."""
    models: list[ModelSource] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, source = (part.strip() for part in item.partition("="))
        if not equals or not source or not _MODEL_NAME.fullmatch(name):
            raise ValueError(f"expected name=directory-or-hub-id, got {item!r}")
        models.append(ModelSource(name, source))
    names = [model.name for model in models]
    if not models:
        raise ValueError("expected at least one name=directory-or-hub-id")
    if len(set(names)) < len(names):
        raise ValueError(f"every model needs a name of its own, got {', '.join(names)}")
    return tuple(models)


def load_settings(env_file: Path | str | None = ".env", **overrides: Any) -> Settings:
    """Reads overrides, then the environment, then the `.env` file, then defaults; raises SettingsError."""
    _refuse_unknown([f"{PREFIX}{name}" for name in overrides])
    try:
        return Settings(_env_file=env_file, **overrides)
    except ValidationError as error:
        problems = "; ".join(
            f"{PREFIX}{str(problem['loc'][0]).upper()}: {problem['msg']}, got {problem['input']!r}"
            for problem in error.errors()
        )
        raise SettingsError(problems) from error


def _refuse_unknown(names: list[str]) -> None:
    known = sorted(f"{PREFIX}{field.upper()}" for field in Settings.model_fields)
    given = {name.upper() for name in names if name.upper().startswith(PREFIX)}
    if unknown := sorted(given - set(known)):
        nearest = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise SettingsError(f"unknown setting {', '.join(unknown)}{hint}; known: {', '.join(known)}")
