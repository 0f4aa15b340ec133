"""Pictures to model inputs: BLIP's resize and normalisation, without torch and without a processor object."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from madtp_core.errors import ConfigError


@dataclass(frozen=True)
class ImageGeometry:
    """What a model wants of a picture: its size in pixels and how 8-bit levels become numbers.

    `mean` and `std` are per channel (red, green, blue) on the scale after `rescale`. Raises ConfigError.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float = 1 / 255
    resample: int = Image.Resampling.BICUBIC

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ConfigError(f"image size must be positive, got {self.height} x {self.width}")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ConfigError(f"image mean and std need three channels, got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise ConfigError(f"image std must be positive, got {self.std}")


def preprocess_image(image: Image.Image, geometry: ImageGeometry) -> npt.NDArray[np.float32]:
    """Resizes and normalises one RGB picture to float32 [3, height, width].

    Equal to transformers' `BlipImageProcessorPil` bit for bit: the same Pillow filter, the same order of
    roundings. An 8-bit level can only take 256 values, so these are normalised once per channel and looked up
    for every pixel. Raises ConfigError when the picture is not RGB.
    """
    if image.mode != "RGB":
        raise ConfigError(f"expected an RGB picture, got mode {image.mode!r}; convert it first")
    resized = image.resize((geometry.width, geometry.height), Image.Resampling(geometry.resample))
    pixels = np.asarray(resized)  # [H, W, 3]
    levels = (np.arange(256, dtype=np.float64) * geometry.rescale).astype(np.float32)
    mean = np.array(geometry.mean, dtype=np.float32)
    std = np.array(geometry.std, dtype=np.float32)
    values = (levels[None, :] - mean[:, None]) / std[:, None]  # [3, 256]
    return np.stack([values[channel][pixels[..., channel]] for channel in range(3)])  # [3, H, W]


def image_geometry_from_processor_config(config: Mapping[str, Any]) -> ImageGeometry:
    """Reads the contents of a Hugging Face `preprocessor_config.json` (`size`, `image_mean`, ...).

    A step that BLIP always takes (resize, rescale, normalise) must not be switched off, and none be added.
    Raises ConfigError naming the field.
    """
    for step, wanted in (
        ("do_resize", True),
        ("do_rescale", True),
        ("do_normalize", True),
        ("do_center_crop", False),
    ):
        if (found := config.get(step)) is not None and bool(found) is not wanted:
            raise ConfigError(f"preprocessor config: {step}={found} is not supported, expected {wanted}")
    height, width = _size(config.get("size"))
    return ImageGeometry(
        height=height,
        width=width,
        mean=_channels(config, "image_mean"),
        std=_channels(config, "image_std"),
        rescale=float(config.get("rescale_factor", 1 / 255)),
        resample=int(config.get("resample", Image.Resampling.BICUBIC)),
    )


def _size(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    raise ConfigError(f"preprocessor config: size must have height and width, got {size!r}")


def _channels(config: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    values = config.get(name)
    if not isinstance(values, Sequence) or len(values) != 3:
        raise ConfigError(f"preprocessor config: {name} must have three numbers, got {values!r}")
    return float(values[0]), float(values[1]), float(values[2])
