"""What a recipe file says of a compression: checked once, unknown keys are errors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

import yaml

from madtp_core.config import TASKS, AlignmentConfig
from madtp_core.errors import ConfigError, UnknownNameError
from madtp_core.pruning import MAX_KEEP, PRUNERS
from madtp_core.train.cost_basis import BASES
from madtp_core.train.costs import DENSE, Cost
from madtp_core.train.loop import LoopConfig
from madtp_core.train.momentum import MomentumConfig

FOLDER: Final = Path(__file__).parent / "recipes"
_EXPONENT: Final = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # YAML 1.1 wants a point before the e
_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class SearchRecipe:
    """The search for the prune temperature.

    keep_modes: taken in turn, a step each; `dense` prunes nothing. first_temperature: where the search
    starts. ramp: share of the steps over which the target falls from 1 to flops_ratio. gain: as of
    `TemperatureSearch`. basis: what flops_ratio is a share of (`cost_basis`).
    """

    keep_modes: tuple[str, ...] = (MAX_KEEP,)
    first_temperature: float = 1.0
    ramp: float = 0.1
    gain: float = 0.5
    basis: str = "served"

    def __post_init__(self) -> None:
        for mode in self.keep_modes:
            Cost(mode)
        if not set(self.keep_modes) - {DENSE}:
            raise ConfigError("search.keep_modes needs a mode that prunes")
        if self.first_temperature <= 0 or not 0 <= self.ramp <= 1 or self.gain <= 0:
            raise ConfigError(
                "search needs first_temperature and gain > 0 and ramp in 0..1, got "
                f"{self.first_temperature}, {self.gain} and {self.ramp}"
            )
        if self.basis not in BASES:
            raise UnknownNameError("cost basis", self.basis, BASES)


@dataclass(frozen=True)
class Recipe:
    """One compression.

    epochs: of the data, unless loop.steps is given. batch_size: requests a step, over all processes and
    micro-batches. flops_ratio: wanted share of the dense cost, 1 - p of the paper's reduce ratio p. alpha: of
    the alignment loss. drop_path: of the vision tower's last block. recomputes: activations are computed
    again for the backward pass instead of kept. augments: pictures are changed at random. prompt: what
    captions continue. momentum: of retrieval and CLIP; its soft targets ramp over the first epoch unless
    momentum.soft_ramp_steps is given. loop: fields of `LoopConfig`; steps only in place of epochs. method:
    any pruner, with its options; branches: those that it prunes, empty for the task's own.
    """

    task: str
    batch_size: int
    loop: Mapping[str, Any]
    epochs: float | None = None
    flops_ratio: float = 0.5
    alpha: float = 0.1
    drop_path: float = 0.0
    recomputes: bool = False
    augments: bool = True
    prompt: str = ""
    method: str = "madtp"
    branches: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    search: SearchRecipe = field(default_factory=SearchRecipe)
    momentum: MomentumConfig = field(default_factory=MomentumConfig)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UnknownNameError("task", self.task, TASKS)
        if self.method not in PRUNERS:
            raise UnknownNameError("pruner", self.method, PRUNERS)
        if self.batch_size < 1 or self.alpha < 0 or not 0 <= self.drop_path < 1:
            raise ConfigError(
                "need batch_size >= 1, alpha >= 0 and drop_path in [0, 1), got "
                f"{self.batch_size}, {self.alpha} and {self.drop_path}"
            )
        if not 0 < self.flops_ratio <= 1:
            raise ConfigError(f"flops_ratio must be in (0, 1], got {self.flops_ratio}")
        if self.epochs is None and "steps" not in self.loop:
            raise ConfigError("give epochs, or loop.steps")
        check_known(LoopConfig, self.loop, "loop.")
        self.loop_config(1)

    def loop_config(self, examples: int) -> LoopConfig:
        """The loop over so many examples: epochs of whole steps, evaluated after each unless told."""
        loop = dict(self.loop)
        if "steps" not in loop:
            assert self.epochs is not None
            loop["steps"] = max(1, math.ceil(self.epochs * examples / self.batch_size))
        loop.setdefault("evaluate_every", math.ceil(examples / self.batch_size))
        if "betas" in loop:
            loop["betas"] = tuple(loop["betas"])
        try:
            return LoopConfig(**loop)
        except TypeError as error:
            raise ConfigError(f"loop: {error}") from error


def read_recipe(name: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """A recipe by the name of one of ours or by its path, with changes such as `loop.steps=100`.

    Raises ConfigError for a name or path that is none, a file that is not YAML, or a value that does not fit;
    UnknownNameError for an unknown key, with those that are known.
    """
    path = Path(name)
    if not path.suffix:
        path = FOLDER / f"{name}.yaml"
        if not path.is_file():
            raise UnknownNameError("recipe", str(name), recipe_names())
    try:
        data = _parsed(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"the recipe {str(path)!r} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"the recipe {str(path)!r} must be a mapping, got {data!r}")
    for change in changes:
        _apply(data, change)
    return checked(Recipe, data)


def recipe_names() -> list[str]:
    """Our recipes for whoever has data; the demo's are not among them."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if "task" in yaml.safe_load(path.read_text()))


def checked(kind: type[_Kind], data: Mapping[str, Any], prefix: str = "") -> _Kind:
    """A dataclass from plain values, dataclasses within it too; lists become tuples.

    Raises UnknownNameError for an unknown key and ConfigError for a missing key or a value of another type.
    """
    check_known(kind, data, prefix)
    hints = get_type_hints(kind)
    values = {}
    for name, value in data.items():
        hint = hints[name]
        if is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{prefix}{name} must be a mapping, got {value!r}")
            value = checked(hint, value, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif isinstance(value, list):
            value = tuple(value)
        values[name] = value
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{prefix or 'recipe'}: {error}") from error


def check_known(kind: type[Any], data: Mapping[str, Any], prefix: str) -> None:
    """Raise UnknownNameError for a key that a dataclass has no field for."""
    known = {entry.name for entry in fields(kind)}
    for name in data:
        if name not in known:
            raise UnknownNameError(f"key of {prefix.rstrip('.') or 'a recipe'}", str(name), known)


def _parsed(text: str) -> Any:
    """YAML, in which 1e-5 is a number too."""
    return _with_exponents(yaml.safe_load(text))


def _with_exponents(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_exponents(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_exponents(entry) for entry in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _apply(data: dict[str, Any], change: str) -> None:
    """Set one value: `section.key=value`, the value in YAML."""
    name, equals, text = change.partition("=")
    if not equals or not name:
        raise ConfigError(f"a change must be key=value, as loop.steps=100, got {change!r}")
    *sections, key = name.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{section!r} in {change!r} is a value, not a section")
    try:
        data[key] = _parsed(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{change!r} is not YAML behind its '=': {error}") from error
