"""Auxiliary losses that end the long plateau at the language prior: what, where, and how many.

Ours, for training small models from nothing; a pre-trained checkpoint needs none of them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madtp_core.attention import Signals
from madtp_core.data.shapes import NUM_PATCH_LABELS
from madtp_core.data.shapes.scene import MAX_OBJECTS
from madtp_core.pruning import VISION, PruneStep
from madtp_core.pruning.madtp import MadtpPruner
from madtp_core.tasks.vqa_network import VqaNetwork
from madtp_core.tokens import Tokens
from madtp_core.train.shapes_data import NUM_LOOK_LABELS, SceneBatch, VqaBatch

_ALIKE = 0.1  # of the image: nearer centres stand neither left nor right of each other
_IGNORED = -1
NUM_PATCH_OUTPUTS = NUM_PATCH_LABELS + NUM_LOOK_LABELS + 3


class Pointing:
    """Teaches four cross-attention heads of every question block to look at what a question names.

    Reads queries and keys through hooks while a training forward runs; the model itself is unchanged. Of the
    first token's heads, 0 and 1 shall attend to the objects of the question's first and second description; 2
    and 3 shall spread evenly over the class token and these objects' centres, so that the class token's share
    tells their number.
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

    def logits(self, index: int, reader: Tensor) -> Tensor:
        """The first token's attention logits to the class token and the patches: [Q, H, 1 + patches]."""
        attention = self.layers[index]
        heads = (attention.num_attention_heads, attention.attention_head_size)
        query = _split(self._seen[index, "query"], heads)[:, 0].float()  # [Q, H, D]
        key = _split(self._seen[index, "key"], heads).float()  # [B, 1 + patches, H, D]
        logits: Tensor = torch.einsum("qhd,qphd->qhp", query, key[reader]) * heads[1] ** -0.5
        return logits

    def losses(self, batch: VqaBatch) -> tuple[Tensor, Tensor]:
        """Pointing: -log(attention on the named objects). Tally: cross-entropy to the even spread.

        Means over blocks, heads and questions, of pointing only where a description names anything.
        """
        pointing = tally = torch.zeros((), device=batch.reader.device)
        is_named, is_asked = batch.spoken_of.any(-1), batch.named_counts >= 0  # [Q, 2]
        spread = F.pad(batch.named_centres.float(), (1, 0), value=1.0)  # [Q, 2, 1 + patches]
        spread = spread / spread.sum(-1, keepdim=True)
        for index in range(len(self.layers)):
            logits = self.logits(index, batch.reader).float()
            mass = (logits[:, :2, 1:].softmax(-1) * batch.spoken_of).sum(-1)  # [Q, 2]
            pointing = pointing - mass[is_named].clamp_min(1e-6).log().mean()
            tally = tally - (spread * logits[:, 2:4].log_softmax(-1)).sum(-1)[is_asked].mean()
        self._seen.clear()
        return pointing / len(self.layers), tally / len(self.layers)


