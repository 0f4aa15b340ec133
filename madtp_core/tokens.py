"""Tokens travel with their mask, position and size, padded or packed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

MERGED = -1  # position of a token that stands for several dropped ones


def pack_rows(padded: Tensor, mask: Tensor) -> Tensor:
    """Concatenate the real rows of a padded batch.

    padded [B, N, ...], mask [B, N] bool -> [T, ...] with T = mask.sum(). Inverse of `unpack_rows`.
    """
    return padded[mask]


def unpack_rows(packed: Tensor, mask: Tensor) -> Tensor:
    """Spread packed rows over a padded batch; padding is zero.

    packed [T, ...], mask [B, N] bool -> [B, N, ...]. Inverse of `pack_rows`.
    """
    padded = packed.new_zeros(*mask.shape, *packed.shape[1:])  # [B, N, ...]
    return padded.masked_scatter(mask.view(*mask.shape, *[1] * (packed.dim() - 1)), packed)


@dataclass(frozen=True, eq=False)
class Tokens:
    """One branch's tokens of a batch; the protected (class) token stands first in every row.

    hidden: [B, N, C], or [T, C] when packed (T real tokens of all rows, row after row).
    mask: [B, N] bool, True for a real token; rows are left-aligned. None: every token is real.
    position: [B, N] int64, index in the unpruned sequence; of a merged token `MERGED`, or in a causal row the
        last one that it stands for.
    size: [B, N] float32, how many original tokens each one stands for.
    is_causal: a token sees those before it in its row; the protected one sees all, and it alone sees itself.
    """

    hidden: Tensor
    mask: Tensor | None
    position: Tensor
    size: Tensor
    is_packed: bool = False
    is_causal: bool = False

    @classmethod
    def from_hidden(cls, hidden: Tensor, mask: Tensor | None = None) -> Tokens:
        """Wrap an unpruned sequence: hidden [B, N, C], mask [B, N] or None."""
        batch, length = hidden.shape[:2]
        position = torch.arange(length, device=hidden.device).expand(batch, length)
        size = torch.ones(batch, length, device=hidden.device)
        if mask is not None:
            mask = mask.bool()
            mask = None if bool(mask.all()) else mask
        return cls(hidden, mask, position, size)

    @property
    def batch_size(self) -> int:
        return self.position.shape[0]

    @property
    def width(self) -> int:
        """Tokens in the longest row, the protected one included (N)."""
        return self.position.shape[1]

    def lengths(self) -> Tensor:
        """Real tokens a row, the protected one included: [B] int64."""
        if self.mask is None:
            return torch.full((self.batch_size,), self.width, device=self.position.device)
        return self.mask.sum(1)

    def with_hidden(self, hidden: Tensor) -> Tokens:
        """The same tokens with other features, in the same layout."""
        return replace(self, hidden=hidden)

    def to_padded(self, values: Tensor) -> Tensor:
        """Bring per-token values from this layout to [B, N, ...]."""
        if not self.is_packed:
            return values
        if self.mask is None:
            return values.view(self.batch_size, self.width, *values.shape[1:])
        return unpack_rows(values, self.mask)

    def to_layout(self, padded: Tensor) -> Tensor:
        """Bring [B, N, ...] values to this layout: the inverse of `to_padded`."""
        if not self.is_packed:
            return padded
        return padded.flatten(0, 1) if self.mask is None else pack_rows(padded, self.mask)

    def pack(self) -> Tokens:
        """Lay the real tokens of all rows one after another: hidden becomes [T, C]."""
        packed = replace(self, is_packed=True)
        return self if self.is_packed else packed.with_hidden(packed.to_layout(self.hidden))

    def unpack(self) -> Tokens:
        """Back to hidden [B, N, C]; padding is zero."""
        return replace(self, hidden=self.to_padded(self.hidden), is_packed=False)

    def split(self, rows: int) -> tuple[Tokens, Tokens]:
        """The first so many rows, and the others, in the same layout."""
        cut = int(self.lengths()[:rows].sum()) if self.is_packed else rows

        def part(of_hidden: slice, of_rows: slice) -> Tokens:
            mask = None if self.mask is None else self.mask[of_rows]
            position, size = self.position[of_rows], self.size[of_rows]
            return replace(self, hidden=self.hidden[of_hidden], mask=mask, position=position, size=size)

        return part(slice(cut), slice(rows)), part(slice(cut, None), slice(rows, None))

    def select(self, index: Tensor, mask: Tensor | None) -> Tokens:
        """Keep the tokens at index [B, M]; mask [B, M] tells which of them are real. Padded layout only."""
        # By rows of the flattened batch: whole tokens are copied, ten times as fast as an expanded gather.
        starts = torch.arange(self.batch_size, device=index.device).unsqueeze(1) * self.width
        chosen = (index + starts).flatten()  # [B * M]
        gathered = self.hidden.flatten(0, 1).index_select(0, chosen).view(*index.shape, -1)  # [B, M, C]
        position, size = self.position.gather(1, index), self.size.gather(1, index)
        return replace(self, hidden=gathered, mask=mask, position=position, size=size)

    def append_merged(
        self, hidden: Tensor, size: Tensor, rows: Tensor | None = None, position: Tensor | None = None
    ) -> Tokens:
        """Add one merged token behind the last real token of each row. Padded layout only.

        hidden [B, C], size [B]; rows [B] bool names the rows that get one (None: all). position [B]: where it
        stands, `MERGED` when left out.
        """
        if position is None:
            position = torch.full_like(self.position[:, 0], MERGED)
        if self.mask is None and rows is None:
            return replace(
                self,
                hidden=torch.cat([self.hidden, hidden.unsqueeze(1)], 1),
                position=torch.cat([self.position, position.unsqueeze(1)], 1),
                size=torch.cat([self.size, size.unsqueeze(1)], 1),
            )
        lengths = self.lengths()
        rows = torch.ones_like(lengths, dtype=torch.bool) if rows is None else rows
        width = int((lengths + rows).max())
        columns = torch.arange(width, device=lengths.device)
        slot = (columns == lengths.unsqueeze(1)) & rows.unsqueeze(1)  # [B, N']
        mask = columns < (lengths + rows).unsqueeze(1)
        extra = max(width - self.width, 0)

        def widened(values: Tensor) -> Tensor:
            pad = values.new_zeros(values.shape[0], extra, *values.shape[2:])
            return torch.cat([values, pad], 1)[:, :width]

        return replace(
            self,
            hidden=torch.where(slot.unsqueeze(-1), hidden.unsqueeze(1), widened(self.hidden)),
            mask=None if bool(mask.all()) else mask,
            position=torch.where(slot, position.unsqueeze(1), widened(self.position)),
            size=torch.where(slot, size.unsqueeze(1), widened(self.size)),
        )
