"""`make demo-weights`: from the recipe to a calibrated directory, the committed demo checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from madtp_core.backbones.blip import blip_config, build_blip_vqa
from madtp_core.checkpoint import Checkpoint, build_alignment
from madtp_core.config import AlignmentConfig, MadtpConfig, PruningConfig
from madtp_core.data.shapes import ShapesVqa, build_tokenizer
from madtp_core.data.shapes.scene import Split
from madtp_core.images import ImageGeometry
from madtp_core.pruning import MAX_KEEP
from madtp_core.pruning.temperature import TemperatureSearch
from madtp_core.tasks.vqa import BlipVqa
from madtp_core.tasks.vqa_network import VqaNetwork
from madtp_core.train.calibrate import calibrate
from madtp_core.train.evaluate import evaluate_vqa
from madtp_core.train.hooks import Hooks
from madtp_core.train.loop import DTYPES, LoopConfig, TrainTask, seed_everything, train
from madtp_core.train.shapes_data import ShapesBatches, ShapesVqaBatches
from madtp_core.train.shapes_vision import ShapesVision
from madtp_core.train.shapes_vqa import CompressShapesVqa, ReadingLosses, ReadShapesVqa

RECIPE = Path(__file__).parent / "recipes" / "demo_vqa.yaml"


@dataclass(frozen=True)
class DemoRun:
    """One recipe, its working directory for resumable stages, and where the finished checkpoint goes."""

    recipe: Mapping[str, Any]
    work: Path
    output: Path

    def make(self) -> BlipVqa:
        """Train the vision tower, the reading of it, compress, calibrate and save; each stage resumes."""
        seed_everything(self.recipe["seed"])
        model, first_scene = self.fresh_model(), 0
        for stage, part, task_of in self._stages():
            loop = LoopConfig(seed=self.recipe["seed"], **part["loop"])
            seed_everything(loop.seed)
            train(task_of(model, part, first_scene), loop, self.work / stage)
            model = BlipVqa.from_pretrained(self.work / stage / "model")
            first_scene += loop.last_step * part["scenes"]
        return self._calibrate(model)

    def _stages(self) -> list[tuple[str, Mapping[str, Any], Callable[..., TrainTask]]]:
        """Name, part of the recipe and task of every stage; compression has one or more."""
        compress = self.recipe["compress"]
        return [
            ("look", self.recipe["look"], self._look),
            ("read", self.recipe["read"], self._read),
            *((f"compress-{i}", part, self._compress) for i, part in enumerate(compress, start=1)),
        ]

    def fresh_model(self) -> BlipVqa:
        """The untrained BLIP of the recipe with its tokenizer."""
        recipe, tokenizer = self.recipe, build_tokenizer()
        shape = recipe["model"]
        config = blip_config(
            **shape,
            image_size=recipe["image"]["size"],
            vocabulary=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            sep_token_id=tokenizer.sep_token_id,
        )
        geometry = ImageGeometry(
            recipe["image"]["size"],
            recipe["image"]["size"],
            tuple(recipe["image"]["mean"]),
            tuple(recipe["image"]["std"]),
        )
        madtp = MadtpConfig(encoder_first_token="enc", max_text_tokens=shape["max_text_tokens"])
        return BlipVqa(Checkpoint(build_blip_vqa(config), tokenizer, geometry, madtp))

    def _scenes(self, part: Mapping[str, Any], first_scene: int) -> ShapesBatches:
        scenes = self._split("train", 10**9, part.get("questions", 0), part.get("family_weights"))
        return ShapesBatches(scenes, part["scenes"], first_scene)

    def _split(
        self, split: Split, length: int, questions: int, family_weights: Mapping[str, float] | None = None
    ) -> ShapesVqa:
        size = self.recipe["image"]["size"]
        return ShapesVqa(self.recipe["seed"], split, length, questions, size, family_weights=family_weights)

    def _hooks(self, checkpoint: Checkpoint, keep_pruning: bool) -> Hooks:
        """Evaluate and save through the served path, with the temperature that training has reached."""
        scenes = self._split("validation", self.recipe["validation_scenes"], 1)

        def current(network: VqaNetwork, prune_temperature: float) -> BlipVqa:
            config = checkpoint.config
            if keep_pruning and config.pruning is not None:
                config = replace(config, pruning=replace(config.pruning, prune_temperature=prune_temperature))
            return BlipVqa(
                replace(checkpoint, model=network.blip, alignment=network.alignment, config=config)
            )

        def evaluate(network: VqaNetwork, prune_temperature: float) -> Mapping[str, float]:
            return evaluate_vqa(
                current(network, prune_temperature), scenes, prune_temperature=prune_temperature
            ).figures()

        def save(network: VqaNetwork, prune_temperature: float, directory: Path) -> None:
            current(network, prune_temperature).save_pretrained(directory)

        return Hooks(evaluate, save)

    def _look(self, model: BlipVqa, part: Mapping[str, Any], first_scene: int) -> TrainTask:
        held_out = ShapesBatches(
            self._split("validation", self.recipe["validation_scenes"], 0), part["scenes"]
        )
        hooks = self._hooks(model.checkpoint, keep_pruning=False)
        data = self._scenes(part, first_scene)
        return ShapesVision(model.network, data, held_out, model.image_geometry, hooks)

    def _read(self, model: BlipVqa, part: Mapping[str, Any], first_scene: int) -> TrainTask:
        return ReadShapesVqa(
            model.network,
            ShapesVqaBatches(self._scenes(part, first_scene), model.codec),
            model.image_geometry,
            self._hooks(model.checkpoint, keep_pruning=False),
            ReadingLosses(**part["losses"]),
        )

    def _compress(self, dense: BlipVqa, part: Mapping[str, Any], first_scene: int) -> TrainTask:
        alignment_config = AlignmentConfig(**self.recipe["alignment"])
        pruning = PruningConfig(
            keep_mode=MAX_KEEP, flops_ratio=part["flops_ratio"], batch_size=part["scenes"]
        )
        checkpoint = replace(
            dense.checkpoint,
            alignment=dense.checkpoint.alignment
            or build_alignment(alignment_config, dense.checkpoint.model.config),
            config=replace(dense.checkpoint.config, alignment=alignment_config, pruning=pruning),
        )
        model = BlipVqa(checkpoint)
        return CompressShapesVqa(
            model.network,
            ShapesVqaBatches(self._scenes(part, first_scene), model.codec),
            model.image_geometry,
            self._hooks(checkpoint, keep_pruning=True),
            TemperatureSearch(part["flops_ratio"], gain=part["gain"]),
            part["modes"],
            part["first_temperatures"],
            part["ramp_steps"],
            part["alpha"],
            part["importance"],
        )

    def _calibrate(self, model: BlipVqa) -> BlipVqa:
        part = self.recipe["calibrate"]
        assert model.pruning is not None
        model.save_pretrained(self.output, dtype=DTYPES[self.recipe["store"]])
        stored = BlipVqa.from_pretrained(self.output)  # calibrate what will be served, rounding included
        scenes = self._split("validation", part["scenes"], 1)
        temperatures = [model.pruning.prune_temperature * factor for factor in part["factors"]]
        table = calibrate(stored, scenes, temperatures, part["batch_sizes"])
        finished = BlipVqa(replace(stored.checkpoint, calibration=table), name=self.recipe["name"])
        finished.save_pretrained(self.output, dtype=DTYPES[self.recipe["store"]])
        return finished


def read_recipe(path: Path = RECIPE) -> dict[str, Any]:
    """A recipe file as plain values."""
    recipe: dict[str, Any] = yaml.safe_load(path.read_text())
    return recipe
