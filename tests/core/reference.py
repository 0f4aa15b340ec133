"""MADTP by hand: float64 and plain loops, an instance at a time, from its formulas and not from our code.

Nothing here imports madtp_core. A block's linear algebra is spelled out from its weights; scores, threshold,
kept set and merged token are Python loops over numbers. No padding: a batch is a list of instances.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-8
MERGED = -1
TERMS = ("self", "token", "cls")


# --- Scores of one instance: probs [H, 1+N, 1+N], context [H, 1+N, D], guidance [N, K]; class token first.


def self_score(probs: Tensor) -> list[float]:
    """S_self: summed over the queries behind the class token, the largest head's attention to each token."""
    heads, length, _ = probs.shape
    p = probs.tolist()
    received = [
        sum(max(p[h][query][i] for h in range(heads)) for query in range(1, length)) for i in range(1, length)
    ]
    total = sum(received) + EPS
    return [value / total for value in received]


def token_score(guidance: Tensor) -> list[float]:
    """S_token, as the reference has it: no guard against a vanishing or negative sum."""
    best = [max(row) for row in guidance.tolist()]
    total = sum(best) + EPS
    return [value / total for value in best]


def class_score(probs: Tensor, context: Tensor) -> list[float]:
    """S_cls: the class token's attention, a head weighted by its share of the output norms at the token."""
    heads, length, _ = probs.shape
    p, o = probs.tolist(), context.tolist()
    scores = []
    for i in range(1, length):
        norms = [math.sqrt(sum(x * x for x in o[h][i])) for h in range(heads)]
        total = sum(norms) + EPS
        scores.append(sum(p[h][0][i] * norms[h] / total for h in range(heads)))
    return scores


def importance(probs: Tensor, context: Tensor, guidance: Tensor, terms: Sequence[str] = TERMS) -> list[float]:
    """TIS: the mean of those of the three scores that are on."""
    every = {
        "self": self_score(probs),
        "token": token_score(guidance),
        "cls": class_score(probs, context),
    }
    scores = zip(*(every[term] for term in terms), strict=True)
    return [sum(parts) / len(parts) for parts in scores]


def threshold(tis: list[float], guidance: Tensor, prune_temperature: float) -> float:
    """Theta: over the alignment tokens, the smallest mean of TIS weighted by softmax(A[:, j] / T)."""
    means = []
    for column in guidance.T.tolist():
        peak = max(column)
        weights = [math.exp((a - peak) / prune_temperature) for a in column]
        means.append(sum(w * s for w, s in zip(weights, tis, strict=True)) / sum(weights))
    return min(means)


# --- One block's pruning of one instance.


@dataclass
class Instance:
    """One row: hidden [1+N, C], the original position of each token, and what its blocks did so far."""

    hidden: Tensor
    position: list[int]
    tokens_in: list[int] = field(default_factory=list)
    needed: list[int] = field(default_factory=list)
    kept_positions: list[list[int]] = field(default_factory=list)
    margin: float = math.inf  # smallest |TIS - theta| / theta and relative gap at the cut so far


def prune_in_place(instance: Instance, tis: list[float], keep: int) -> Instance:
    """Keep the `keep` highest TIS in their order and append the weighted mean of the others."""
    hidden = instance.hidden
    ranked = sorted(range(len(tis)), key=lambda i: -tis[i])
    kept, dropped = sorted(ranked[:keep]), sorted(ranked[keep:])
    total = sum(tis[i] for i in dropped) + EPS
    merged = torch.zeros_like(hidden[0])
    for i in dropped:
        merged = merged + tis[i] * hidden[1 + i] / total
    gap = (tis[ranked[keep - 1]] - tis[ranked[keep]]) / tis[ranked[keep - 1]]
    instance.margin = min(instance.margin, gap)
    instance.hidden = torch.stack([hidden[0], *(hidden[1 + i] for i in kept), merged])
    instance.position = [instance.position[0], *(instance.position[1 + i] for i in kept), MERGED]
    return instance


def prune_batch_in_place(
    instances: list[Instance],
    scores: list[list[float]],
    guidance: list[Tensor],
    prune_temperature: float,
    keep_mode: str,
) -> None:
    """One block's decision for a batch: count what each needs, choose k, prune or leave alone."""
    needs = []
    for instance, tis, attention in zip(instances, scores, guidance, strict=True):
        theta = threshold(tis, attention, prune_temperature)
        needs.append(sum(1 for score in tis if score > theta))
        instance.margin = min(instance.margin, *(abs(score - theta) / theta for score in tis))
    for instance, tis, need in zip(instances, scores, needs, strict=True):
        count = len(tis)
        k = max(needs) if keep_mode == "max_keep" else need
        instance.tokens_in.append(count)
        if k < 1 or count - k <= 1:
            instance.needed.append(count)
        else:
            instance.needed.append(need)
            prune_in_place(instance, tis, k)
        instance.kept_positions.append(list(instance.position))


# --- BLIP's blocks, spelled out. Everything is float64 and one instance: [N, C].


def linear(x: Tensor, layer: torch.nn.Linear) -> Tensor:
    return x @ layer.weight.double().T + layer.bias.double()


