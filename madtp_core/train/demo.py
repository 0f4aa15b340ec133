"""`make demo-weights`: from the recipe to a calibrated directory, the committed demo checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from madtp_core.backbones.blip import blip_config, build_blip_vqa
from madtp_core.checkpoint import VqaCheckpoint, build_alignment
from madtp_core.config import AlignmentConfig, MadtpConfig, PruningConfig
from madtp_core.data.shapes import ShapesVqa, build_tokenizer
from madtp_core.images import ImageGeometry
from madtp_core.pruning import MAX_KEEP
from madtp_core.pruning.temperature import TemperatureSearch
from madtp_core.tasks.vqa import BlipVqa
from madtp_core.tasks.vqa_network import VqaNetwork
from madtp_core.train.calibrate import calibrate
from madtp_core.train.evaluate import evaluate_vqa
from madtp_core.train.loop import DTYPES, LoopConfig, seed_everything, train
from madtp_core.train.shapes_data import ShapesVqaBatches
from madtp_core.train.shapes_vqa import CompressShapesVqa, DenseShapesVqa, Hooks

RECIPE = Path(__file__).parent / "recipes" / "demo_vqa.yaml"


@dataclass(frozen=True)
class DemoRun:
    """One recipe, its working directory for resumable stages, and where the finished checkpoint goes."""

    recipe: Mapping[str, Any]
    work: Path
    output: Path

    def make(self) -> BlipVqa:
        """Train dense, compress, calibrate and save; each stage resumes where it stopped."""
        seed_everything(self.recipe["seed"])
        model, scenes_seen = self.fresh_model(), 0
        for stage in self.recipe["dense"]:
            loop = self._loop(stage)
            seed_everything(loop.seed)
            train(self._dense_task(model, stage, scenes_seen), loop, self.work / stage["name"])
            model = BlipVqa.from_pretrained(self.work / stage["name"] / "model")
            scenes_seen += loop.last_step * stage["scenes"]
        return self._calibrate(self._compress(model, scenes_seen))

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
        madtp = MadtpConfig(encoder_first_token="enc", max_question_tokens=shape["max_text_tokens"])
        return BlipVqa(VqaCheckpoint(build_blip_vqa(config), tokenizer, geometry, madtp))

    def _loop(self, stage: Mapping[str, Any]) -> LoopConfig:
        return LoopConfig(seed=self.recipe["seed"], **stage["loop"])

    def _batches(self, model: BlipVqa, part: Mapping[str, Any], scenes_seen: int) -> ShapesVqaBatches:
        first_step = -(-scenes_seen // part["scenes"])
        scenes = ShapesVqa(
            self.recipe["seed"], "train", 10**9, part["questions"], self.recipe["image"]["size"]
        )
        curriculum = [tuple(entry) for entry in part.get("curriculum", [])]
        return ShapesVqaBatches(scenes, part["scenes"], model.codec, first_step, curriculum)

    def _hooks(self, checkpoint: VqaCheckpoint, keep_pruning: bool) -> Hooks:
        """Evaluate and save through the served path, with the temperature that training has reached."""
        scenes = ShapesVqa(
            self.recipe["seed"],
            "validation",
            self.recipe["validation_scenes"],
            1,
            self.recipe["image"]["size"],
        )

        def current(network: VqaNetwork, prune_temperature: float) -> BlipVqa:
            config = checkpoint.config
            if keep_pruning and config.pruning is not None:
                config = replace(config, pruning=replace(config.pruning, prune_temperature=prune_temperature))
            return BlipVqa(replace(checkpoint, blip=network.blip, alignment=network.alignment, config=config))

        def evaluate(network: VqaNetwork, prune_temperature: float) -> Mapping[str, float]:
            return evaluate_vqa(
                current(network, prune_temperature), scenes, prune_temperature=prune_temperature
            ).figures()

        def save(network: VqaNetwork, prune_temperature: float, directory: Path) -> None:
            current(network, prune_temperature).save_pretrained(directory)

        return Hooks(evaluate, save)

    def _dense_task(self, model: BlipVqa, stage: Mapping[str, Any], scenes_seen: int) -> DenseShapesVqa:
        return DenseShapesVqa(
            model.network,
            self._batches(model, stage, scenes_seen),
            model.image_geometry,
            self._hooks(model.checkpoint, keep_pruning=False),
            **stage["losses"],
        )

    def _compress(self, dense: BlipVqa, scenes_seen: int) -> BlipVqa:
        part = self.recipe["compress"]
        alignment_config = AlignmentConfig(**self.recipe["alignment"])
        pruning = PruningConfig(
            keep_mode=MAX_KEEP, flops_ratio=part["flops_ratio"], batch_size=part["scenes"]
        )
        loop = self._loop(part)
        seed_everything(loop.seed)
        checkpoint = replace(
            dense.checkpoint,
            alignment=build_alignment(alignment_config, dense.checkpoint.blip.config),
            config=replace(dense.checkpoint.config, alignment=alignment_config, pruning=pruning),
        )
        model = BlipVqa(checkpoint)
        task = CompressShapesVqa(
            model.network,
            self._batches(model, part, scenes_seen),
            model.image_geometry,
            self._hooks(checkpoint, keep_pruning=True),
            TemperatureSearch(part["flops_ratio"], gain=part["gain"]),
            part["first_temperature"],
            part["ramp_steps"],
            part["alpha"],
        )
        train(task, loop, self.work / "compress")
        return BlipVqa.from_pretrained(self.work / "compress" / "model")

    def _calibrate(self, model: BlipVqa) -> BlipVqa:
        part = self.recipe["calibrate"]
        assert model.pruning is not None
        model.save_pretrained(self.output, dtype=DTYPES[self.recipe["store"]])
        stored = BlipVqa.from_pretrained(self.output)  # calibrate what will be served, rounding included
        scenes = ShapesVqa(self.recipe["seed"], "validation", part["scenes"], 1, self.recipe["image"]["size"])
        temperatures = [model.pruning.prune_temperature * factor for factor in part["factors"]]
        table = calibrate(stored, scenes, temperatures, part["batch_sizes"])
        finished = BlipVqa(replace(stored.checkpoint, calibration=table), name=self.recipe["name"])
        finished.save_pretrained(self.output, dtype=DTYPES[self.recipe["store"]])
        return finished


def read_recipe(path: Path = RECIPE) -> dict[str, Any]:
    """A recipe file as plain values."""
    recipe: dict[str, Any] = yaml.safe_load(path.read_text())
    return recipe
