"""`make demo-weights`: from the recipe to the committed demo checkpoints, one a task, on one vision tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from madtp_core.checkpoint import Checkpoint
from madtp_core.data.shapes import ShapesVqa
from madtp_core.data.shapes.scene import Split
from madtp_core.evaluate import ShapesSamples, evaluate
from madtp_core.pruning import MAX_KEEP
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
READERS = {"retrieval", "reasoning"}  # whose text encoders start as the one that reads for questions
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

    def train(self, tasks: Sequence[str] = TASKS) -> None:
        """Run the recipe's stages in their order, those of other tasks left out; every stage resumes.

        Retrieval and reasoning start from the question encoder, which is trained for them too.

        A stage is of a kind, its own name unless it says: `look` and `describe` train the tower, the others
        are tasks. A later stage of a kind goes on with what the earlier one trained, its heads included.
        """
        wanted = {*tasks, *(("vqa",) if READERS & {*tasks} else ())}
        seed_everything(self.recipe["seed"])
        models, before, first_scene = DemoModels(self.recipe), dict[str, TrainTask](), 0
        for name, part in self.recipe["stages"].items():
            kind = part.get("kind", name)
            if kind not in TASKS or kind in wanted:
                loop = LoopConfig(seed=self.recipe["seed"], **part["loop"])
                seed_everything(loop.seed)  # so that fresh weights do not depend on the stages before
                task = self._task(kind, models, part, first_scene)
                if kind in before:
                    task.modules.load_state_dict(before[kind].modules.state_dict())
                run(task, loop, self.work / name)
                before[kind] = task
            first_scene += part["loop"]["steps"] * part["scenes"]

    def store(self) -> None:
        """Write a checkpoint of every task that was trained, calibrated if it prunes; a shared tower once.

        Calibrates what will be served, rounding included; goes on where an interrupted calibration stopped.
        """
        last_stages = {part.get("kind", name): name for name, part in self.recipe["stages"].items()}
        trained = [
            task
            for task in TASKS
            if task in last_stages and (self.work / last_stages[task] / "model").is_dir()
        ]
        for task in trained:
            model = self._finished(task, self.work / last_stages[task])
            model.save_pretrained(self.output / CHECKPOINTS[task], dtype=self._dtype)
        sharing = [self.output / CHECKPOINTS[task] for task in trained if task in ON_TOWER]
        share_weights(sharing, self.output / TOWER, "vision_model.")

    def _finished(self, task: str, stage: Path) -> PrunedModel:
        """A stage's model, calibrated if it prunes."""
        model = load_model(stage / "model")
        if model.pruning is None:
            return type(model)(model.checkpoint, name=CHECKPOINTS[task])
        part = self.recipe["calibrate"]
        seed, side = self.recipe["seed"], model.image_geometry.width
        mixes = {
            mix: ShapesSamples(task, "validation", part["samples"], seed, mix, side) for mix in part["mixes"]
        }
        about = {"temperature": model.pruning.prune_temperature, **part}
        ledger = Ledger(stage / LEDGER_NAME, about)
        table = calibrate(model, mixes, batch_sizes=part["batch_sizes"], ledger=ledger, progress=True)
        return type(model)(replace(model.checkpoint, calibration=table), name=CHECKPOINTS[task])

    @property
    def _dtype(self) -> torch.dtype:
        return DTYPES[self.recipe["store"]]

    def _task(self, kind: str, models: DemoModels, part: Mapping[str, Any], first_scene: int) -> TrainTask:
        makers: dict[str, Callable[[DemoModels, Mapping[str, Any], ShapesBatches], TrainTask]] = {
            "look": self._look,
            "describe": self._describe,
            "vqa": self._vqa,
            "caption": self._caption,
            "retrieval": self._retrieval,
            "reasoning": self._reasoning,
            "clip": self._clip,
        }
        scenes = self._split("train", 10**9, part.get("questions", 0), part.get("family_weights"))
        return makers[kind](models, part, ShapesBatches(scenes, part["scenes"], first_scene))

    def _split(
        self, split: Split, length: int, questions: int, family_weights: Mapping[str, float] | None = None
    ) -> ShapesVqa:
        size = self.recipe["image"]["size"]
        return ShapesVqa(self.recipe["seed"], split, length, questions, size, family_weights=family_weights)

    def _hooks(self, model: PrunedModel, costs: CostsInTurn) -> Hooks:
        """Evaluate and save through the served path, with the temperature that training has reached.

        What was never pruned is saved as a plain model: nothing has taught its alignment tokens.
        """
        cost = costs.first_pruned

        def saved() -> Checkpoint:
            config = model.checkpoint.config
            if cost is None:
                return replace(
                    model.checkpoint, alignment=None, config=replace(config, alignment=None, pruning=None)
                )
            assert config.pruning is not None
            pruning = replace(
                config.pruning,
                keep_mode=cost.keep_mode,
                prune_temperature=costs.saved_temperature,
                flops_ratio=cost.flops_ratio,
            )
            return replace(model.checkpoint, config=replace(config, pruning=pruning))

        def save(directory: Path) -> None:
            type(model)(saved()).save_pretrained(directory, dtype=self._dtype)

        def evaluated() -> Mapping[str, float]:
            side = model.image_geometry.width
            scenes = self.recipe["validation_scenes"]
            samples = ShapesSamples(model.task, "validation", scenes, self.recipe["seed"], image_size=side)
            keep_mode = MAX_KEEP if cost is None else cost.keep_mode
            result = evaluate(model, samples, prune_temperature=costs.saved_temperature, keep_mode=keep_mode)
            return result.figures()

        return Hooks(evaluated, save)

    def _look(self, models: DemoModels, part: Mapping[str, Any], scenes: ShapesBatches) -> TrainTask:
        held_out = self._split("validation", self.recipe["validation_scenes"], 0)
        return ShapesVision(
            models.caption.network,
            models.patch_head,
            scenes,
            ShapesBatches(held_out, part["scenes"]),
            models.geometry,
        )

    def _describe(self, models: DemoModels, part: Mapping[str, Any], scenes: ShapesBatches) -> TrainTask:
        caption, retrieval = models.caption, models.retrieval
        return DescribeShapes(
            caption.network,
            retrieval.network,
            models.patch_head,
            ShapesCaptionBatches(scenes, caption.codec),
            models.geometry,
            costs_of(part),
            DescribeLosses(**part["losses"]),
        )

    def _vqa(self, models: DemoModels, part: Mapping[str, Any], scenes: ShapesBatches) -> TrainTask:
        model, costs = models.vqa, costs_of(part)
        return ReadShapesVqa(
            model.network,
            ShapesVqaBatches(scenes, model.codec),
            models.geometry,
            self._hooks(model, costs),
            costs,
            ReadingLosses(**part["losses"]),
        )

    def _caption(self, models: DemoModels, part: Mapping[str, Any], scenes: ShapesBatches) -> TrainTask:
        model, costs = models.caption, costs_of(part)
        return WriteShapesCaptions(
            model.network,
            ShapesCaptionBatches(scenes, model.codec),
            models.geometry,
            self._hooks(model, costs),
            costs,
        )

    def _retrieval(self, models: DemoModels, part: Mapping[str, Any], scenes: ShapesBatches) -> TrainTask:
        model, costs = models.matching, costs_of(part)
        return MatchShapes(
            model.network,
            model.codec,
            ShapesCaptionBatches(scenes, model.codec),
            models.geometry,
            self._hooks(model, costs),
            costs,
            MatchingLosses(**part["losses"]),
        )

    def _reasoning(self, models: DemoModels, part: Mapping[str, Any], scenes: ShapesBatches) -> TrainTask:
        model, costs = models.reasoning, costs_of(part)
        return ReasonShapes(
            model.network,
            ShapesStatementBatches(scenes, model.codec, part["statements"]),
            models.geometry,
            self._hooks(model, costs),
            costs,
            ReasoningLosses(**part["losses"]),
        )

    def _clip(self, models: DemoModels, part: Mapping[str, Any], scenes: ShapesBatches) -> TrainTask:
        model, costs = models.clip, costs_of(part)
        return ClipShapes(
            model.network,
            ShapesCaptionBatches(scenes, model.codec),
            models.geometry,
            self._hooks(model, costs),
            costs,
            DescribeLosses(**part["losses"]),
        )


def costs_of(part: Mapping[str, Any]) -> CostsInTurn:
    """The costs of a stage."""
    costs = part["costs"]
    return CostsInTurn(
        [Cost(*each) for each in costs["each"]],
        costs["first_temperatures"],
        ramp_steps=costs["ramp_steps"],
        gain=costs["gain"],
    )


def read_recipe(path: Path = RECIPE) -> dict[str, Any]:
    """A recipe file as plain values."""
    recipe: dict[str, Any] = yaml.safe_load(path.read_text())
    return recipe
