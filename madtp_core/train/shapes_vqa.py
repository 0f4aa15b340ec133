"""The demo's VQA tasks on synthetic scenes: reading with a trained vision tower, and MADTP compression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from madtp_core.backbones.blip import text_config
from madtp_core.data.shapes import ANSWERS
from madtp_core.encoder import BatchPruning
from madtp_core.flops import greedy_passes
from madtp_core.images import ImageGeometry
from madtp_core.pruning import MAX_KEEP, TEXT, VISION
from madtp_core.pruning.temperature import SearchState, TemperatureSearch
from madtp_core.tasks.cost import Traces, branch_traces
from madtp_core.tasks.vqa_cost import VqaCostModel
from madtp_core.tasks.vqa_network import VqaForward, VqaNetwork
from madtp_core.train.auxiliary import Pointing, Reckoning, WatchedMadtp
from madtp_core.train.hooks import Hooks
from madtp_core.train.shapes_data import ShapesVqaBatches, VqaBatch, pixel_values

_SERVED_PASSES = greedy_passes(2)  # a one-token answer and its end


@dataclass(frozen=True)
class ReadingLosses:
    """Weights of the auxiliary losses beside the answer loss.

    pointing: cross-attention heads look at what the question names; tally: others spread over all of it.
    reckoning: how many objects a description names, where, and which is more, read off the first token behind
    the last block but one and, at half the weight, behind the last. answer: the answer, read off the first
    token by a linear head: without it the step from "left or right of it" to "yes or no" is hardly found.
    """

    pointing: float = 0.3
    tally: float = 0.15
    reckoning: float = 0.5
    answer: float = 0.5


class ReadShapesVqa:
    """Teaches the question encoder and the answer decoder to read a vision tower that stays as it is."""

    def __init__(
        self,
        network: VqaNetwork,
        data: ShapesVqaBatches,
        geometry: ImageGeometry,
        hooks: Hooks,
        weights: ReadingLosses,
    ) -> None:
        self.network, self.data, self.geometry, self.hooks = network, data, geometry, hooks
        self.weights = weights
        width = text_config(network.blip.config).hidden_size
        self.pointing = Pointing(network)
        self.early_reckoning, self.late_reckoning = Reckoning(width), Reckoning(width)
        self.answer_head = nn.Linear(width, len(ANSWERS))
        self.modules: nn.Module = nn.ModuleDict(
            {
                "text_encoder": network.blip.text_encoder,
                "text_decoder": network.blip.text_decoder,
                "early_reckoning": self.early_reckoning,
                "late_reckoning": self.late_reckoning,
                "answer_head": self.answer_head,
            }
        )

    def batches(self) -> Dataset[VqaBatch]:
        return self.data

    def loss(self, batch: VqaBatch, step: int) -> tuple[Tensor, Mapping[str, float]]:
        network, early = self.network, []
        with torch.no_grad():
            image = network.encode_image(pixel_values(batch.scenes.images, self.geometry))
        question = network.encode_text(
            batch.question_ids,
            batch.question_mask,
            network.remember(image, batch.reader),
            on_block=lambda tokens: early.append(tokens.hidden[:, 0]),
        )
        first_token = question.tokens.hidden[:, 0]
        pointing, tally = self.pointing.losses(batch)
        parts = {
            "pointing": pointing,
            "tally": tally,
            "reckoning": self.early_reckoning(early[-2], batch.named_counts, batch.spoken_of)
            + self.late_reckoning(first_token, batch.named_counts, batch.spoken_of) / 2,
            "answer": F.cross_entropy(self.answer_head(first_token).float(), batch.answer_labels),
        }
        answer_loss = network.answer_loss(question, batch.answer_ids)
        loss = answer_loss + sum(getattr(self.weights, name) * part for name, part in parts.items())
        figures = {"answer_loss": answer_loss.item()}
        return loss, figures | {f"{name}_loss": part.item() for name, part in parts.items()}

    def after_step(self, figures: Mapping[str, float]) -> None:
        """Nothing is steered."""

    def evaluate(self) -> Mapping[str, float]:
        return self.hooks.evaluate(self.network, 0.0)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def save(self, directory: Path) -> None:
        self.hooks.save(self.network, 0.0, directory)


DENSE = "dense"


class CompressShapesVqa:
    """One-stage MADTP compression: answer loss + alpha * alignment loss, the prune temperature searched.

    modes are taken in turn, one a step: `max_keep`, as in the paper; `per_instance`, which is what a lone
    request sees; and `dense`, at T = 0, so that one checkpoint serves all of them. Each keep mode has its own
    temperature. The measured flops_ratio is of the served request (one image, one question, a one-token
    answer), in the mean of a batch. The target falls linearly from 1 to search.target over the first
    ramp_steps. importance: weight of an auxiliary loss that makes the patches of objects important; a vision
    tower trained on patches alone has no class token that looks for them.
    """

    def __init__(
        self,
        network: VqaNetwork,
        data: ShapesVqaBatches,
        geometry: ImageGeometry,
        hooks: Hooks,
        search: TemperatureSearch,
        modes: Sequence[str],
        first_temperatures: Mapping[str, float],
        ramp_steps: int,
        alpha: float = 0.1,
        importance: float = 0.0,
    ) -> None:
        self.network, self.data, self.geometry, self.hooks = network, data, geometry, hooks
        self.search, self.modes, self.ramp_steps = search, tuple(modes), ramp_steps
        self.alpha, self.importance = alpha, importance
        self.search_states = {mode: SearchState(first) for mode, first in first_temperatures.items()}
        self.modules: nn.Module = nn.ModuleDict({"network": network})
        self.pruner = WatchedMadtp()
        self.cost_model = VqaCostModel(network, geometry.height, geometry.width)
        self._step = 0

    def batches(self) -> Dataset[VqaBatch]:
        return self.data

    def loss(self, batch: VqaBatch, step: int) -> tuple[Tensor, Mapping[str, float]]:
        self._step = step
        mode = self._mode()
        prune_temperature = 0.0 if mode == DENSE else self.search_states[mode].prune_temperature
        pruning = BatchPruning(
            self.pruner,
            torch.full((len(batch.reader),), prune_temperature),
            MAX_KEEP if mode == DENSE else mode,
        )
        out = self.network.forward(
            pixel_values(batch.scenes.images, self.geometry),
            batch.question_ids,
            batch.question_mask,
            batch.reader,
            batch.answer_ids,
            pruning,
            align=True,
        )
        assert out.alignment_loss is not None
        importance_loss = self.pruner.importance_loss(batch.scenes.patch_labels > 0)
        loss = out.answer_loss + self.alpha * out.alignment_loss + self.importance * importance_loss
        return loss, {
            f"answer_loss/{mode}": out.answer_loss.item(),
            "alignment_loss": out.alignment_loss.item(),
            "importance_loss": importance_loss.item(),
            f"prune_temperature/{mode}": prune_temperature,
            f"flops_ratio/{mode}": self._flops_ratio(out, batch, pruning),
        }

    def after_step(self, figures: Mapping[str, float]) -> None:
        """Move the prune temperature of this step's keep mode towards the step's target."""
        mode = self._mode()
        if mode == DENSE:
            return
        share = min(1.0, (self._step + 1) / self.ramp_steps) if self.ramp_steps else 1.0
        target = 1.0 - share * (1.0 - self.search.target)
        self.search_states[mode] = self.search.with_target(target).step(
            self.search_states[mode], figures[f"flops_ratio/{mode}"]
        )

    def evaluate(self) -> Mapping[str, float]:
        return self.hooks.evaluate(self.network, self.prune_temperature)

    @property
    def prune_temperature(self) -> float:
        """The temperature that the checkpoint is saved with: max_keep's."""
        return self.search_states[MAX_KEEP].prune_temperature

    def state(self) -> dict[str, Any]:
        return {
            mode: {"prune_temperature": state.prune_temperature, "mean": state.mean}
            for mode, state in self.search_states.items()
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.search_states = {
            mode: SearchState(saved["prune_temperature"], saved["mean"]) for mode, saved in state.items()
        }

    def save(self, directory: Path) -> None:
        self.hooks.save(self.network, self.prune_temperature, directory)

    def _mode(self) -> str:
        return self.modes[self._step % len(self.modes)]

    def _flops_ratio(self, out: VqaForward, batch: VqaBatch, pruning: BatchPruning) -> float:
        vision = branch_traces(out.vision, [self.cost_model.vision.patches] * len(batch.scenes.images))
        text = branch_traces(out.text, (batch.question_mask.sum(1) - 1).tolist())
        spent = dense = 0
        for image, question in zip(batch.reader.tolist(), text, strict=True):
            traces: Traces = {VISION: (vision[image],), TEXT: (question,)}
            spent += self.cost_model.spent_macs(traces, _SERVED_PASSES, pruning)
            dense += self.cost_model.dense_macs(traces, _SERVED_PASSES)
        return spent / dense
