"""What parameter pruning left of every block of a model: plain numbers, as `madtp.json` has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from madtp_core.errors import ConfigError, UnknownNameError

VISION, TEXT, DECODER = "vision", "text", "decoder"
TOWERS: Final = (VISION, TEXT, DECODER)


@dataclass(frozen=True)
class BlockGeometry:
    """Attention heads and feed-forward units of one block, one of each at least.

    cross_heads: of what reads a memory, one number for each memory; () where a block reads none.
    """

    heads: int
    mlp_units: int
    cross_heads: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for count in (self.heads, self.mlp_units, *self.cross_heads):
            if not _is_count(count):
                raise ConfigError(f"heads and units of a block must be whole numbers >= 1, got {count!r}")


@dataclass(frozen=True)
class ModelGeometry:
    """Every block of every tower, in their order; a tower that a model lacks is ()."""

    vision: tuple[BlockGeometry, ...] = ()
    text: tuple[BlockGeometry, ...] = ()
    decoder: tuple[BlockGeometry, ...] = ()

    def of(self, tower: str) -> tuple[BlockGeometry, ...]:
        """The blocks of one of `TOWERS`."""
        blocks: tuple[BlockGeometry, ...] = getattr(self, tower)
        return blocks

    @classmethod
    def from_dict(cls, data: Any) -> ModelGeometry:
        """Read plain values; raises ConfigError for anything that is no geometry."""
        _check_mapping("geometry", data, TOWERS)
        return cls(**{tower: _blocks(tower, blocks) for tower, blocks in data.items()})


def _blocks(tower: str, data: Any) -> tuple[BlockGeometry, ...]:
    if not isinstance(data, list | tuple):
        raise ConfigError(f"geometry.{tower} must be a list of blocks, got {data!r}")
    return tuple(_block(f"geometry.{tower}[{index}]", block) for index, block in enumerate(data))


def _block(place: str, data: Any) -> BlockGeometry:
    _check_mapping(place, data, [entry.name for entry in fields(BlockGeometry)])
    cross = data.get("cross_heads", ())
    if "heads" not in data or "mlp_units" not in data or not isinstance(cross, list | tuple):
        raise ConfigError(f"{place} needs heads, mlp_units and a list cross_heads, got {data!r}")
    try:
        return BlockGeometry(data["heads"], data["mlp_units"], tuple(cross))
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def _check_mapping(place: str, data: Any, known: Any) -> None:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{place} must be a mapping, got {data!r}")
    for name in data:
        if name not in known:
            raise UnknownNameError(f"key of {place}", str(name), known)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
