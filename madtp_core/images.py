"""Pictures to model inputs: BLIP's and CLIP's preprocessing, without torch and without a processor object."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from madtp_core.errors import ConfigError

_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_LONGEST_STRIP = 16  # times its shorter side; more of a picture would be resized only to be cut off


@dataclass(frozen=True)
class ImageGeometry:
    """What a model wants of a picture: its size in pixels and how 8-bit levels become numbers.

    `mean` and `std` are per channel (red, green, blue) on the scale after `rescale`. `shortest_edge`: CLIP's
    way, the picture's shorter side is brought to so many pixels and height x width are cut from the centre;
    None: BLIP's, the whole picture is squeezed to height x width. Raises ConfigError.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float = 1 / 255
    resample: int = Image.Resampling.BICUBIC
    shortest_edge: int | None = None

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ConfigError(f"image size must be positive, got {self.height} x {self.width}")
        if self.shortest_edge is not None and self.shortest_edge < 1:
            raise ConfigError(f"image shortest edge must be positive, got {self.shortest_edge}")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ConfigError(f"image mean and std need three channels, got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise ConfigError(f"image std must be positive, got {self.std}")


def upright_rgb(picture: Image.Image) -> Image.Image:
    """The first frame of an opened picture, turned as its EXIF says, as RGB.

    Differs from transformers: transparent pixels show white, not the colour hidden under them; 16-bit grey
    keeps its high byte instead of being clipped to white. Raises ConfigError for pixels of 32 bits, as they
    have no defined range, and whatever Pillow raises on damaged files.
    """
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode in _SIXTEEN_BIT_MODES:
        high_byte = (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ConfigError(f"Pixels of mode {picture.mode} (32 bits) have no defined range.")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def preprocess_image(image: Image.Image, geometry: ImageGeometry) -> npt.NDArray[np.float32]:
    """Resizes and normalises one RGB picture to float32 [3, height, width].

    Equal to transformers' `BlipImageProcessorPil` or `CLIPImageProcessorPil` bit for bit: the same Pillow
    filter, the same order of roundings. An 8-bit level can only take 256 values, so these are normalised once
    per channel and looked up for every pixel. Raises ConfigError when the picture is not RGB.
    """
    if image.mode != "RGB":
        raise ConfigError(f"expected an RGB picture, got mode {image.mode!r}; convert it first")
    pixels = np.asarray(_resized(image, geometry))  # [H, W, 3]
    levels = (np.arange(256, dtype=np.float64) * geometry.rescale).astype(np.float32)
    mean = np.array(geometry.mean, dtype=np.float32)
    std = np.array(geometry.std, dtype=np.float32)
    values = (levels[None, :] - mean[:, None]) / std[:, None]  # [3, 256]
    return np.stack([values[channel][pixels[..., channel]] for channel in range(3)])  # [3, H, W]


def _resized(image: Image.Image, geometry: ImageGeometry) -> Image.Image:
    """The picture at height x width.

    Differs from transformers: of a strip, only the middle is resized, so that memory does not follow its
    length; a picture smaller than the cut lies on black, as there.
    """
    resample = Image.Resampling(geometry.resample)
    if geometry.shortest_edge is None:
        return image.resize((geometry.width, geometry.height), resample)
    shorter = min(image.size)
    image = _centre(image, *(min(side, _LONGEST_STRIP * shorter) for side in image.size))
    # int() of this very product is how transformers rounds the longer side.
    width, height = (int(geometry.shortest_edge * side / shorter) for side in image.size)
    return _centre(image.resize((width, height), resample), geometry.width, geometry.height)


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def image_geometry_from_processor_config(config: Mapping[str, Any]) -> ImageGeometry:
    """Reads the contents of a Hugging Face `preprocessor_config.json` (`size`, `image_mean`, ...).

    A step that BLIP and CLIP always take (resize, rescale, normalise) must not be switched off. With
    `do_center_crop`, `size` is the shortest edge and `crop_size` what the model sees. Raises ConfigError
    naming the field.
    """
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if config.get(step) in (False, 0):
            raise ConfigError(f"preprocessor config: {step}=False is not supported, expected True")
    shortest_edge = None
    if config.get("do_center_crop"):
        height, width = _size(config.get("crop_size"), "do_center_crop=True, so crop_size")
        shortest_edge = _shortest_edge(config.get("size"), height, width)
    else:
        height, width = _size(config.get("size"), "size")
    return ImageGeometry(
        height=height,
        width=width,
        mean=_channels(config, "image_mean"),
        std=_channels(config, "image_std"),
        rescale=float(config.get("rescale_factor", 1 / 255)),
        resample=int(config.get("resample", Image.Resampling.BICUBIC)),
        shortest_edge=shortest_edge,
    )


def _size(size: Any, name: str) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    raise ConfigError(f"preprocessor config: {name} must have height and width, got {size!r}")


def _shortest_edge(size: Any, height: int, width: int) -> int | None:
    """Pixels of the shorter side before the centre is cut out; None where all of the picture is squeezed."""
    if isinstance(size, int):  # as OpenAI's own configurations have it
        return size
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    if isinstance(size, Mapping) and dict(size) == {"height": height, "width": width}:
        return None
    raise ConfigError(
        f"preprocessor config: before a centre crop to {height} x {width}, size must have shortest_edge, "
        f"got {size!r}"
    )


def _channels(config: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    values = config.get(name)
    if not isinstance(values, Sequence) or len(values) != 3:
        raise ConfigError(f"preprocessor config: {name} must have three numbers, got {values!r}")
    return float(values[0]), float(values[1]), float(values[2])
