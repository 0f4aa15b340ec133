"""The loss of a vision tower alone: what stands in every patch, and where."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from madtp_core.data.shapes import NUM_PATCH_LABELS
from madtp_core.tokens import Tokens
from madtp_core.train.shapes_data import NUM_LOOK_LABELS, SceneBatch

NUM_PATCH_OUTPUTS = NUM_PATCH_LABELS + NUM_LOOK_LABELS + 3


def patches_loss(logits: Tensor, batch: SceneBatch, stays: Tensor | None = None) -> Tensor:
    """What is in every patch, whether it holds a centre, and where it lies: logits [B, patches, outputs].

    stays [B, patches] bool: the patches that are asked, all unless given. Without the last part, features of
    the last block forget where they are.
    """
    stays = torch.ones_like(batch.patch_labels, dtype=torch.bool) if stays is None else stays
    kinds, looks, centre, place = torch.split(logits[stays], [NUM_PATCH_LABELS, NUM_LOOK_LABELS, 1, 2], -1)
    each = centres(torch.eye(stays.shape[1], device=logits.device)).expand(len(stays), -1, -1)
    loss: Tensor = (
        balanced_loss(kinds, batch.patch_labels[stays])
        + balanced_loss(looks, batch.look_labels[stays])
        + F.binary_cross_entropy_with_logits(centre[:, 0], batch.centre_labels[stays].float())
        + 10 * (place - each[stays]).square().mean()
    )
    return loss


def balanced_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of patches, those with an object and the far more frequent background counting alike.

    logits [P, labels], labels [P], 0 for background.
    """
    loss = F.cross_entropy(logits, labels, reduction="none")
    return (mean_where(loss, labels > 0) + mean_where(loss, labels == 0)) / 2


def centres(patches: Tensor) -> Tensor:
    """Mean place (x, y) of marked patches of a square image, in shares of its side: [..., P] -> [..., 2]."""
    side = int(patches.shape[-1] ** 0.5)
    places = (torch.arange(side, device=patches.device) + 0.5) / side
    grid = torch.stack([places.repeat(side), places.repeat_interleave(side)], -1)  # [P, 2]
    marked = patches.float()
    return (marked @ grid) / marked.sum(-1, keepdim=True)


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the chosen ones, 0 for none: values, chosen [N] -> []."""
    return values.where(chosen, 0.0).sum() / chosen.sum().clamp_min(1)


def by_patch(tokens: Tokens, patches: int) -> tuple[Tensor, Tensor]:
    """Features of image tokens by the patch they stand for: [B, patches, C], zero where dropped, and kept."""
    padded = tokens.unpack()
    is_patch = padded.position > 0
    if padded.mask is not None:
        is_patch = is_patch & padded.mask
    row, column = is_patch.nonzero(as_tuple=True)
    patch = padded.position[row, column] - 1
    features = padded.hidden.new_zeros(len(is_patch), patches, padded.hidden.shape[-1])
    stays = torch.zeros(features.shape[:2], dtype=torch.bool, device=features.device)
    stays[row, patch] = True
    return features.index_put((row, patch), padded.hidden[row, column]), stays
