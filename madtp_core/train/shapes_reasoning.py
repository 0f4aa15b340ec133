"""The demo's reasoning over two images: statements learned on the shared vision tower."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from madtp_core.alignment import alignment_loss
from madtp_core.backbones.blip import text_config
from madtp_core.blocks import Memory, TwinMemory
from madtp_core.data.shapes.statements import statement_about
from madtp_core.encoder import Encoded
from madtp_core.images import ImageGeometry
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.cost import Traces, branch_traces
from madtp_core.tasks.reasoning_cost import ReasoningCostModel
from madtp_core.tasks.reasoning_network import ReasoningNetwork
from madtp_core.tasks.text import TextCodec
from madtp_core.train.costs import CostsInTurn
from madtp_core.train.hooks import Hooks
from madtp_core.train.reading import Pointing, Reckoning
from madtp_core.train.shapes_data import Named, SceneBatch, ShapesBatches, named_by, scene_batch
from madtp_core.train.shared_tower import OnSharedTower


@dataclass(frozen=True, eq=False)
class StatementBatch:
    """B scenes, and statements about pairs of them.

    token_ids, mask [Q, L]; left, right [Q] statement -> scene; labels [Q] int64, 1 where it holds; named:
    what it speaks of, once as it stands in the left and once as it stands in the right scene.
    """

    scenes: SceneBatch
    token_ids: Tensor
    mask: Tensor
    left: Tensor
    right: Tensor
    labels: Tensor
    named: Named


class ShapesStatementBatches(Dataset[StatementBatch]):
    """Step -> the scenes of that step, each paired with the next, with statements about every pair."""

    def __init__(self, batches: ShapesBatches, codec: TextCodec, statements: int) -> None:
        self.batches, self.codec, self.statements = batches, codec, statements

    def __getitem__(self, step: int) -> StatementBatch:
        examples = self.batches.examples(step)
        rng = random.Random(f"statements/{self.batches.first_scene}/{step}")
        pairs = [(row, (row + 1) % len(examples)) for row in range(len(examples))]
        pairs = [pair for pair in pairs for _ in range(self.statements)]
        said = [statement_about(examples[a].scene, examples[b].scene, rng) for a, b in pairs]
        ids, mask = self.codec.questions([one.text for one in said])
        left, right = zip(*pairs, strict=True)
        sides = [
            named_by([(examples[row], (one.about,)) for row, one in zip(rows, said, strict=True)], 1)
            for rows in (left, right)
        ]
        return StatementBatch(
            scene_batch(examples),
            ids,
            mask,
            torch.tensor(left),
            torch.tensor(right),
            torch.tensor([int(one.holds) for one in said]),
            Named(*(torch.cat([getattr(side, entry.name) for side in sides], 1) for entry in fields(Named))),
        )


@dataclass(frozen=True)
class ReasoningLosses:
    """Weights of the auxiliary losses beside the classifier's; as of `ReadingLosses`."""

    pointing: float = 0.3
    tally: float = 0.15
    reckoning: float = 0.5
    alignment: float = 0.1


class ReasonShapes(OnSharedTower[ReasoningNetwork, StatementBatch]):
    """Teaches the twin text encoder, pruned too, and the classifier; a request is a statement."""

    def __init__(
        self,
        network: ReasoningNetwork,
        data: Dataset[StatementBatch],
        geometry: ImageGeometry,
        hooks: Hooks,
        costs: CostsInTurn,
        weights: ReasoningLosses,
    ) -> None:
        super().__init__(network, data, geometry, hooks, costs)
        self.weights = weights
        self.cost_model = ReasoningCostModel(network, geometry.height, geometry.width)
        width = text_config(network.blip.config).hidden_size
        layers = network.blip.text_encoder.encoder.layer
        self.pointings = [
            Pointing([getattr(layer.crossattention, twin) for layer in layers], descriptions=1)
            for twin in ("self0", "self1")
        ]
        self.early_reckoning, self.late_reckoning = Reckoning(width), Reckoning(width)
        self.modules = nn.ModuleDict(
            {
                "text_encoder": network.blip.text_encoder,
                "cls_head": network.blip.cls_head,
                "early_reckoning": self.early_reckoning,
                "late_reckoning": self.late_reckoning,
            }
        )

    def loss(self, batch: StatementBatch, step: int) -> tuple[Tensor, Mapping[str, float]]:
        network, early, images = self.network, list[Tensor](), batch.scenes.images
        pruning = self.begin(step, len(batch.labels))
        image = self.see(images, pruning, torch.zeros(len(images), dtype=torch.int64))  # all alike
        readers = batch.left, batch.right
        statement = network.encode_text(
            batch.token_ids,
            batch.mask,
            self._remember(image, readers),
            pruning.of(TEXT),
            collect_aligned=True,
            on_block=lambda tokens: early.append(tokens.protected()),
        )
        assert image.aligned is not None and statement.aligned is not None
        aligned = (image.aligned[batch.left] + image.aligned[batch.right]) / 2
        pointed = [
            pointing.losses(batch.named.of(side), readers[side], image.tokens)
            for side, pointing in enumerate(self.pointings)
        ]
        parts = {
            "pointing": pointed[0][0] + pointed[1][0],
            "tally": pointed[0][1] + pointed[1][1],
            "reckoning": self.early_reckoning(early[-2], batch.named)
            + self.late_reckoning(statement.tokens.protected(), batch.named) / 2,
            "alignment": alignment_loss(aligned, statement.aligned),
        }
        logits = network.classify(statement)
        answer_loss = F.cross_entropy(logits, batch.labels)
        loss = answer_loss + sum(getattr(self.weights, name) * part for name, part in parts.items())
        figures = {
            f"answer_loss/{self.costs.at(step)}": answer_loss.item(),
            f"accuracy/{self.costs.at(step)}": (logits.argmax(1) == batch.labels).float().mean().item(),
        }
        figures |= {f"{name}_loss": part.item() for name, part in parts.items()}
        return loss, figures | self.steering(self._traces(batch, image, statement), (), pruning)

    def _remember(self, image: Encoded, readers: tuple[Tensor, Tensor]) -> TwinMemory:
        """Every image projected once by either twin, however many statements read it."""
        blocks = self.network.text_blocks()
        first, second = (
            Memory.project(image.tokens, [block.twins[side] for block in blocks], reader)
            for side, reader in enumerate(readers)
        )
        return TwinMemory((first, second))

    def _traces(self, batch: StatementBatch, image: Encoded, statement: Encoded) -> list[Traces]:
        """Those of one statement of every pair."""
        seen = branch_traces(image, [self.cost_model.vision.patches] * len(batch.scenes.images))
        said = branch_traces(statement, (batch.mask.sum(1) - 1).tolist())
        rows = range(0, len(said), len(said) // len(seen))
        return [{VISION: (seen[batch.left[row]], seen[batch.right[row]]), TEXT: (said[row],)} for row in rows]
