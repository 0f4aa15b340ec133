"""The demo's training tasks: BLIP-VQA on synthetic scenes, trained dense and compressed by MADTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from madtp_core.backbones.blip import text_config, vision_config
from madtp_core.data.shapes import NUM_PATCH_LABELS, Question, ShapesVqa, sample_scene
from madtp_core.data.shapes.dataset import VqaExample
from madtp_core.data.shapes.scene import GRID, MAX_OBJECTS, SIZES, TEXTURES
from madtp_core.images import ImageGeometry
from madtp_core.pruning import MAX_KEEP, build_pruner
from madtp_core.pruning.temperature import SearchState, TemperatureSearch
from madtp_core.tasks.text import TextCodec
from madtp_core.tasks.vqa_cost import VqaCostModel, VqaTrace, branch_traces
from madtp_core.tasks.vqa_network import BatchPruning, VqaForward, VqaNetwork

NUM_LOOK_LABELS = 1 + len(SIZES) * len(TEXTURES)
_SCENES_A_ROW = 16  # scenes to choose from where a curriculum limits their objects
_SERVED_PASSES = ((1, 1), (1, 2))  # the decoder passes of a one-token answer
Evaluate = Callable[[VqaNetwork, float], Mapping[str, float]]  # network, prune temperature -> figures
Save = Callable[[VqaNetwork, float, Path], None]  # network, prune temperature, directory


@dataclass(frozen=True, eq=False)
class VqaBatch:
    """B scenes with Q questions.

    images [B, H, W, 3] uint8, patch_labels [B, patches] (shape and colour), look_labels [B, patches] (size
    and texture), 0 for background in both; question_ids, question_mask [Q, L], reader [Q] question -> image,
    answer_ids [Q, A] with -100 behind the end token, spoken_of [Q, 2, patches] bool: where the objects stand
    that a question's first and second description name; named_counts [Q, 2]: how many, -1 without one.
    """

    images: Tensor
    patch_labels: Tensor
    look_labels: Tensor
    question_ids: Tensor
    question_mask: Tensor
    reader: Tensor
    answer_ids: Tensor
    spoken_of: Tensor
    named_counts: Tensor


class ShapesVqaBatches(Dataset[VqaBatch]):
    """Step -> batch: every step sees scenes that no other step saw.

    first_step shifts the scenes, so that a second stage sees none of the first. curriculum: (from step, most
    objects in a scene) in rising order; a model learns to find one of two objects long before one of twelve.
    """

    def __init__(
        self,
        scenes: ShapesVqa,
        batch_size: int,
        codec: TextCodec,
        first_step: int = 0,
        curriculum: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.scenes, self.batch_size, self.codec = scenes, batch_size, codec
        self.first_step, self.curriculum = first_step, curriculum

    def _scene_index(self, step: int, row: int) -> int:
        """The first of this row's own scenes with few enough objects, else the last of them."""
        allowed = [objects for start, objects in self.curriculum if start <= step]
        first = ((self.first_step + step) * self.batch_size + row) * _SCENES_A_ROW
        for index in range(first, first + _SCENES_A_ROW):
            scene = sample_scene(self.scenes.seed, self.scenes.split, index)
            if not allowed or scene.num_objects <= allowed[-1]:
                break
        return index

    def __getitem__(self, step: int) -> VqaBatch:
        examples = [self.scenes[self._scene_index(step, row)] for row in range(self.batch_size)]
        asked = [(row, question) for row, example in enumerate(examples) for question in example.questions]
        ids, mask = self.codec.questions([question.text for _, question in asked])
        start_id = self.codec.tokenizer.bos_token_id
        return VqaBatch(
            torch.from_numpy(np.stack([example.image for example in examples])),
            torch.from_numpy(np.stack([example.patch_labels for example in examples])),
            torch.from_numpy(np.stack([look_labels(example) for example in examples])),
            ids,
            mask,
            torch.tensor([row for row, _ in asked]),
            self.codec.training_answers([question.answer for _, question in asked], start_id),
            torch.from_numpy(np.stack([spoken_of(examples[row], question) for row, question in asked])),
            torch.tensor([named_counts(examples[row], question) for row, question in asked]),
        )


def patch_cells(example: VqaExample) -> NDArray[np.int64]:
    """The cell of the scene's grid that each patch lies in, row-major: int64 [patches]."""
    side = int(len(example.patch_labels) ** 0.5)
    cell = np.arange(side) * GRID // side
    return (cell[:, None] * GRID + cell).ravel()


def spoken_of(example: VqaExample, question: Question) -> NDArray[np.bool_]:
    """Where the objects stand that a question's first and second description name: bool [2, patches]."""
    cells = patch_cells(example)
    patches = np.zeros((2, len(cells)), np.bool_)
    for row, description in enumerate(question.about):
        named = [thing.cell for thing in example.scene.objects if description.matches(thing)]
        patches[row] = np.isin(cells, named) & (example.patch_labels > 0)
    return patches


def named_counts(example: VqaExample, question: Question) -> tuple[int, int]:
    """How many objects a question's first and second description name; -1 for a description it has not."""
    counts = [sum(map(description.matches, example.scene.objects)) for description in question.about]
    return (counts[0], counts[1]) if len(counts) == 2 else (counts[0], -1)


def look_labels(example: VqaExample) -> NDArray[np.int64]:
    """Size and texture in every patch: 0 background, else 1 + size * textures + texture; int64 [patches].

    An object never leaves its cell, so a patch's cell names its object.
    """
    look_of_cell = np.zeros(GRID * GRID, np.int64)
    for thing in example.scene.objects:
        look_of_cell[thing.cell] = 1 + SIZES.index(thing.size) * len(TEXTURES) + TEXTURES.index(thing.texture)
    return np.where(example.patch_labels > 0, look_of_cell[patch_cells(example)], 0)


