"""From a model, a recipe and data to a compressed model: what `madtp train` does."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from madtp_core.checkpoint import build_alignment
from madtp_core.config import AlignmentConfig, PruningConfig
from madtp_core.encoder import Regime
from madtp_core.errors import CheckpointError, ConfigError
from madtp_core.evaluate import MEASURES, evaluate
from madtp_core.pruning import BRANCHES, TEXT, VISION
from madtp_core.tasks import model_class
from madtp_core.tasks.base import PrunedModel
from madtp_core.tasks.text import TextCodec
from madtp_core.train.augment import Augmentation
from madtp_core.train.best import FLOPS_RATIO, BestRule
from madtp_core.train.compress_caption import CompressCaption
from madtp_core.train.compress_clip import CompressClip
from madtp_core.train.compress_reasoning import CompressReasoning
from madtp_core.train.compress_retrieval import CompressRetrieval
from madtp_core.train.compress_vqa import CompressVqa
from madtp_core.train.compression import Compression
from madtp_core.train.cost_basis import measure_of
from madtp_core.train.costs import Cost, CostsInTurn
from madtp_core.train.example_batches import ExampleBatches
from madtp_core.train.examples import Examples
from madtp_core.train.held_out import HeldOut
from madtp_core.train.hooks import Hooks
from madtp_core.train.loop import LoopConfig, seed_everything, train
from madtp_core.train.processes import current_processes, wait_for_all
from madtp_core.train.recipe import Recipe
from madtp_core.train.run_state import differing

TASKS: Final[Mapping[str, type[Compression[Any]]]] = {
    "vqa": CompressVqa,
    "caption": CompressCaption,
    "retrieval": CompressRetrieval,
    "reasoning": CompressReasoning,
    "clip": CompressClip,
}
RUN_JSON: Final = "run.json"  # what a run's directory was begun with
COMPARED: Final = ("retrieval", "clip")  # tasks that learn from a batch's other pairs
_PAIRS_MEASURED: Final = 256


@dataclass(frozen=True)
class Data:
    """What is learnt from, what is measured on, and whether pictures may be changed at random."""

    examples: Examples
    held_out: Examples
    may_augment: bool = True


class CompressionRun:
    """One recipe on one model and data; resumes what its directory holds.

    Writes `model` at the end, and `best`: the best of the evaluated models within flops_ratio. Raises
    ConfigError for what cannot work, before anything is written.
    """

    def __init__(self, recipe: Recipe, model: PrunedModel, data: Data, directory: Path) -> None:
        processes = current_processes()
        self.recipe, self.data, self.directory = recipe, data, directory
        self.loop: LoopConfig = recipe.loop_config(len(data.examples))
        self.batch_size = _micro_batch(recipe, self.loop.accumulate, processes.count)
        self.model = prepared(model, recipe, self.batch_size, self.loop.seed)
        of_task: Any = self.model
        self.codec: TextCodec = of_task.codec
        self.task = self._task()

    def train(self) -> dict[str, float]:
        """Train to the end; the last model's figures on held-out data.

        Raises CheckpointError where the directory holds a run of another recipe or other data.
        """
        self._check_same_run()
        rule = BestRule(f"{MEASURES[self.recipe.task]}/all", self.recipe.flops_ratio)
        return train(self.task, self.loop, self.directory, best=rule)

    def current_model(self) -> PrunedModel:
        """The model as training has made it so far, with the prune temperature that it has reached."""
        checkpoint = self.model.checkpoint
        assert checkpoint.config.pruning is not None
        pruning = replace(checkpoint.config.pruning, prune_temperature=self.task.prune_temperature)
        config = replace(checkpoint.config, pruning=pruning)
        return type(self.model)(
            replace(checkpoint, config=config), name=self.model.name, device=str(self.model.device)
        )

    def _check_same_run(self) -> None:
        """Note what this run is, or compare with what the directory's was; the loop compares its own part."""
        if current_processes().is_first:
            self._note_or_compare()
        wait_for_all()

    def _note_or_compare(self) -> None:
        own = json.loads(json.dumps(asdict(self.recipe)))
        own |= {"loop": None, "epochs": None, "examples": len(self.data.examples), "model": self.model.name}
        path = self.directory / RUN_JSON
        if path.exists():
            if changed := differing(json.loads(path.read_text()), own, ()):
                raise CheckpointError(
                    f"{str(self.directory)!r} holds a run with another {', '.join(changed)}; go on as it "
                    "began, or use a new directory"
                )
        else:
            self.directory.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(own, indent=1) + "\n")

    def _task(self) -> Compression[Any]:
        recipe, model = self.recipe, self.model
        search = recipe.search
        costs = CostsInTurn(
            [Cost(mode, recipe.flops_ratio) if mode != "dense" else Cost(mode) for mode in search.keep_modes],
            dict.fromkeys(search.keep_modes, search.first_temperature),
            ramp_steps=round(search.ramp * self.loop.steps),
            gain=search.gain,
        )
        network: Any = model.network
        network.regimes = {
            VISION: Regime(recipe.drop_path, recipe.recomputes),
            TEXT: Regime(recomputes=recipe.recomputes),
        }
        options: dict[str, Any] = {
            "alpha": recipe.alpha,
            "measure": measure_of(search.basis, recipe.task),
        }
        if recipe.task in COMPARED:
            options["momentum"] = recipe.momentum
            if not recipe.momentum.soft_ramp_steps:
                epoch = math.ceil(len(self.data.examples) / recipe.batch_size)
                options["momentum"] = replace(recipe.momentum, soft_ramp_steps=epoch)
        hooks = Hooks(self._evaluate, lambda directory: self.current_model().save_pretrained(directory))
        return TASKS[recipe.task](network, self._batches(), model.cost_model, hooks, costs, **options)

    def _batches(self) -> ExampleBatches:
        model: Any = self.model
        has_decoder = hasattr(model.network, "decoder")
        return ExampleBatches(
            self.data.examples,
            self.recipe.task,
            self.codec,
            model.image_geometry,
            self.batch_size,
            start_id=model.network.decoder().start_id if has_decoder else 0,
            prompt=self.recipe.prompt,
            augmentation=Augmentation() if self.recipe.augments and self.data.may_augment else None,
            seed=self.loop.seed,
        )

    def _evaluate(self) -> Mapping[str, float]:
        """Figures on held-out data; flops_ratio on the basis that the search steers by."""
        recipe, model = self.recipe, self.current_model()
        assert model.pruning is not None
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "prune_temperature": model.pruning.prune_temperature,
            "keep_mode": model.pruning.keep_mode,
        }
        samples = HeldOut(self.data.held_out, recipe.task, recipe.prompt, codec=self.codec)
        figures = evaluate(model, samples, **options).figures()
        if recipe.task in COMPARED:
            pairs = replace(samples, candidates=1)[:_PAIRS_MEASURED]
            figures["flops_ratio/ranking"] = figures[FLOPS_RATIO]
            figures[FLOPS_RATIO] = evaluate(model, pairs, **options).flops_ratio()
        if recipe.search.basis != "served":
            assert self.task.costs is not None
            mean = next(iter(self.task.costs.states.values())).mean
            figures["flops_ratio/served"] = figures[FLOPS_RATIO]
            figures[FLOPS_RATIO] = 1.0 if mean is None else mean
        return figures