class Reckoning(nn.Module):
    """Reads off a question's first token how many objects each description names, where, and which is more.

    Three comparisons of the two descriptions (x, y, count) have three outcomes each: less, alike, more.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.counts = nn.Linear(width, 2 * (MAX_OBJECTS + 1))
        self.places = nn.Linear(width, 2 * 2)
        self.comparisons = nn.Linear(width, 3 * 3)

    def forward(self, first_token: Tensor, counts: Tensor, patches: Tensor) -> Tensor:
        """Cross-entropy of counts and comparisons plus ten times the squared error of places in image shares.

        first_token [Q, C], counts [Q, 2] with -1 for none, patches [Q, 2, patches] bool.
        """
        said_counts = self.counts(first_token).float().view(-1, 2, MAX_OBJECTS + 1)
        said_places = self.places(first_token).float().view(-1, 2, 2)
        said_comparisons = self.comparisons(first_token).float().view(-1, 3, 3)
        is_lone = (counts == 1) & patches.any(-1)  # [Q, 2]
        places = torch.zeros_like(said_places)
        places[is_lone] = centres(patches[is_lone])
        is_both = is_lone.all(-1)
        place_error = (said_places - places)[is_lone].square().mean()
        count_loss = F.cross_entropy(said_counts.transpose(1, 2), counts, ignore_index=-1)

        offset = places[:, 0] - places[:, 1]  # [Q, 2]
        beside = 1 + torch.where(offset.abs() < _ALIKE, 0.0, offset.sign()).long()
        more = (1 + (counts[:, 0] - counts[:, 1]).sign()).masked_fill(counts[:, 1] < 0, _IGNORED)
        outcomes = torch.cat([beside.masked_fill(~is_both[:, None], _IGNORED), more[:, None]], 1)  # [Q, 3]
        total = F.cross_entropy(
            said_comparisons.transpose(1, 2), outcomes, ignore_index=_IGNORED, reduction="sum"
        )
        comparison_loss = total / (outcomes != _IGNORED).sum().clamp_min(1)
        loss: Tensor = count_loss + 10 * place_error + comparison_loss
        return loss


class WatchedMadtp(MadtpPruner):
    """MADTP that remembers a forward's importance of image tokens, for a loss on it."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[Tensor, Tensor]] = []  # position and importance [B, N] of each vision block

    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
        importance, needed = super().decide(tokens, signals, step)
        if step.branch == VISION:
            self._seen.append((tokens.position[:, 1:], importance))
        return importance, needed

    def importance_loss(self, is_object: Tensor) -> Tensor:
        """-log(share of the importance that lies on objects' patches), in the mean of blocks and rows.

        is_object [B, patches] bool. Forgets the forward. Merged tokens count as background.
        """
        losses = []
        for position, importance in self._seen:
            patch = position - 1  # the class token is position 0
            on_object = is_object.gather(1, patch.clamp_min(0)) & (patch >= 0)
            weight = importance.clamp_min(0)
            share = (weight * on_object).sum(1) / weight.sum(1).clamp_min(1e-6)
            losses.append(-share.clamp_min(1e-6).log().mean())
        self._seen.clear()
        return torch.stack(losses).mean()


def patches_loss(logits: Tensor, batch: SceneBatch) -> Tensor:
    """What is in every patch, whether it holds a centre, and where it lies: logits [B, labels + 3, patches].

    Without the last part, features of the last block forget where they are.
    """
    kinds, looks, centre, place = torch.split(logits, [NUM_PATCH_LABELS, NUM_LOOK_LABELS, 1, 2], 1)
    each = torch.eye(logits.shape[-1], device=logits.device)
    return (
        balanced_loss(kinds, batch.patch_labels)
        + balanced_loss(looks, batch.look_labels)
        + F.binary_cross_entropy_with_logits(centre[:, 0], batch.centre_labels.float())
        + 10 * (place.transpose(1, 2) - centres(each)).square().mean()
    )


def balanced_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of patches, those with an object and the far more frequent background counting alike.

    logits [B, labels, patches], labels [B, patches], 0 for background.
    """
    loss = F.cross_entropy(logits, labels, reduction="none")
    is_object = labels > 0
    return (loss[is_object].mean() + loss[~is_object].mean()) / 2


def centres(patches: Tensor) -> Tensor:
    """Mean place (x, y) of marked patches of a square image, in shares of its side: [..., P] -> [..., 2]."""
    side = int(patches.shape[-1] ** 0.5)
    places = (torch.arange(side, device=patches.device) + 0.5) / side
    grid = torch.stack([places.repeat(side), places.repeat_interleave(side)], -1)  # [P, 2]
    marked = patches.float()
    return (marked @ grid) / marked.sum(-1, keepdim=True)


def _split(projected: Tensor, heads: tuple[int, int]) -> Tensor:
    """[..., H * D] -> [..., H, D]."""
    split: Tensor = projected.view(*projected.shape[:-1], *heads)
    return split