def pixel_values(images: Tensor, geometry: ImageGeometry) -> Tensor:
    """uint8 [B, H, W, 3] of the model's size -> normalised float32 [B, 3, H, W]."""
    scaled = images.permute(0, 3, 1, 2).float() * geometry.rescale
    mean, std = (
        torch.tensor(x, device=images.device).view(1, 3, 1, 1) for x in (geometry.mean, geometry.std)
    )
    return (scaled - mean) / std


@dataclass(frozen=True)
class Hooks:
    """What a task needs of the world: how to evaluate the network and how to save it."""

    evaluate: Evaluate
    save: Save


class Pointing:
    """Teaches the first two cross-attention heads of every question block to point at what a question names.

    Reads queries and keys through hooks while a training forward runs; the model itself is unchanged. The
    first token's head 0 shall attend to the objects of the question's first description, head 1 to the
    second's.
    """

    def __init__(self, network: VqaNetwork) -> None:
        self._seen: dict[tuple[int, str], Tensor] = {}
        blocks: Any = network.blip.text_encoder.encoder.layer
        self.layers: list[Any] = [block.crossattention.self for block in blocks]
        for index, attention in enumerate(self.layers):
            for name in ("query", "key"):
                getattr(attention, name).register_forward_hook(partial(self._note, (index, name)))

    def _note(
        self, place: tuple[int, str], module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        if torch.is_grad_enabled():
            self._seen[place] = output

    def loss(self, reader: Tensor, wanted: Tensor) -> Tensor:
        """Mean of -log(attention on the named objects) over blocks, heads and questions that name any.

        reader [Q], wanted [Q, 2, patches] bool.
        """
        named = wanted.any(-1)  # [Q, 2]
        total = torch.zeros((), device=wanted.device)
        for index, attention in enumerate(self.layers):
            heads: tuple[int, int] = (attention.num_attention_heads, attention.attention_head_size)
            query = _split(self._seen[index, "query"], heads)[:, 0, :2].float()  # [Q, 2, D]
            key = _split(self._seen[index, "key"], heads)[:, 1:, :2].float()  # [B, patches, 2, D]
            logits = torch.einsum("qhd,qphd->qhp", query, key[reader]) * heads[1] ** -0.5
            mass = (logits.softmax(-1) * wanted).sum(-1)  # [Q, 2]
            total = total - mass[named].clamp_min(1e-6).log().mean()
        self._seen.clear()
        return total / len(self.layers)


class Reckoning(nn.Module):
    """Reads off a question's first token how many objects each description names, and where one is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 2 * (MAX_OBJECTS + 1 + 2))

    def forward(self, first_token: Tensor, counts: Tensor, patches: Tensor) -> Tensor:
        """Cross-entropy of the counts plus ten times the squared error of the places, in shares of the image.

        first_token [Q, C], counts [Q, 2] with -1 for none, patches [Q, 2, patches] bool.
        """
        out = self.head(first_token).float().view(-1, 2, MAX_OBJECTS + 3)
        count_loss = F.cross_entropy(out[..., 2:].transpose(1, 2), counts, ignore_index=-1)
        is_lone = (counts == 1) & patches.any(-1)
        wanted = centres(patches[is_lone])
        loss: Tensor = count_loss + 10 * (out[..., :2][is_lone] - wanted).square().mean()
        return loss


def centres(patches: Tensor) -> Tensor:
    """Mean place (x, y) of marked patches of a square image, in shares of its side: [..., P] -> [..., 2]."""
    side = int(patches.shape[-1] ** 0.5)
    places = (torch.arange(side, device=patches.device) + 0.5) / side
    grid = torch.stack([places.repeat(side), places.repeat_interleave(side)], -1)  # [P, 2]
    marked = patches.float()
    return (marked @ grid) / marked.sum(-1, keepdim=True)


def _split(projected: Tensor, heads: tuple[int, int]) -> Tensor:
    """[..., H * D] -> [..., H, D]."""
    return projected.view(*projected.shape[:-1], *heads)


def balanced_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of patches, those with an object and the far more frequent background counting alike.

    logits [B, labels, patches], labels [B, patches], 0 for background.
    """
    loss = F.cross_entropy(logits, labels, reduction="none")
    is_object = labels > 0
    return (loss[is_object].mean() + loss[~is_object].mean()) / 2


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
        self.patch_head = nn.Linear(width, NUM_PATCH_LABELS + NUM_LOOK_LABELS)
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
        kinds, looks = logits.split([NUM_PATCH_LABELS, NUM_LOOK_LABELS], 1)
        patch_loss = balanced_loss(kinds, batch.patch_labels) + balanced_loss(looks, batch.look_labels)
        pointing_loss = self.pointing.loss(batch.reader, batch.spoken_of)
        loss = (
            out.answer_loss + self.patch_loss_weight * patch_loss + self.pointing_loss_weight * pointing_loss
        )
        figures = {"answer_loss": out.answer_loss, "patch_loss": patch_loss, "pointing_loss": pointing_loss}
        if self.reckoning_loss_weight:
            first_token = out.text.tokens.hidden[:, 0]
            reckoning_loss = self.modules["reckoning"](first_token, batch.named_counts, batch.spoken_of)
            loss = loss + self.reckoning_loss_weight * reckoning_loss
            figures["reckoning_loss"] = reckoning_loss
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
