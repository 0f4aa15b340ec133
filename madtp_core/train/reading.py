"""Auxiliary losses that teach a small model to read an image: where to look, how many, which is more.

Ours, for training from nothing; a pre-trained checkpoint needs none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madtp_core.data.shapes.scene import MAX_OBJECTS
from madtp_core.tokens import Tokens
from madtp_core.train.patches import centres, mean_where
from madtp_core.train.shapes_data import Named

_ALIKE = 0.1  # of the image: nearer centres stand neither left nor right of each other
_IGNORED = -1


class Pointing:
    """Teaches cross-attention heads of every text block to look at what a text names.

    Reads queries and keys of the attentions through hooks while a training forward runs; the model itself is
    unchanged. Of the first token's heads, the first `descriptions` shall attend to the objects that their
    description names; as many behind them shall spread evenly over the class token and the centres of these
    objects, so that the class token's share tells their number.
    """

    def __init__(self, attentions: Sequence[Any], descriptions: int) -> None:
        self._seen: dict[tuple[int, str], Tensor] = {}
        self.layers, self.descriptions = list(attentions), descriptions
        for index, attention in enumerate(self.layers):
            for name in ("query", "key"):
                getattr(attention, name).register_forward_hook(partial(self._note, (index, name)))

    def _note(
        self, place: tuple[int, str], module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        if torch.is_grad_enabled():
            self._seen[place] = output

    def logits(self, index: int, reader: Tensor) -> Tensor:
        """The first token's attention logits to the image tokens: [Q, H, N]."""
        attention = self.layers[index]
        heads = (attention.num_attention_heads, attention.attention_head_size)
        query = _split(self._seen[index, "query"], heads)[:, 0].float()  # [Q, H, D]
        key = _split(self._seen[index, "key"], heads).float()  # [B, N, H, D]
        logits: Tensor = torch.einsum("qhd,qphd->qhp", query, key[reader]) * heads[1] ** -0.5
        return logits

    def losses(self, named: Named, reader: Tensor, image: Tokens) -> tuple[Tensor, Tensor]:
        """Pointing: -log(attention on the named objects). Tally: cross-entropy to the even spread.

        image: the tokens of B images, reader [Q] text -> image. Means over blocks, heads and texts, of
        pointing only where a description names anything that is kept, of the tally only where all centres
        are. Both are 0 where image tokens are packed: heads learn in the steps that pad.
        """
        pointing = tally = torch.zeros((), device=reader.device)
        if image.is_packed:
            self._seen.clear()
            return pointing, tally
        patch = image.position[reader, 1:] - 1  # [Q, N - 1]
        patches, spread = (_at_tokens(where, patch) for where in (named.patches, named.centres))
        is_named = patches.any(-1)
        is_asked = (named.counts >= 0) & (spread.sum(-1) == named.centres.sum(-1))  # [Q, D]
        spread = F.pad(spread.float(), (1, 0), value=1.0)  # [Q, D, N]
        spread = spread / spread.sum(-1, keepdim=True)
        for index in range(len(self.layers)):
            logits = self.logits(index, reader)
            pointers, tallies = torch.split(logits, self.descriptions, 1)[:2]
            mass = (pointers[..., 1:].softmax(-1) * patches).sum(-1)  # [Q, D]
            pointing = pointing - mean_where(mass.clamp_min(1e-6).log(), is_named)
            tally = tally - mean_where((spread * tallies.log_softmax(-1)).sum(-1), is_asked)
        self._seen.clear()
        return pointing / len(self.layers), tally / len(self.layers)


def _at_tokens(where: Tensor, patch: Tensor) -> Tensor:
    """where [Q, D, patches] bool, at the tokens' patches [Q, N], -1 for none of them: [Q, D, N] bool."""
    index = patch.clamp_min(0).unsqueeze(1).expand(-1, where.shape[1], -1)
    return where.gather(-1, index) & (patch >= 0).unsqueeze(1)


class Reckoning(nn.Module):
    """Reads off a text's first token how many objects each of two descriptions names, where, which is more.

    Three comparisons of the two descriptions (x, y, count) have three outcomes each: less, alike, more.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.counts = nn.Linear(width, 2 * (MAX_OBJECTS + 1))
        self.places = nn.Linear(width, 2 * 2)
        self.comparisons = nn.Linear(width, 3 * 3)

    def forward(self, first_token: Tensor, named: Named) -> Tensor:
        """Cross-entropy of counts and comparisons plus ten times the squared error of places in image shares.

        first_token [Q, C]; named: by two descriptions.
        """
        counts = named.counts
        said_counts = self.counts(first_token).float().view(-1, 2, MAX_OBJECTS + 1)
        said_places = self.places(first_token).float().view(-1, 2, 2)
        said_comparisons = self.comparisons(first_token).float().view(-1, 3, 3)
        is_lone = (counts == 1) & named.patches.any(-1)  # [Q, 2]
        places = torch.zeros_like(said_places)
        places[is_lone] = centres(named.patches[is_lone])
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


def _split(projected: Tensor, heads: tuple[int, int]) -> Tensor:
    """[..., H * D] -> [..., H, D]."""
    split: Tensor = projected.view(*projected.shape[:-1], *heads)
    return split
