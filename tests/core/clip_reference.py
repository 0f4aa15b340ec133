"""CLIP's towers under MADTP by hand: float64, plain loops, an instance at a time. Imports no madtp_core.

The image tower is the paper's. The text tower is our definition: tokens stand in the order in which they
were written, EOT last; scores are EOT's (`reference` wants the protected token first, so rows are rolled).
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.core.reference import (
    MERGED,
    Instance,
    importance,
    joined,
    linear,
    norm,
    prune_batch_in_place,
)


def quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + (-1.702 * x).exp())


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool
) -> tuple[Tensor, Tensor]:
    """query, key, value [N, C] -> probabilities [H, N, N], output [H, N, D], a query at a time."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (query, key, value))
    length, width = query.shape[1:]
    probs = query.new_zeros(heads, length, length)
    for row in range(length):
        seen = row + 1 if causal else length
        logits = (query[:, row : row + 1] * key[:, :seen]).sum(-1) / width**0.5  # [H, seen]
        weights = (logits - logits.amax(-1, keepdim=True)).exp()
        probs[:, row, :seen] = weights / weights.sum(-1, keepdim=True)
    return probs, probs @ value


def run_tower(
    tower: Any,
    instances: list[Instance],
    alignment: Tensor,
    maps: nn.ModuleList,
    prune_temperature: float,
    keep_mode: str,
    causal: bool,
) -> None:
    """Drive instances, protected token first, through the blocks of either tower, in place."""
    for layer, align in zip(tower.encoder.layers, maps, strict=True):
        own = layer.self_attn
        scores, guidance = [], []
        for instance in instances:
            x = instance.hidden
            assert isinstance(align, nn.Linear)
            guidance.append(linear(x[1:], align) @ alignment.double().T)
            written = x.roll(-1, 0) if causal else x  # EOT last
            normed = norm(written, layer.layer_norm1)
            query, key, value = (linear(normed, part) for part in (own.q_proj, own.k_proj, own.v_proj))
            probs, context = masked_attention(query, key, value, own.num_heads, causal)
            if causal:  # back to EOT first
                probs, context = probs.roll((1, 1), (1, 2)), context.roll(1, 1)
            scores.append(importance(probs, context, guidance[-1]))
            instance.hidden = x + linear(joined(context), own.out_proj)
        before = [list(instance.position) for instance in instances]
        prune_batch_in_place(instances, scores, guidance, prune_temperature, keep_mode)
        for instance, old in zip(instances, before, strict=True):
            if causal and instance.position[-1] == MERGED:  # it stands where the last dropped one stood
                instance.position[-1] = max(set(old) - set(instance.position))
                instance.kept_positions[-1] = list(instance.position)
            x = instance.hidden
            inner = quick_gelu(linear(norm(x, layer.layer_norm2), layer.mlp.fc1))
            instance.hidden = x + linear(inner, layer.mlp.fc2)


def run_vision(
    tower: Any,
    alignment: Tensor,
    maps: nn.ModuleList,
    pixels: Tensor,
    prune_temperature: float,
    keep_mode: str,
) -> list[Instance]:
    """A pruned CLIP image tower on pixels [B, 3, height, width], without its final norm."""
    embeddings = tower.embeddings
    weight, patch = embeddings.patch_embedding.weight.double(), embeddings.patch_size
    instances = []
    for image in pixels.double():
        patches = F.unfold(image.unsqueeze(0), patch, stride=patch)[0].T  # [N, 3 * patch * patch]
        hidden = torch.cat([embeddings.class_embedding.double().unsqueeze(0), patches @ weight.flatten(1).T])
        hidden = norm(hidden + embeddings.position_embedding.weight.double(), tower.pre_layrnorm)
        instances.append(Instance(hidden, list(range(len(hidden)))))
    run_tower(tower, instances, alignment, maps, prune_temperature, keep_mode, causal=False)
    return instances


def run_text(
    tower: Any,
    alignment: Tensor,
    maps: nn.ModuleList,
    token_ids: Iterable[Tensor],
    prune_temperature: float,
    keep_mode: str,
) -> list[Instance]:
    """A pruned CLIP text tower on token_ids [L] of each row, EOT last, without its final norm."""
    embeddings = tower.embeddings
    instances = []
    for ids in token_ids:
        hidden = embeddings.token_embedding.weight.double()[ids]
        hidden = hidden + embeddings.position_embedding.weight.double()[: len(ids)]
        position = [len(ids) - 1, *range(len(ids) - 1)]
        instances.append(Instance(hidden[position], position))
    run_tower(tower, instances, alignment, maps, prune_temperature, keep_mode, causal=True)
    return instances