def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + layer.eps).sqrt() * layer.weight.double() + layer.bias.double()


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """query [N, C], key, value [M, C] -> probabilities [H, N, M] and per-head output [H, N, D]."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (query, key, value))
    logits = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    probs = weights / weights.sum(-1, keepdim=True)
    return probs, probs @ value


def joined(context: Tensor) -> Tensor:
    """[H, N, D] -> [N, C]."""
    return context.transpose(0, 1).flatten(1)


def run_vision(
    tower: Any,
    alignment: Tensor,
    pixels: Tensor,
    prune_temperature: float,
    keep_mode: str,
    terms: Sequence[str] = TERMS,
) -> list[Instance]:
    """A pruned BLIP vision tower on pixels [B, 3, height, width], guided by alignment tokens [K, C]."""
    embeddings = tower.embeddings
    weight, patch = embeddings.patch_embedding.weight.double(), embeddings.patch_size
    instances = []
    for image in pixels.double():
        patches = F.unfold(image.unsqueeze(0), patch, stride=patch)[0].T  # [N, 3 * patch * patch]
        tokens = patches @ weight.flatten(1).T + embeddings.patch_embedding.bias.double()
        hidden = torch.cat([embeddings.class_embedding.double()[0], tokens])
        hidden = hidden + embeddings.position_embedding.double()[0]
        instances.append(Instance(hidden, list(range(len(hidden)))))
    for layer in tower.encoder.layers:
        heads = layer.self_attn.num_heads
        scores, guidance = [], []
        for instance in instances:
            x = instance.hidden
            guidance.append(x[1:] @ alignment.double().T)
            query, key, value = linear(norm(x, layer.layer_norm1), layer.self_attn.qkv).chunk(3, -1)
            probs, context = attention(query, key, value, heads)
            scores.append(importance(probs, context, guidance[-1], terms))
            instance.hidden = x + linear(joined(context), layer.self_attn.projection)
        prune_batch_in_place(instances, scores, guidance, prune_temperature, keep_mode)
        for instance in instances:
            x = instance.hidden
            inner = F.gelu(linear(norm(x, layer.layer_norm2), layer.mlp.fc1))
            instance.hidden = x + linear(inner, layer.mlp.fc2)
    for instance in instances:
        instance.hidden = norm(instance.hidden, tower.post_layernorm)
    return instances


def read_nothing(cross: Any, x: Tensor, memory: None, heads: int) -> Tensor:
    """A text alone."""
    return x


def read_image(cross: Any, x: Tensor, memory: Tensor, heads: int) -> Tensor:
    """BLIP's cross-attention of x [N, C] to one image [M, C]."""
    query = linear(x, cross.self.query)
    _, context = attention(query, linear(memory, cross.self.key), linear(memory, cross.self.value), heads)
    return norm(x + linear(joined(context), cross.output.dense), cross.output.LayerNorm)


def read_two_images(cross: Any, x: Tensor, images: tuple[Tensor, Tensor], heads: int) -> Tensor:
    """NLVR2's cross-attention of x [N, C] to two images [M, C] and [M', C], a twin each."""
    output, gathered = cross.output, []
    for image, twin, dense in zip(
        images, (cross.self0, cross.self1), (output.dense0, output.dense1), strict=True
    ):
        _, context = attention(
            linear(x, twin.query), linear(image, twin.key), linear(image, twin.value), heads
        )
        gathered.append(linear(joined(context), dense))
    if output.merge_layer is None:
        together = (gathered[0] + gathered[1]) / 2
    else:
        together = linear(torch.cat(gathered, -1), output.merge_layer)
    return norm(x + together, output.LayerNorm)


def run_text(
    tower: Any,
    alignment: Tensor,
    token_ids: Iterable[Tensor],
    memories: list[Any],
    prune_temperature: float,
    keep_mode: str,
    read: Callable[[Any, Tensor, Any, int], Tensor] = read_image,
    terms: Sequence[str] = TERMS,
) -> list[Instance]:
    """A pruned BLIP text encoder on token_ids [L] of each row, row b reading memories[b] [M, C].

    read: how a layer's cross-attention reads one of the memories.
    """
    embeddings = tower.embeddings
    instances = []
    for ids in token_ids:
        hidden = embeddings.word_embeddings.weight.double()[ids]
        hidden = hidden + embeddings.position_embeddings.weight.double()[: len(ids)]
        instances.append(Instance(norm(hidden, embeddings.LayerNorm), list(range(len(ids)))))
    for layer in tower.encoder.layer:
        own, cross = layer.attention, layer.crossattention
        heads = own.self.num_attention_heads
        scores, guidance = [], []
        for instance in instances:
            x = instance.hidden
            guidance.append(x[1:] @ alignment.double().T)
            query, key, value = (linear(x, part) for part in (own.self.query, own.self.key, own.self.value))
            probs, context = attention(query, key, value, heads)
            scores.append(importance(probs, context, guidance[-1], terms))
            instance.hidden = norm(x + linear(joined(context), own.output.dense), own.output.LayerNorm)
        prune_batch_in_place(instances, scores, guidance, prune_temperature, keep_mode)
        for instance, memory in zip(instances, memories, strict=True):
            x = read(cross, instance.hidden, memory, heads)
            inner = F.gelu(linear(x, layer.intermediate.dense))
            instance.hidden = norm(x + linear(inner, layer.output.dense), layer.output.LayerNorm)
    return instances
