"""The demo's training tasks: BLIP-VQA on synthetic scenes, trained dense and compressed by MADTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from madtp_core.backbones.blip import text_config, vision_config
from madtp_core.flops import greedy_passes
from madtp_core.images import ImageGeometry
from madtp_core.pruning import MAX_KEEP, build_pruner
from madtp_core.pruning.temperature import SearchState, TemperatureSearch
from madtp_core.tasks.vqa_cost import VqaCostModel, VqaTrace, branch_traces
from madtp_core.tasks.vqa_network import BatchPruning, VqaForward, VqaNetwork
from madtp_core.train.auxiliary import NUM_PATCH_OUTPUTS, Pointing, Reckoning, patches_loss
from madtp_core.train.shapes_data import ShapesVqaBatches, VqaBatch, pixel_values

_SERVED_PASSES = greedy_passes(2)  # a one-token answer and its end
Evaluate = Callable[[VqaNetwork, float], Mapping[str, float]]  # network, prune temperature -> figures
Save = Callable[[VqaNetwork, float, Path], None]  # network, prune temperature, directory


@dataclass(frozen=True)
class Hooks:
    """What a task needs of the world: how to evaluate the network and how to save it."""

    evaluate: Evaluate
    save: Save


class DenseShapesVqa:
    """Dense training: answer loss, and auxiliary losses that end the long plateau at the language prior.

    The patch loss names what is in every patch, the pointing loss teaches two heads where to look, and the
    reckoning loss how many objects a description names and where.
    """

    def __init__(
        self,
        network: VqaNetwork,
        data: ShapesVqaBatches,
        geometry: ImageGeometry,
        hooks: Hooks,
        *,
        patch_loss_weight: float = 1.0,
        pointing_loss_weight: float = 0.0,
        reckoning_loss_weight: float = 0.0,
    ) -> None:
        self.network, self.data, self.geometry, self.hooks = network, data, geometry, hooks
        self.patch_loss_weight, self.pointing_loss_weight = patch_loss_weight, pointing_loss_weight
        self.reckoning_loss_weight = reckoning_loss_weight
        self.pointing = Pointing(network)
        width = vision_config(network.blip.config).hidden_size
        self.patch_head = nn.Linear(width, NUM_PATCH_OUTPUTS)
        self.modules = nn.ModuleDict({"network": network, "patch_head": self.patch_head})
        if reckoning_loss_weight:
            self.modules["reckoning"] = Reckoning(text_config(network.blip.config).hidden_size)

    def batches(self) -> Dataset[VqaBatch]:
        return self.data

    def loss(self, batch: VqaBatch, step: int) -> tuple[Tensor, Mapping[str, float]]:
        out = forward(self.network, batch, self.geometry)
        logits = (
            self.patch_head(out.vision.tokens.hidden[:, 1:]).float().transpose(1, 2)
        )  # [B, labels, patches]
        patch_loss = patches_loss(logits, batch)
        pointing_loss, tally_loss = self.pointing.losses(batch)
        loss = (
            out.answer_loss + self.patch_loss_weight * patch_loss + self.pointing_loss_weight * pointing_loss
        )
        figures = {"answer_loss": out.answer_loss, "patch_loss": patch_loss, "pointing_loss": pointing_loss}
        if self.reckoning_loss_weight:
            first_token = out.text.tokens.hidden[:, 0]
            reckoning_loss = self.modules["reckoning"](first_token, batch.named_counts, batch.spoken_of)
            loss = loss + self.reckoning_loss_weight * (reckoning_loss + tally_loss)
            figures |= {"reckoning_loss": reckoning_loss, "tally_loss": tally_loss}
        return loss, {name: value.item() for name, value in figures.items()}

    def after_step(self, figures: Mapping[str, float]) -> None:
        """Nothing is steered in dense training."""

    def evaluate(self) -> Mapping[str, float]:
        return self.hooks.evaluate(self.network, 0.0)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def save(self, directory: Path) -> None:
        self.hooks.save(self.network, 0.0, directory)


class CompressShapesVqa:
    """One-stage MADTP compression: answer loss + alpha * alignment loss, max-keep, the temperature searched.

    The measured flops_ratio is of the served request (one image, one question, a one-token answer), in the
    mean of a batch. The target falls linearly from 1 to search.target over the first ramp_steps.
    """

    def __init__(
        self,
        network: VqaNetwork,
        data: ShapesVqaBatches,
        geometry: ImageGeometry,
        hooks: Hooks,
        search: TemperatureSearch,
        first_temperature: float,
        ramp_steps: int,
        alpha: float = 0.1,
    ) -> None:
        self.network, self.data, self.geometry, self.hooks = network, data, geometry, hooks
        self.search, self.ramp_steps, self.alpha = search, ramp_steps, alpha
        self.search_state = SearchState(first_temperature)
        self.modules: nn.Module = nn.ModuleDict({"network": network})
        self.pruner = build_pruner("madtp")
        self.cost_model = VqaCostModel(network, geometry.height, geometry.width)
        self._step = 0

    def batches(self) -> Dataset[VqaBatch]:
        return self.data

    def loss(self, batch: VqaBatch, step: int) -> tuple[Tensor, Mapping[str, float]]:
        self._step = step
        temperature = torch.full((len(batch.reader),), self.search_state.prune_temperature)
        pruning = BatchPruning(self.pruner, temperature, MAX_KEEP)
        out = forward(self.network, batch, self.geometry, pruning)
        assert out.alignment_loss is not None
        loss = out.answer_loss + self.alpha * out.alignment_loss
        return loss, {
            "answer_loss": out.answer_loss.item(),
            "alignment_loss": out.alignment_loss.item(),
            "prune_temperature": self.search_state.prune_temperature,
            "flops_ratio": self._flops_ratio(out, batch, pruning),
        }

    def after_step(self, figures: Mapping[str, float]) -> None:
        """Move the prune temperature towards this step's target."""
        share = min(1.0, (self._step + 1) / self.ramp_steps) if self.ramp_steps else 1.0
        target = 1.0 - share * (1.0 - self.search.target)
        self.search_state = self.search.with_target(target).step(self.search_state, figures["flops_ratio"])

    def evaluate(self) -> Mapping[str, float]:
        return self.hooks.evaluate(self.network, self.search_state.prune_temperature)

    def state(self) -> dict[str, Any]:
        return {"prune_temperature": self.search_state.prune_temperature, "mean": self.search_state.mean}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.search_state = SearchState(state["prune_temperature"], state["mean"])

    def save(self, directory: Path) -> None:
        self.hooks.save(self.network, self.search_state.prune_temperature, directory)

    def _flops_ratio(self, out: VqaForward, batch: VqaBatch, pruning: BatchPruning) -> float:
        vision = branch_traces(out.vision, [self.cost_model.vision.patches] * len(batch.images))
        text = branch_traces(out.text, (batch.question_mask.sum(1) - 1).tolist())
        spent = dense = 0
        for image, question in zip(batch.reader.tolist(), text, strict=True):
            trace = VqaTrace(vision[image], question)
            spent += self.cost_model.macs(trace, _SERVED_PASSES, pruning)
            dense += self.cost_model.dense_macs(trace, _SERVED_PASSES)
        return spent / dense


def forward(
    network: VqaNetwork, batch: VqaBatch, geometry: ImageGeometry, pruning: BatchPruning | None = None
) -> VqaForward:
    """One teacher-forced pass over a batch; with pruning, the aligned features are gathered too."""
    out: VqaForward = network(
        pixel_values(batch.images, geometry),
        batch.question_ids,
        batch.question_mask,
        batch.reader,
        batch.answer_ids,
        pruning,
        align=pruning is not None,
    )
    return out
