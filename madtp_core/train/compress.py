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
from madtp_core.pruning import BRANCHES, MAX_KEEP, TEXT, VISION
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
        self.batch_size = micro_batch(recipe, self.loop.accumulate, processes.count)
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
        note_or_compare(self.directory, described(self.recipe, self.data, self.model))

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
        network.regimes = regimes_of(recipe)
        options = options_of(recipe, len(self.data.examples))
        options["measure"] = measure_of(search.basis, recipe.task)
        hooks = Hooks(self._evaluate, lambda directory: self.current_model().save_pretrained(directory))
        batches = batches_of(recipe, model, self.data, self.batch_size, self.loop.seed)
        pruning = model.batch_pruning(1.0, 1, MAX_KEEP)
        assert pruning is not None
        options["pruner"] = pruning.pruner
        task = TASKS[recipe.task](network, batches, model.cost_model, hooks, costs, **options)
        task.branches = tuple(branch for branch in BRANCHES if branch in pruning.branches)
        return task

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


def regimes_of(recipe: Recipe) -> dict[str, Regime]:
    """How each branch runs while it is trained."""
    return {
        VISION: Regime(recipe.drop_path, recipe.recomputes),
        TEXT: Regime(recomputes=recipe.recomputes),
    }


def options_of(recipe: Recipe, examples: int) -> dict[str, Any]:
    """What the recipe says to its task's compression, whatever it prunes."""
    options: dict[str, Any] = {"alpha": recipe.alpha}
    if recipe.task in COMPARED:
        options["momentum"] = recipe.momentum
        if not recipe.momentum.soft_ramp_steps:
            epoch = math.ceil(examples / recipe.batch_size)
            options["momentum"] = replace(recipe.momentum, soft_ramp_steps=epoch)
    return options


def batches_of(recipe: Recipe, model: PrunedModel, data: Data, batch_size: int, seed: int) -> ExampleBatches:
    """The examples as the model's micro-batches."""
    of_task: Any = model
    has_decoder = hasattr(of_task.network, "decoder")
    return ExampleBatches(
        data.examples,
        recipe.task,
        of_task.codec,
        model.image_geometry,
        batch_size,
        start_id=of_task.network.decoder().start_id if has_decoder else 0,
        prompt=recipe.prompt,
        augmentation=Augmentation() if recipe.augments and data.may_augment else None,
        seed=seed,
    )


def described(recipe: Recipe, data: Data, model: PrunedModel) -> dict[str, Any]:
    """What must be the same for a run to go on, as plain JSON values."""
    own: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return own | {"loop": None, "epochs": None, "examples": len(data.examples), "model": model.name}


def note_or_compare(directory: Path, own: Mapping[str, Any]) -> None:
    """Note what a directory's run is, or raise CheckpointError where it holds another one's note."""
    if current_processes().is_first:
        path = directory / RUN_JSON
        if not path.exists():
            directory.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(own, indent=1) + "\n")
        elif changed := differing(json.loads(path.read_text()), own, ()):
            raise CheckpointError(
                f"{str(directory)!r} holds a run with another {', '.join(changed)}; go on as it began, "
                "or use a new directory"
            )
    wait_for_all()


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
        method=recipe.method,
        branches=recipe.branches or TASKS[recipe.task].branches,
        options=recipe.options,
        keep_mode=next(mode for mode in recipe.search.keep_modes if mode != "dense"),
        prune_temperature=recipe.search.first_temperature,
        flops_ratio=recipe.flops_ratio,
        batch_size=batch_size,
    )
    geometry = AlignmentConfig(alignment.num_tokens, alignment.dim)
    config = replace(checkpoint.config, alignment=geometry, pruning=pruning)
    fresh = replace(checkpoint, alignment=alignment, config=config, calibration=None)
    return model_class(recipe.task)(fresh, name=model.name, device=str(model.device))


def micro_batch(recipe: Recipe, accumulate: int, processes: int) -> int:
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
