"""`make demo-weights`: from the recipe to the committed demo checkpoints, one a task, on one vision tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from madtp_core.data.shapes import ShapesVqa
from madtp_core.data.shapes.scene import Split
from madtp_core.evaluate import ShapesSamples, evaluate
from madtp_core.sharing import share_weights
from madtp_core.tasks import load_model
from madtp_core.tasks.base import PrunedModel
from madtp_core.train.calibrate import calibrate
from madtp_core.train.costs import Cost, CostsInTurn
from madtp_core.train.demo_models import DemoModels
from madtp_core.train.hooks import Hooks
from madtp_core.train.ledger import LEDGER_NAME, Ledger
from madtp_core.train.loop import DTYPES, LoopConfig, TrainTask, seed_everything
from madtp_core.train.loop import train as run
from madtp_core.train.shapes_caption import WriteShapesCaptions
from madtp_core.train.shapes_clip import ClipShapes
from madtp_core.train.shapes_data import ShapesBatches
from madtp_core.train.shapes_describe import DescribeLosses, DescribeShapes, ShapesCaptionBatches
from madtp_core.train.shapes_reasoning import ReasoningLosses, ReasonShapes, ShapesStatementBatches
from madtp_core.train.shapes_retrieval import MatchingLosses, MatchShapes
from madtp_core.train.shapes_vision import ShapesVision
from madtp_core.train.shapes_vqa import ReadingLosses, ReadShapesVqa, ShapesVqaBatches

RECIPE = Path(__file__).parent / "recipes" / "demo.yaml"
ON_TOWER = ("vqa", "caption", "retrieval", "reasoning")  # the shared one
TASKS = (*ON_TOWER, "clip")
CHECKPOINTS = {task: f"blip-{task}-shapes" for task in ON_TOWER} | {"clip": "clip-shapes"}
TOWER = "blip-vision-shapes"


@dataclass(frozen=True)
class DemoRun:
    """One recipe, its working directory for resumable stages, and where the finished checkpoints go."""

    recipe: Mapping[str, Any]
    work: Path
    output: Path

    def make(self, tasks: Sequence[str] = TASKS) -> None:
        """Train, then calibrate and store."""
        self.train(tasks)
        self.store()

    def store(self) -> None:
        """Write a calibrated checkpoint of every task that was trained; a tower they share is stored once.

        Calibrates what will be served, rounding included; goes on where an interrupted calibration stopped.
        """
        trained = [task for task in TASKS if (self.work / task / "model").is_dir()]
        for task in trained:
            self._calibrated(task).save_pretrained(self.output / CHECKPOINTS[task], dtype=self._dtype)
        sharing = [self.output / CHECKPOINTS[task] for task in trained if task in ON_TOWER]
        share_weights(sharing, self.output / TOWER, "vision_model.")

    def _calibrated(self, task: str) -> PrunedModel:
        part, path = self.recipe["calibrate"], self.work / task / "model"
        model = load_model(path)
        mixes = {
            mix: ShapesSamples(
                task, "validation", part["samples"], self.recipe["seed"], mix, model.image_geometry.width
            )
            for mix in part["mixes"]
        }
        about = {"temperature": model.pruning and model.pruning.prune_temperature, **part}
        table = calibrate(
            model,
            mixes,
            batch_sizes=part["batch_sizes"],
            ledger=Ledger(self.work / task / LEDGER_NAME, about),
            progress=True,
        )
        return type(model)(replace(model.checkpoint, calibration=table), name=CHECKPOINTS[task])

    @property
    def _dtype(self) -> torch.dtype:
        return DTYPES[self.recipe["store"]]

    def train(self, tasks: Sequence[str] = TASKS) -> None:
        """Train the shared tower, then the tasks on it; every stage resumes."""
        seed_everything(self.recipe["seed"])
        models = DemoModels(self.recipe)
        stages: dict[str, Callable[[DemoModels], TrainTask]] = {
            "look": self._look,
            "describe": self._describe,
            "vqa": self._vqa,
            "caption": self._caption,
            "retrieval": self._retrieval,
            "reasoning": self._reasoning,
            "clip": self._clip,
        }
        for name, task_of in stages.items():
            if name in TASKS and name not in tasks:
                continue
            loop = LoopConfig(seed=self.recipe["seed"], **self.recipe[name]["loop"])
            seed_everything(loop.seed)  # so that fresh weights do not depend on the stages before
            run(task_of(models), loop, self.work / name)

    def _scenes(self, stage: str) -> ShapesBatches:
        """A stage's scenes: behind those of the stages before it, tasks all from the same one on."""
        part = self.recipe[stage]
        before = {"look": (), "describe": ("look",)}.get(stage, ("look", "describe"))
        first = sum(self.recipe[name]["loop"]["steps"] * self.recipe[name]["scenes"] for name in before)
        scenes = self._split("train", 10**9, part.get("questions", 0), part.get("family_weights"))
        return ShapesBatches(scenes, part["scenes"], first)

    def _split(
        self, split: Split, length: int, questions: int, family_weights: Mapping[str, float] | None = None
    ) -> ShapesVqa:
        size = self.recipe["image"]["size"]
        return ShapesVqa(self.recipe["seed"], split, length, questions, size, family_weights=family_weights)

    def _held_out(self, stage: str) -> ShapesBatches:
        return ShapesBatches(
            self._split("validation", self.recipe["validation_scenes"], 0), self.recipe[stage]["scenes"]
        )

    def _costs(self, stage: str) -> CostsInTurn:
        part = self.recipe[stage]["costs"]
        return CostsInTurn(
            [Cost(*each) for each in part["each"]],
            part["first_temperatures"],
            ramp_steps=part["ramp_steps"],
            gain=part["gain"],
        )

    def _hooks(self, model: PrunedModel, costs: CostsInTurn) -> Hooks:
        """Evaluate and save through the served path, with the temperature that training has reached."""

        def save(directory: Path) -> None:
            config, cost = model.checkpoint.config, costs.first_pruned
            assert config.pruning is not None
            pruning = replace(
                config.pruning,
                keep_mode=cost.keep_mode,
                prune_temperature=costs.saved_temperature,
                flops_ratio=cost.flops_ratio,
            )
            saved = replace(model.checkpoint, config=replace(config, pruning=pruning))
            type(model)(saved).save_pretrained(directory, dtype=self._dtype)

        def evaluated() -> Mapping[str, float]:
            side = model.image_geometry.width
            scenes = self.recipe["validation_scenes"]
            samples = ShapesSamples(model.task, "validation", scenes, self.recipe["seed"], image_size=side)
            cost = costs.first_pruned
            result = evaluate(
                model, samples, prune_temperature=costs.saved_temperature, keep_mode=cost.keep_mode
            )
            return result.figures()

        return Hooks(evaluated, save)

    def _look(self, models: DemoModels) -> TrainTask:
        return ShapesVision(
            models.caption.network,
            models.patch_head,
            self._scenes("look"),
            self._held_out("look"),
            models.geometry,
        )

    def _describe(self, models: DemoModels) -> TrainTask:
        caption, retrieval = models.caption, models.retrieval
        return DescribeShapes(
            caption.network,
            retrieval.network,
            models.patch_head,
            ShapesCaptionBatches(self._scenes("describe"), caption.codec),
            models.geometry,
            self._costs("describe"),
            DescribeLosses(**self.recipe["describe"]["losses"]),
        )

    def _vqa(self, models: DemoModels) -> TrainTask:
        model, costs = models.for_vqa(), self._costs("vqa")
        return ReadShapesVqa(
            model.network,
            ShapesVqaBatches(self._scenes("vqa"), model.codec),
            models.geometry,
            self._hooks(model, costs),
            costs,
            ReadingLosses(**self.recipe["vqa"]["losses"]),
        )

    def _caption(self, models: DemoModels) -> TrainTask:
        model, costs = models.for_caption(), self._costs("caption")
        return WriteShapesCaptions(
            model.network,
            ShapesCaptionBatches(self._scenes("caption"), model.codec),
            models.geometry,
            self._hooks(model, costs),
            costs,
        )

    def _retrieval(self, models: DemoModels) -> TrainTask:
        model, costs = models.for_retrieval(), self._costs("retrieval")
        return MatchShapes(
            model.network,
            model.codec,
            ShapesCaptionBatches(self._scenes("retrieval"), model.codec),
            models.geometry,
            self._hooks(model, costs),
            costs,
            MatchingLosses(**self.recipe["retrieval"]["losses"]),
        )

    def _reasoning(self, models: DemoModels) -> TrainTask:
        model, costs = models.for_reasoning(), self._costs("reasoning")
        part = self.recipe["reasoning"]
        return ReasonShapes(
            model.network,
            ShapesStatementBatches(self._scenes("reasoning"), model.codec, part["statements"]),
            models.geometry,
            self._hooks(model, costs),
            costs,
            ReasoningLosses(**part["losses"]),
        )

    def _clip(self, models: DemoModels) -> TrainTask:
        model, costs = models.for_clip(), self._costs("clip")
        return ClipShapes(
            model.network,
            ShapesCaptionBatches(self._scenes("clip"), model.codec),
            models.geometry,
            self._hooks(model, costs),
            costs,
            DescribeLosses(**self.recipe["clip"]["losses"]),
        )


def read_recipe(path: Path = RECIPE) -> dict[str, Any]:
    """A recipe file as plain values."""
    recipe: dict[str, Any] = yaml.safe_load(path.read_text())
    return recipe
