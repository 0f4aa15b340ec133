"""What `madtp.json` says of a checkpoint: frozen, checked once, unknown keys are errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from madtp_core.errors import CheckpointError, ConfigError, UnknownNameError
from madtp_core.parameter_pruning.geometry import ModelGeometry
from madtp_core.pruning import (
    BRANCHES,
    PRUNERS,
    Pruner,
    PruningGeometry,
    build_pruner,
    check_keep_mode,
)
from madtp_core.pruning.scheduled import ScheduledPruner

SCHEMA_VERSION = 1
FIRST_TOKENS = ("enc", "cls")
TASKS = ("vqa", "caption", "retrieval", "reasoning", "clip")
_Config = TypeVar("_Config")


@dataclass(frozen=True)
class AlignmentConfig:
    """MAG's geometry: K alignment tokens of width dim."""

    num_tokens: int = 100
    dim: int = 768

    def __post_init__(self) -> None:
        if self.num_tokens < 1 or self.dim < 1:
            raise ConfigError(
                f"alignment needs num_tokens and dim >= 1, got {self.num_tokens} and {self.dim}"
            )


@dataclass(frozen=True)
class PruningConfig:
    """The pruning a checkpoint was trained for.

    prune_temperature, keep_mode: those of training, at flops_ratio in batches of batch_size. options go to
    the pruner as they are.
    """

    method: str = "madtp"
    branches: tuple[str, ...] = BRANCHES
    keep_mode: str = "max_keep"
    prune_temperature: float = 1.0
    flops_ratio: float | None = None
    batch_size: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in PRUNERS:
            raise UnknownNameError("pruner", self.method, PRUNERS)
        if not self.branches:
            raise ConfigError(f"pruning needs at least one branch of {', '.join(BRANCHES)}")
        for branch in self.branches:
            if branch not in BRANCHES:
                raise UnknownNameError("branch", branch, BRANCHES)
        check_keep_mode(self.keep_mode)
        if self.prune_temperature < 0:
            raise ConfigError(f"prune_temperature must be >= 0, got {self.prune_temperature}")

    @property
    def is_scheduled(self) -> bool:
        """Whether it is set how many tokens stay, and a temperature only switches that on."""
        return issubclass(PRUNERS[self.method], ScheduledPruner)

    def build(self, geometry: PruningGeometry | None = None) -> Pruner:
        """The pruner itself, fitted to a model's geometry; without one it can take no flops_ratio option."""
        return build_pruner(self.method, geometry=geometry, **self.options)


@dataclass(frozen=True)
class MadtpConfig:
    """The contents of `madtp.json`.

    encoder_first_token: what replaces a question's first token, `enc` as in the original BLIP or `cls` as in
    Hugging Face's port. alignment, pruning: None for a model without MAG, which is served dense. geometry:
    what is left of each block after parameter pruning, None for a whole model.
    """

    task: str = "vqa"
    encoder_first_token: str = "cls"
    max_text_tokens: int = 35
    alignment: AlignmentConfig | None = None
    pruning: PruningConfig | None = None
    geometry: ModelGeometry | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UnknownNameError("task", self.task, TASKS)
        if self.encoder_first_token not in FIRST_TOKENS:
            raise UnknownNameError("encoder_first_token", self.encoder_first_token, FIRST_TOKENS)
        if self.max_text_tokens < 3:
            raise ConfigError(f"max_text_tokens must be at least 3, got {self.max_text_tokens}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; a whole model tells no geometry, so that older programs read it."""
        values = asdict(self)
        if self.geometry is None:
            del values["geometry"]
        return values

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MadtpConfig:
        """Read plain values; raises CheckpointError for another schema, ConfigError for unknown keys."""
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise CheckpointError(
                f"madtp.json has schema version {version}, this program reads {SCHEMA_VERSION}"
            )
        parts: dict[str, Any] = dict(data)
        if parts.get("alignment") is not None:
            parts["alignment"] = _checked(AlignmentConfig, parts["alignment"])
        if parts.get("pruning") is not None:
            pruning = dict(parts["pruning"])
            pruning["branches"] = tuple(pruning.get("branches", BRANCHES))
            parts["pruning"] = _checked(PruningConfig, pruning)
        if parts.get("geometry") is not None:
            parts["geometry"] = ModelGeometry.from_dict(parts["geometry"])
        return _checked(cls, parts)


def _checked(kind: type[_Config], data: Mapping[str, Any]) -> _Config:
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    for name in data:
        if name not in known:
            raise UnknownNameError(f"{kind.__name__} key", name, known)
    return kind(**data)
