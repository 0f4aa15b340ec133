"""Encoded images kept from one batch to the next, where an image's encoding is its own."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from madtp_core.encoder import Encoded, Pruning
from madtp_core.pruning import MAX_KEEP
from madtp_core.tokens import Tokens

Encode = Callable[[Tensor, Pruning | None], Encoded]
Key = tuple[bytes, float]


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One encoded image: hidden [n, C], position and size [n], counts [3, blocks]: in, needed, kept."""

    hidden: Tensor
    position: Tensor
    size: Tensor
    counts: Tensor
    appends_merged: bool

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in (self.hidden, self.position, self.size, self.counts))

    def to(self, device: torch.device | str) -> EncodedImage:
        """The same image in the memory of a device."""
        return EncodedImage(
            self.hidden.to(device),
            self.position.to(device),
            self.size.to(device),
            self.counts.to(device),
            self.appends_merged,
        )


class ImageCache:
    """Encoded images by their pixels and their prune temperature; the least recently used make room.

    Dense and per_instance rows are encoded as they would be alone, so a kept encoding is what would be made
    again, up to the rounding of a batch's arithmetic. Under max_keep an encoding depends on its batch
    mates: nothing is kept then, and nothing taken. One thread uses it, that of its model.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._images: OrderedDict[Key, EncodedImage] = OrderedDict()

    def encode(self, encode: Encode, pixel_values: Tensor, pruning: Pruning | None) -> Encoded:
        """What `encode` gives for pixel_values [B, 3, height, width]; images that are alike run once."""
        if pruning is not None and pruning.keep_mode == MAX_KEEP:
            return encode(pixel_values, pruning)
        keys = _keys(pixel_values, pruning)
        found = {key: self._images[key] for key in keys if key in self._images}
        new = {key: row for row, key in reversed(list(enumerate(keys))) if key not in found}
        self.hits += len(keys) - len(new)
        self.misses += len(new)
        if new:
            rows = torch.tensor(list(new.values()), device=pixel_values.device)
            found |= zip(new, split_images(encode(pixel_values[rows], _of_rows(pruning, rows))), strict=True)
        for key in dict.fromkeys(keys):
            self._keep(key, found[key])
        return join_images([found[key] for key in keys], is_packed=pruning is not None)

    def summary(self) -> dict[str, int]:
        """How full it is and how often it helped, as plain JSON values."""
        return {
            "images": len(self._images),
            "bytes": self.bytes,
            "max_bytes": self.max_bytes,
            "hits": self.hits,
            "misses": self.misses,
        }

    def _keep(self, key: Key, image: EncodedImage) -> None:
        if key in self._images:
            self._images.move_to_end(key)
            return
        self._images[key] = image
        self.bytes += image.bytes
        while self.bytes > self.max_bytes:
            _, dropped = self._images.popitem(last=False)
            self.bytes -= dropped.bytes


def _keys(pixel_values: Tensor, pruning: Pruning | None) -> list[Key]:
    rows = pixel_values.numpy(force=True)
    temperatures = [0.0] * len(rows) if pruning is None else pruning.prune_temperature.tolist()
    hashes = (hashlib.sha256(row.tobytes()).digest() for row in rows)
    return list(zip(hashes, temperatures, strict=True))


def _of_rows(pruning: Pruning | None, rows: Tensor) -> Pruning | None:
    if pruning is None:
        return None
    temperature = pruning.prune_temperature
    return replace(pruning, prune_temperature=temperature[rows.to(temperature.device)])


def split_images(encoded: Encoded) -> list[EncodedImage]:
    """Every row by itself, in memory of its own: a view would keep the whole batch."""
    tokens = encoded.tokens
    lengths = tokens.row_lengths()
    hidden = torch.split(tokens.hidden, lengths) if tokens.is_packed else tokens.hidden.unbind()
    counts = torch.stack([encoded.tokens_in, encoded.needed, encoded.kept])  # [3, blocks, B]
    return [
        EncodedImage(
            hidden[row][:length].clone(),
            tokens.position[row, :length].clone(),
            tokens.size[row, :length].clone(),
            counts[..., row].clone(),
            encoded.appends_merged,
        )
        for row, length in enumerate(lengths)
    ]


def join_images(images: Sequence[EncodedImage], *, is_packed: bool) -> Encoded:
    """The rows as one batch again: the inverse of `split_images`, dense rows padded, others packed."""
    lengths = torch.tensor([len(image.hidden) for image in images], device=images[0].hidden.device)
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths.unsqueeze(1)
    position = pad_sequence([image.position for image in images], batch_first=True)
    size = pad_sequence([image.size for image in images], batch_first=True)
    hidden = torch.cat([image.hidden for image in images])
    tokens = Tokens(hidden, None if bool(mask.all()) else mask, position, size, is_packed=True)
    tokens_in, needed, kept = torch.stack([image.counts for image in images], -1)  # [blocks, B] each
    tokens = tokens if is_packed else tokens.unpack()
    return Encoded(tokens, tokens_in, needed, kept, None, images[0].appends_merged)
