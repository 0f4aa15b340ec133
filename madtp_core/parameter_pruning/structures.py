"""Where a model's attention heads and feed-forward units lie, and how to take some of them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor, nn

from madtp_core.backbones.blip import text_blocks, vision_blocks
from madtp_core.backbones.clip import clip_blocks
from madtp_core.backbones.nlvr import BlipForReasoning, twin_text_blocks
from madtp_core.blocks import BlipVisionBlock, ClipBlock, TwinTextBlock
from madtp_core.errors import ConfigError
from madtp_core.parameter_pruning.geometry import (
    DECODER,
    TEXT,
    TOWERS,
    VISION,
    BlockGeometry,
    ModelGeometry,
)

ATTENTION, MLP = "attention", "mlp"
KINDS: Final = (ATTENTION, MLP)


@dataclass(frozen=True, eq=False)
class Component:
    """Structures that stand side by side: the heads of one attention, or the units of one feed-forward part.

    inputs: linear layers whose outputs belong to the structures, each `parts` times over (3 for a fused qkv).
    output: the one that reads them. width: channels of a structure, D for a head and 1 for a unit. owner: the
    module that knows how many heads there are, None for units.
    """

    name: str
    kind: str
    inputs: tuple[nn.Linear, ...]
    output: nn.Linear
    width: int
    parts: int = 1
    owner: Any = None

    @property
    def tower(self) -> str:
        """The tower it stands in."""
        return self.name.partition("[")[0]

    @property
    def count(self) -> int:
        """How many structures there are."""
        return self.output.in_features // self.width

    @cached_property
    def parameters_each(self) -> int:
        """Parameters that leave with one structure."""
        entering = sum(layer.in_features + (layer.bias is not None) for layer in self.inputs)
        return self.width * (self.parts * entering + self.output.out_features)

    def keep(self, kept: Sequence[int]) -> None:
        """Take all others out of the linear layers, in place; kept: rising indices, one at least."""
        chosen = torch.as_tensor(kept, device=self.output.weight.device)
        channels = (
            chosen.unsqueeze(1) * self.width + torch.arange(self.width, device=chosen.device)
        ).flatten()
        starts = torch.arange(self.parts, device=chosen.device) * (self.count * self.width)
        rows = (starts.unsqueeze(1) + channels).flatten()
        for layer in self.inputs:
            _replace(layer, layer.weight[rows], None if layer.bias is None else layer.bias[rows])
        _replace(self.output, self.output.weight[:, channels], self.output.bias)
        _tell_heads(self.owner, len(kept))


def components_of(model: Any) -> dict[str, list[list[Component]]]:
    """The components of a Hugging Face BLIP or CLIP: tower -> a list a block, as in `BlockGeometry`."""
    return {
        tower: [_of_block(tower, *place) for place in enumerate(blocks)]
        for tower, blocks in _towers(model).items()
    }


def every_component(model: Any) -> list[Component]:
    """The components of all towers and blocks, in their order."""
    return [one for blocks in components_of(model).values() for block in blocks for one in block]


def geometry_of(model: Any) -> ModelGeometry:
    """What the model's linear layers hold now."""
    return ModelGeometry(
        **{
            tower: tuple(_geometry([part.count for part in block]) for block in blocks)
            for tower, blocks in components_of(model).items()
        }
    )


def resize(model: Any, geometry: ModelGeometry) -> None:
    """Bring a whole model to a geometry, in place, its first structures kept: to be filled with weights.

    Raises ConfigError naming the place where the geometry does not fit the model.
    """
    towers = components_of(model)
    for tower in TOWERS:
        blocks, wanted = towers.get(tower, []), geometry.of(tower)
        if len(blocks) != len(wanted):
            raise ConfigError(
                f"geometry.{tower} has {len(wanted)} blocks, the model's configuration has {len(blocks)}"
            )
        for components, block in zip(blocks, wanted, strict=True):
            _resize_block(components, block)


def sized(model_class: Any, geometry: ModelGeometry) -> Any:
    """A Hugging Face class whose models are of a geometry as soon as they are made, so that weights fit.

    A model goes back to its own class by `model.__class__ = model_class`.
    """

    class Sized(model_class):  # type: ignore[misc]
        def __init__(self, config: Any, *inputs: Any, **options: Any) -> None:
            super().__init__(config, *inputs, **options)
            resize(self, geometry)

    Sized.__name__ = model_class.__name__  # which Hugging Face writes into its configuration
    return Sized