def prepared(model: PrunedModel, recipe: Recipe, batch_size: int, seed: int) -> PrunedModel:
    """The model with alignment tokens, fresh ones unless it has its own, and the recipe's pruning.

    Raises ConfigError for a model of another task.
    """
    if model.task != recipe.task:
        raise ConfigError(
            f"the recipe compresses a model for {recipe.task!r}, but {model.name!r} is one for {model.task!r}"
        )
    checkpoint = model.checkpoint
    alignment = checkpoint.alignment
    if alignment is None:
        seed_everything(seed)
        alignment = build_alignment(recipe.alignment, checkpoint.model.config)
    pruning = PruningConfig(
        branches=(VISION,) if recipe.task == "caption" else BRANCHES,
        keep_mode=next(mode for mode in recipe.search.keep_modes if mode != "dense"),
        prune_temperature=recipe.search.first_temperature,
        flops_ratio=recipe.flops_ratio,
        batch_size=batch_size,
    )
    geometry = AlignmentConfig(alignment.num_tokens, alignment.dim)
    config = replace(checkpoint.config, alignment=geometry, pruning=pruning)
    fresh = replace(checkpoint, alignment=alignment, config=config, calibration=None)
    return model_class(recipe.task)(fresh, name=model.name, device=str(model.device))


def _micro_batch(recipe: Recipe, accumulate: int, processes: int) -> int:
    """Requests of one micro-batch of one process."""
    size, left = divmod(recipe.batch_size, accumulate * processes)
    if left or size < 1:
        raise ConfigError(
            f"batch_size {recipe.batch_size} must be a multiple of {accumulate} micro-batches x {processes} "
            "processes"
        )
    if recipe.task in COMPARED and size * processes < 2:
        raise ConfigError(f"{recipe.task} learns from a batch's other pairs: it needs at least 2 at once")
    return size


def check_device(device: str | None) -> str:
    """The device type to train on: CUDA where there is one, unless told; raises ConfigError without it."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device is there; leave out --device, or give cpu")
    return device
