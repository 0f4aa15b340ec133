"""From a model, a recipe and data to a model with fewer parameters: what `madtp prune-parameters` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from madtp_core.checkpoint import MADTP_JSON, Checkpoint
from madtp_core.errors import ConfigError
from madtp_core.evaluate import MEASURES, evaluate
from madtp_core.parameter_pruning.masks import Masks, Within
from madtp_core.parameter_pruning.materialise import without_parameters
from madtp_core.tasks import load_model
from madtp_core.tasks.base import PrunedModel
from madtp_core.train.best import BestRule
from madtp_core.train.compress import (
    TASKS,
    Data,
    batches_of,
    described,
    micro_batch,
    note_or_compare,
    options_of,
    regimes_of,
)
from madtp_core.train.compression import Compression
from madtp_core.train.held_out import HeldOut
from madtp_core.train.hooks import Hooks
from madtp_core.train.loop import LoopConfig, train
from madtp_core.train.parameter_search import MaskSearch, measure_importance
from madtp_core.train.processes import current_processes, wait_for_all
from madtp_core.train.recipe import Recipe

SEARCHED: Final = "search"  # folder of the run in which masks fade out


@dataclass(frozen=True)
class ParameterPruning:
    """How much goes, and how.

    ratio: share of the parameters of all attention heads and feed-forward units. within: given by the whole
    `model`, or by every `tower`. search_steps: over which
    they fade out while the model is trained; 0 takes them out at once, by the gradients of `batches` batches.
    retrain_steps: of what is left, dense; 0 for none.
    """

    ratio: float
    search_steps: int
    retrain_steps: int
    batches: int = 8
    within: Within = "model"

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1 or min(self.search_steps, self.retrain_steps) < 0 or self.batches < 1:
            raise ConfigError(
                "need a ratio in (0, 1), steps >= 0 and batches >= 1, got "
                f"{self.ratio}, {self.search_steps} and {self.retrain_steps}, {self.batches}"
            )


class ParameterPruningRun:
    """Prune a model's parameters, then train what is left; resumes what its directory holds.

    Writes `search/model`, the model without them, and, where it is trained again, `model`, the last, and
    `best`, of those that were evaluated. Everything runs dense: token pruning comes after, by `madtp train`.
    """

    def __init__(
        self, recipe: Recipe, model: PrunedModel, data: Data, directory: Path, wanted: ParameterPruning
    ) -> None:
        if model.task != recipe.task:
            raise ConfigError(f"the recipe is for {recipe.task!r}, {model.name!r} is for {model.task!r}")
        self.recipe, self.model, self.data, self.directory = recipe, model, data, directory
        self.wanted = wanted
        for steps in (wanted.search_steps, wanted.retrain_steps):
            self._loop(steps)  # what cannot work is said before anything is written

    def run(self) -> Path:
        """The directory of the pruned model, trained again where that was wanted.

        Raises CheckpointError where the directory holds a run with other settings.
        """
        about = described(self.recipe, self.data, self.model)
        kept = {name: getattr(self.wanted, name) for name in ("ratio", "search_steps", "batches", "within")}
        note_or_compare(self.directory, about | kept)
        pruned = self.directory / SEARCHED / "model"
        if not (pruned / MADTP_JSON).is_file():
            self._prune(pruned)
        if not self.wanted.retrain_steps:
            return pruned
        left = load_model(pruned, device=str(self.model.device))
        loop = self._loop(self.wanted.retrain_steps)
        best = BestRule(f"{MEASURES[self.recipe.task]}/all")
        train(self._dense_task(left, loop), loop, self.directory, best=best)
        return self.directory / "model"

    def _prune(self, target: Path) -> None:
        steps = self.wanted.search_steps
        loop = self._loop(steps)
        # Before the task, whose momentum copy is masked, too.
        masks = Masks(self.model.checkpoint.model, self.wanted.within)
        masks.shrink(self.wanted.ratio, 1.0)  # refuses a ratio that cannot be reached; changes nothing
        task = self._dense_task(self.model, loop)
        task.hooks = replace(task.hooks, save=lambda directory: self._save(masks, directory))
        if steps:
            train(MaskSearch(task, masks, self.wanted.ratio, steps), loop, target.parent)
        else:
            measure_importance(task, masks, self.wanted.batches)
            masks.shrink(self.wanted.ratio, 0.0)
            if current_processes().is_first:
                task.save(target)
            wait_for_all()
        masks.remove()

    def _save(self, masks: Masks, directory: Path) -> None:
        with masks.removed():
            checkpoint = without_parameters(self.model.checkpoint, masks.kept())
        self._like(self.model, checkpoint).save_pretrained(directory)

    def _dense_task(self, model: PrunedModel, loop: LoopConfig) -> Compression[Any]:
        """The model's task without a cost to hold; alignment tokens, where there are any, learn on."""
        recipe, network = self.recipe, model.network
        size = micro_batch(recipe, loop.accumulate, current_processes().count)
        network.regimes = regimes_of(recipe)
        checkpoint = replace(model.checkpoint, calibration=None)

        def measured() -> Mapping[str, float]:
            samples = HeldOut(self.data.held_out, recipe.task, recipe.prompt, codec=self._codec(model))
            return evaluate(self._like(model, checkpoint), samples, batch_size=size).figures()

        hooks = Hooks(measured, lambda directory: self._like(model, checkpoint).save_pretrained(directory))
        batches = batches_of(recipe, model, self.data, size, loop.seed)
        options = options_of(recipe, len(self.data.examples))
        return TASKS[recipe.task](network, batches, model.cost_model, hooks, **options)

    def _loop(self, steps: int) -> LoopConfig:
        """The recipe's loop over so many steps; where there are none, one of which no step is run."""
        changes = {"steps": steps} if steps else {"steps": 1, "warmup_steps": 0, "hold_steps": 0}
        recipe = replace(self.recipe, loop={**self.recipe.loop, **changes})
        return recipe.loop_config(len(self.data.examples))

    @staticmethod
    def _codec(model: PrunedModel) -> Any:
        of_task: Any = model
        return of_task.codec

    @staticmethod
    def _like(model: PrunedModel, checkpoint: Checkpoint) -> PrunedModel:
        return type(model)(checkpoint, name=model.name, device=str(model.device))