def _towers(model: Any) -> dict[str, Sequence[Any]]:
    """Adapters of the blocks of every tower."""
    if hasattr(model, "text_model"):
        return {VISION: clip_blocks(model.vision_model), TEXT: clip_blocks(model.text_model)}
    towers: dict[str, Sequence[Any]] = {VISION: vision_blocks(model.vision_model)}
    if isinstance(model, BlipForReasoning):
        towers[TEXT] = twin_text_blocks(model.text_encoder)
    elif hasattr(model, "text_encoder"):
        towers[TEXT] = text_blocks(model.text_encoder)
    if hasattr(model, "text_decoder"):
        towers[DECODER] = text_blocks(model.text_decoder.bert)
    return towers


def _of_block(tower: str, index: int, block: Any) -> list[Component]:
    """Self-attention, feed-forward, then what reads each memory."""
    layer, place = block.layer, f"{tower}[{index}]"
    if isinstance(block, BlipVisionBlock):
        own = layer.self_attn
        heads = _heads(f"{place}.heads", own, (own.qkv,), own.projection, own.head_dim, parts=3)
        return [heads, _units(place, layer.mlp.fc1, layer.mlp.fc2)]
    if isinstance(block, ClipBlock):
        own = layer.self_attn
        inputs = own.q_proj, own.k_proj, own.v_proj
        heads = _heads(f"{place}.heads", own, inputs, own.out_proj, own.head_dim)
        return [heads, _units(place, layer.mlp.fc1, layer.mlp.fc2)]
    heads = _bert_heads(f"{place}.heads", layer.attention.self, layer.attention.output.dense)
    units = _units(place, layer.intermediate.dense, layer.output.dense)
    cross = layer.crossattention
    readers = (
        [(cross.self, cross.output.dense)]
        if not isinstance(block, TwinTextBlock)
        else [
            (cross.self0, cross.output.dense0),
            (cross.self1, cross.output.dense1),
        ]
    )
    crosses = [_bert_heads(f"{place}.cross_heads[{side}]", *reader) for side, reader in enumerate(readers)]
    return [heads, units, *crosses]


def _heads(
    name: str, owner: Any, inputs: tuple[nn.Linear, ...], output: nn.Linear, width: int, parts: int = 1
) -> Component:
    return Component(name, ATTENTION, inputs, output, width, parts, owner)


def _bert_heads(name: str, own: Any, output: nn.Linear) -> Component:
    return _heads(name, own, (own.query, own.key, own.value), output, own.attention_head_size)


def _units(place: str, first: nn.Linear, second: nn.Linear) -> Component:
    return Component(f"{place}.mlp_units", MLP, (first,), second, 1)


def _geometry(counts: Sequence[int]) -> BlockGeometry:
    heads, units, *cross = counts
    return BlockGeometry(heads, units, tuple(cross))


def _resize_block(components: Sequence[Component], block: BlockGeometry) -> None:
    wanted = block.heads, block.mlp_units, *block.cross_heads
    if len(wanted) != len(components):
        raise ConfigError(
            f"geometry: {components[0].name.partition('.')[0]} reads {len(components) - 2} memories, "
            f"got cross_heads {list(block.cross_heads)}"
        )
    for component, count in zip(components, wanted, strict=True):
        if count > component.count:
            raise ConfigError(
                f"geometry.{component.name} is {count}, but the model's configuration has {component.count}"
            )
        component.keep(range(count))


def _replace(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Give a linear layer other weights, and so another size."""
    trained = layer.weight.requires_grad
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=trained)
    if bias is not None and bias is not layer.bias:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=trained)
    layer.out_features, layer.in_features = weight.shape


def _tell_heads(owner: Any, heads: int) -> None:
    """Let an attention module know its heads; their width, and so the scale of its logits, stays."""
    if hasattr(owner, "num_attention_heads"):
        owner.num_attention_heads, owner.all_head_size = heads, heads * owner.attention_head_size
    elif owner is not None:
        owner.num_heads = heads
