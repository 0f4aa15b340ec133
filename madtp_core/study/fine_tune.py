"""The same short training for every way of pruning: one budget, one starting model, one order of the data."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from madtp_core.config import AlignmentConfig
from madtp_core.errors import ConfigError
from madtp_core.pruning import MAX_KEEP
from madtp_core.study.bench import Bench
from madtp_core.study.variant import GUIDED, Variant
from madtp_core.tasks import load_model, model_class
from madtp_core.tasks.base import PrunedModel
from madtp_core.train.compress import RUN_JSON, CompressionRun, Data, prepared
from madtp_core.train.recipe import Recipe, SearchRecipe

_MODEL: Final = "model"
_SCAFFOLDING: Final = ("last.pt", "best")  # of a run whose model is written
_GAIN: Final = 2.0  # of the temperature's steering: it begins where it should be


@dataclass(frozen=True)
class Budget:
    """What every variant is fine-tuned with, from the same weights.

    steps: of the optimiser; the learning rate rises over the first tenth and falls to zero by a cosine.
    alpha: of the alignment loss, where a variant reads alignment tokens. alignment_tokens: made anew for a
    model that has none. Raises ConfigError for a budget of nothing.
    """

    steps: int = 400
    batch_size: int = 32
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    alpha: float = 0.1
    alignment_tokens: int = 100
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2 or self.learning_rate <= 0:
            raise ConfigError(
                "a budget needs steps >= 1, batch_size >= 2 and learning_rate > 0, got "
                f"{self.steps}, {self.batch_size} and {self.learning_rate}"
            )

    def about(self) -> dict[str, Any]:
        """As it stands beside the results."""
        return {
            **asdict(self),
            "schedule": "a tenth of linear warm-up, then cosine to zero",
            "augments": False,
        }

    def loop(self, seed: int) -> dict[str, Any]:
        """As fields of `LoopConfig`."""
        return {
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "warmup_steps": self.steps // 10,
            "dtype": self.dtype,
            "seed": seed,
            "evaluate_every": 0,
            "checkpoint_every": 50,
            "loader_workers": 0,
        }


@dataclass(frozen=True, eq=False)
class FineTuning:
    """Where all variants start and what they learn from.

    A run lies in a folder of the directory and goes on where it stopped. Every variant prunes from the first
    step on as it will be served, at the setting searched on the starting model; MADTP's temperature is then
    steered by what every batch spends. In a seed all variants see the same examples in the same order.
    """

    start: PrunedModel
    data: Data
    budget: Budget
    bench: Bench
    directory: Path

    def model(
        self, variant: Variant, flops_ratio: float, seed: int, keep_modes: tuple[str, ...] = (MAX_KEEP,)
    ) -> PrunedModel:
        """What the variant is behind the budget; trained now unless it was before.

        keep_modes: those that steps take turns in.
        """
        directory = self.directory / "-".join([variant.name, *keep_modes, f"{flops_ratio:g}", str(seed)])
        if not (directory / _MODEL).is_dir():
            self._run(variant, flops_ratio, seed, keep_modes, directory).train()
        for name in _SCAFFOLDING:
            path = directory / name
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
        trained = load_model(directory / _MODEL, device=str(self.start.device))
        trained.name = self.start.name
        return trained

    def _run(
        self, variant: Variant, flops_ratio: float, seed: int, keep_modes: tuple[str, ...], directory: Path
    ) -> CompressionRun:
        budget, checkpoint = self.budget, self.start.checkpoint
        recipe = Recipe(
            self.start.task,
            budget.batch_size,
            budget.loop(seed),
            flops_ratio=flops_ratio,
            alpha=budget.alpha if variant.method in GUIDED else 0.0,
            augments=False,
            method=variant.method,
            branches=variant.branches,
            options={**variant.options, **({"flops_ratio": flops_ratio} if variant.is_scheduled else {})},
            alignment=AlignmentConfig(budget.alignment_tokens, self.start.vision_geometry.width),
            search=SearchRecipe(keep_modes, ramp=0.0, gain=_GAIN),
        )
        own = replace(checkpoint, model=deepcopy(checkpoint.model), alignment=deepcopy(checkpoint.alignment))
        copy = model_class(self.start.task)(own, name=self.start.name, device=str(self.start.device))
        model = prepared(copy, replace(recipe, method="madtp", options={}), budget.batch_size, seed)
        setting = self._first_setting(model, variant, flops_ratio, keep_modes[0], directory)
        if variant.is_scheduled:
            recipe = replace(recipe, options={**recipe.options, "flops_ratio": setting})
        elif setting > 0:
            recipe = replace(recipe, search=replace(recipe.search, first_temperature=setting))
        return CompressionRun(recipe, model, self.data, directory)

    def _first_setting(
        self, model: PrunedModel, variant: Variant, flops_ratio: float, keep_mode: str, directory: Path
    ) -> float:
        """The setting that training begins with: the one that it began with, if it has."""
        if (directory / RUN_JSON).exists():
            begun = json.loads((directory / RUN_JSON).read_text())
            if variant.is_scheduled:
                return float(begun["options"]["flops_ratio"])
            return float(begun["search"]["first_temperature"])
        size = self.budget.batch_size
        return self.bench.tuned(model, variant, flops_ratio, keep_mode=keep_mode, batch_size=size).setting
