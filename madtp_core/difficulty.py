"""What a request shows of its difficulty before a model has seen it: cheap figures of its images and texts.

A request's difficulty is its own need: the share of its tokens that pruning could not drop. Nothing here
knows a model: whoever fits these figures to measured needs does (`madtp study difficulty` offline, the
service online). numpy and Pillow only.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Features = NDArray[np.float64]

IMAGE_FEATURES: Final = (
    "entropy",  # of the grey levels, bits a pixel
    "colour_entropy",  # of the colours at three bits a channel, bits a pixel
    "contrast",  # standard deviation of the grey levels
    "colour_variance",  # mean over pixels of the variance of their three channels: 0 for grey
    "gradient_energy",  # mean of the gradient's square
    "gradient_median",  # median of its magnitude: high where even the background is busy
    "edge_density",  # share of pixels on an edge
    "busy_cells",  # share of the 8 x 8 cells that hold an edge
    "cell_contrast",  # mean over those cells of their standard deviation
    "jpeg_bytes",  # of a JPEG of quality 75, a pixel
    "png_bytes",  # of the rows' differences deflated, as PNG does, a pixel
)
TEXT_FEATURES: Final = (
    "words",
    "letters_per_word",
    "asks_what",  # what, which, who, where, when, why, how (big, ...)
    "asks_count",  # how many, number of
    "asks_yes_no",  # is, are, does, can, ...
    "compares",  # more, fewer, less, same, equal, than, as many as
    "relates",  # left, right, above, below, between, ...
    "commas",
)
# Needs rise and fall along an image's figures: their logarithms let a linear fit bend.
LOG_IMAGE_FEATURES: Final = tuple(f"log_{name}" for name in IMAGE_FEATURES)
REQUEST_FEATURES: Final = (*IMAGE_FEATURES, *LOG_IMAGE_FEATURES, *TEXT_FEATURES, "log_images", "log_texts")

_ABOVE_ZERO: Final = 1e-3  # added before a logarithm
_SIDE: Final = 128  # pixels that features are taken of, at most, along each side
_THINNED_SIDE: Final = 512  # pixels: only every second, third, ... row is read of a picture twice as high
_CELL: Final = 8  # pixels along each side of a cell
_EDGE: Final = 0.1  # of the grey scale: where the gradient is steeper there is an edge
_JPEG_QUALITY: Final = 75
_OPENERS: Final = {
    "asks_what": re.compile(r"(what|which|who|whose|where|when|why|how(?! many| much))\b"),
    "asks_yes_no": re.compile(r"(is|are|was|were|do|does|did|can|could|has|have|will|would)\b"),
}
_MENTIONS: Final = {
    "asks_count": re.compile(r"\b(how (many|much)|number of|count|exactly)\b"),
    "compares": re.compile(r"\b(more|fewer|less|same|equal|than|as many|most|fewest|only|neither|both)\b"),
    "relates": re.compile(
        r"\b(left|right|above|below|higher|lower|under|over|between|behind|front|next to|near)\b"
    ),
}


def image_features(rgb: NDArray[np.uint8]) -> Features:
    """The figures named in IMAGE_FEATURES of one decoded picture, uint8 [H, W, 3], at least 2 x 2.

    2 ms at 640 x 480 and 5 ms for whatever size: a large picture is averaged down to at most 128 pixels a
    side, a very large one thinned out before. So figures of pictures of different sizes compare. Levels count
    from 0 to 1.
    """
    small = _reduced(rgb)
    colours = np.asarray(small)
    grey_levels = np.asarray(small.convert("L"))
    grey = (grey_levels / 255).astype(np.float32)
    steepness = _gradient(grey)
    edges = steepness > _EDGE
    return np.array(
        [
            _entropy(grey_levels, 256),
            _entropy(_coarse_colours(colours), 512),
            grey.std(),
            _colour_variance(colours),
            np.square(steepness).mean(),
            np.median(steepness),
            edges.mean(),
            _cells(edges).any(axis=(1, 3)).mean(),
            _cells(grey).std(axis=(1, 3)).mean(),
            _jpeg_bytes(small) / grey.size,
            len(zlib.compress(np.diff(grey_levels, axis=1).tobytes(), 1)) / grey.size,
        ],
        np.float64,
    )


def text_features(text: str) -> Features:
    """The figures named in TEXT_FEATURES of one question, caption or statement; an empty one gives zeros."""
    said = " ".join(text.lower().split())
    words = re.findall(r"\w+", said)
    figures = {
        "words": len(words),
        "letters_per_word": sum(map(len, words)) / max(len(words), 1),
        "commas": said.count(","),
        **{name: pattern.match(said) is not None for name, pattern in _OPENERS.items()},
        **{name: pattern.search(said) is not None for name, pattern in _MENTIONS.items()},
    }
    return np.array([float(figures[name]) for name in TEXT_FEATURES])


def request_features(images: Sequence[NDArray[np.uint8]], texts: Sequence[str] = ()) -> Features:
    """The figures named in REQUEST_FEATURES of a request: means over its images and texts, and how many."""
    return joined_features([image_features(rgb) for rgb in images], [text_features(text) for text in texts])


def joined_features(images: Sequence[Features], texts: Sequence[Features]) -> Features:
    """What `request_features` says, from the features of each image and text; absent ones count as zeros."""
    logarithms = [np.log(each + _ABOVE_ZERO) for each in images]
    parts = [
        np.mean(each, axis=0) if len(each) else np.zeros(len(names))
        for each, names in (
            (images, IMAGE_FEATURES),
            (logarithms, LOG_IMAGE_FEATURES),
            (texts, TEXT_FEATURES),
        )
    ]
    return np.concatenate([*parts, np.log1p([len(images), len(texts)])])


def _reduced(rgb: NDArray[np.uint8]) -> Image.Image:
    strides = [max(1, side // _THINNED_SIDE) for side in rgb.shape[:2]]
    picture = Image.fromarray(np.ascontiguousarray(rgb[:: strides[0], :: strides[1]]))
    return picture.reduce((-(-picture.width // _SIDE), -(-picture.height // _SIDE)))


def _gradient(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Its magnitude where a pixel has a neighbour at the right and below: [H - 1, W - 1]."""
    across = grey[:-1, 1:] - grey[:-1, :-1]
    down = grey[1:, :-1] - grey[:-1, :-1]
    steepness: NDArray[np.float32] = np.sqrt(across * across + down * down)
    return steepness


def _entropy(values: NDArray[np.integer], levels: int) -> float:
    """Shannon's, in bits a value."""
    shares = np.bincount(values.ravel(), minlength=levels) / values.size
    seen = shares[shares > 0]
    return float(-(seen * np.log2(seen)).sum())


def _coarse_colours(colours: NDArray[np.uint8]) -> NDArray[np.integer]:
    """Three bits a channel in one number."""
    red, green, blue = (colours[..., channel].astype(np.uint16) >> 5 for channel in range(3))
    packed: NDArray[np.integer] = red << 6 | green << 3 | blue
    return packed


def _colour_variance(colours: NDArray[np.uint8]) -> float:
    red, green, blue = (colours[..., channel].astype(np.float32) / 255 for channel in range(3))
    mean = (red + green + blue) / 3
    return float((((red - mean) ** 2 + (green - mean) ** 2 + (blue - mean) ** 2) / 3).mean())


def _cells(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Cut [H, W] into [rows, cell, columns, cell], what is left at the right and below dropped."""
    cell = min(_CELL, *values.shape)
    rows, columns = (side // cell for side in values.shape)
    return values[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell)


def _jpeg_bytes(picture: Image.Image) -> int:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.tell()
