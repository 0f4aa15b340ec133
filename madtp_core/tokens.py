"""Tokens travel with their mask, position and size, padded or packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

MERGED = -1  # position of a token that stands for several dropped ones


def pack_rows(padded: Tensor, mask: Tensor) -> Tensor:
    """Concatenate the real rows of a padded batch.

    padded [B, N, ...], mask [B, N] bool -> [T, ...] with T = mask.sum(). Inverse of `unpack_rows`.
    """
    return padded.flatten(0, 1).index_select(0, _places(mask))


def unpack_rows(packed: Tensor, mask: Tensor) -> Tensor:
    """Spread packed rows over a padded batch; padding is zero.

    packed [T, ...], mask [B, N] bool -> [B, N, ...]. Inverse of `pack_rows`.
    """
    padded = packed.new_zeros(mask.numel(), *packed.shape[1:])  # [B * N, ...]
    return padded.index_copy_(0, _places(mask), packed).view(*mask.shape, *packed.shape[1:])


def _places(mask: Tensor) -> Tensor:
    """Where True stands in the flattened mask: [T] int64."""
    return mask.flatten().nonzero().squeeze(1)


@dataclass(frozen=True, eq=False)
class Merged:
    """One token for the dropped ones of each row: hidden [B, C], size [B].

    rows: which of them get one. position: [B] int64, where it stands; None for `MERGED`.
    """

    hidden: Tensor
    size: Tensor
    rows: Sequence[bool]
    position: Tensor | None = None


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

    def row_lengths(self) -> list[int]:
        """`lengths` as numbers."""
        return [self.width] * self.batch_size if self.mask is None else self.mask.sum(1).tolist()

    def protected(self) -> Tensor:
        """The hidden state of the protected token of every row: [B, C]."""
        if not self.is_packed:
            return self.hidden[:, 0]
        lengths = self.lengths()
        return self.hidden[lengths.cumsum(0) - lengths]

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

    def rows(self, index: Tensor) -> Tokens:
        """The rows at index [B'], in the same layout."""
        padded = self.unpack()
        mask = None if self.mask is None else self.mask[index]
        position, size = self.position[index], self.size[index]
        chosen = replace(padded, hidden=padded.hidden[index], mask=mask, position=position, size=size)
        return chosen.pack() if self.is_packed else chosen

    def split(self, rows: int) -> tuple[Tokens, Tokens]:
        """The first so many rows, and the others, in the same layout."""
        cut = int(self.lengths()[:rows].sum()) if self.is_packed else rows

        def part(of_hidden: slice, of_rows: slice) -> Tokens:
            mask = None if self.mask is None else self.mask[of_rows]
            position, size = self.position[of_rows], self.size[of_rows]
            return replace(self, hidden=self.hidden[of_hidden], mask=mask, position=position, size=size)

        return part(slice(cut), slice(rows)), part(slice(cut, None), slice(rows, None))

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Each row's tokens, weighted and summed: weights [B, N], zero at padding -> [B, C]."""
        weights = weights.to(self.hidden.dtype).unsqueeze(1)  # [B, 1, N]
        if self.mask is None or not self.is_packed:
            return (weights @ self.to_padded(self.hidden)).squeeze(1)
        lengths = self.row_lengths()
        rows = zip(weights.unbind(), torch.split(self.hidden, lengths), lengths, strict=True)
        return torch.cat([weight[:, :length] @ row for weight, row, length in rows])

    def keep(self, stays: Tensor, merged: Merged | None = None) -> Tokens:
        """The tokens where stays [B, N] bool is True, in order and layout, and the merged one behind them."""
        counts = stays.sum(1).tolist()
        is_even = self.mask is None and min(counts) == max(counts) and (merged is None or all(merged.rows))
        return self._keep_evenly(stays, counts[0], merged) if is_even else self._keep_unevenly(stays, merged)

    def _keep_evenly(self, stays: Tensor, count: int, merged: Merged | None) -> Tokens:
        """No padding before or after: every row keeps count tokens, and gets a merged one or none does."""
        batch, places = self.batch_size, _places(stays)
        index = F.pad(places.view(batch, count), (0, merged is not None))  # with room for the merged ones
        features = self.hidden if self.is_packed else self.hidden.flatten(0, 1)
        hidden = features.index_select(0, index.flatten()).view(*index.shape, -1)
        position, size = (
            values.flatten().index_select(0, places).view(batch, count)
            for values in (self.position, self.size)
        )
        if merged is not None:
            hidden[:, count] = merged.hidden
            size = torch.cat([size, merged.size.unsqueeze(1)], 1)
            position = F.pad(position, (0, 1), value=MERGED)
            if merged.position is not None:
                position[:, count] = merged.position
        kept = Tokens(hidden, None, position, size, is_causal=self.is_causal)
        return kept.pack() if self.is_packed else kept

    def _keep_unevenly(self, stays: Tensor, merged: Merged | None) -> Tokens:
        """As `keep`, for rows of any lengths."""
        position, size = self.position, self.size
        with_merged = None
        if merged is not None:
            with_merged = torch.tensor(merged.rows, device=stays.device)
            stays = torch.cat([stays, with_merged.unsqueeze(1)], 1)  # [B, N + 1]
            position = F.pad(position, (0, 1), value=MERGED)
            if merged.position is not None:
                position[:, -1] = merged.position
            size = torch.cat([size, merged.size.unsqueeze(1)], 1)
        places, lengths = _places(stays), stays.sum(1)
        row, column = places // stays.shape[1], places % stays.shape[1]
        features = self.hidden if self.is_packed else self.hidden.flatten(0, 1)
        source = (self._starts()[row] + column).clamp(max=len(features) - 1)  # anything for the merged ones
        hidden = features.index_select(0, source)
        if merged is not None:
            last = lengths.cumsum(0) - 1
            hidden[last[with_merged]] = merged.hidden[with_merged].to(hidden.dtype)
        mask = torch.arange(int(lengths.max()), device=stays.device) < lengths.unsqueeze(1)
        position, size = (unpack_rows(values.flatten()[places], mask) for values in (position, size))
        kept = Tokens(hidden, mask, position, size, is_packed=True, is_causal=self.is_causal)
        if bool(mask.all()):
            kept = replace(kept, mask=None)
        return kept if self.is_packed else kept.unpack()

    def _starts(self) -> Tensor:
        """Where each row starts in the layout, rows put one after another: [B] int64."""
        if self.is_packed and self.mask is not None:
            lengths = self.lengths()
            return lengths.cumsum(0) - lengths
        return torch.arange(0, self.position.numel(), self.width, device=self.position.device)
