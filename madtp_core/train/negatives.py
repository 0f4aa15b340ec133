"""Hard negatives for image-text matching: the more similar a wrong one, the likelier it is taken.

Source: ALBEF (NeurIPS 2021), section 3.2, as in BLIP with negatives of all processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs to match: images, texts [P] int64 and labels [P] int64, 1 where they belong together."""

    images: Tensor
    texts: Tensor
    labels: Tensor

    def of_images(self, first: int, stop: int) -> Pairs:
        """The pairs whose image is one of first .. stop - 1, images counted from first."""
        own = (self.images >= first) & (self.images < stop)
        return Pairs(self.images[own] - first, self.texts[own], self.labels[own])


def hard_pairs(logits: Tensor, keys: Tensor, generator: torch.Generator) -> Pairs:
    """The true pairs, then a wrong image for every text, then a wrong text for every image.

    logits [G, G]: of every image to every text; keys [G]: which picture a row is of. A wrong one is drawn
    with probability softmax(logits) among those of other pictures; a row without any gets none. Drawn on the
    CPU from the generator, so that every process that knows all logits draws the same.
    """
    logits = logits.detach().float().cpu()
    keys = keys.cpu()
    rows = torch.arange(len(keys))
    same = keys.unsqueeze(1) == keys
    for_text, has_image = _draw(logits.T, same, generator)
    for_image, has_text = _draw(logits, same, generator)
    images = torch.cat([rows, for_text[has_image], rows[has_text]])
    texts = torch.cat([rows, rows[has_image], for_image[has_text]])
    labels = (torch.arange(len(images)) < len(rows)).long()
    return Pairs(images, texts, labels)


def _draw(logits: Tensor, same: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A column for every row, and whether there is one at all."""
    has_other = ~same.all(1)
    probabilities = logits.masked_fill(same, float("-inf")).softmax(1)
    probabilities[~has_other] = 1.0  # drawn and left out
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1), has_other
