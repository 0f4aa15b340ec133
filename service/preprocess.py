"""From what a client sent as an image to the model's query, in a worker thread: header first, then pixels."""

from __future__ import annotations

import base64
import binascii
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from madtp_core.images import preprocess_image
from service.errors import ApiError
from service.job import Prepared

if TYPE_CHECKING:
    from madtp_core.images import ImageGeometry
    from service.settings import Settings

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MIN_SIDE = 3
_URL_SCHEMES = ("http://", "https://")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class ImageLimits:
    """What is refused before any pixel is decoded."""

    max_bytes: int
    max_pixels: int

    @classmethod
    def of(cls, settings: Settings) -> ImageLimits:
        return cls(settings.max_image_bytes, settings.max_image_pixels)


def load_decoders() -> None:
    """Imports Pillow's decoders, which it would otherwise do within the first request."""
    Image.init()


def prepare_vqa(
    image: str | bytes,
    question: str,
    candidates: tuple[str, ...] | None,
    num_beams: int,
    *,
    geometry: ImageGeometry,
    limits: ImageLimits,
    asked_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Prepared:
    """Makes the query of one visual question; runs in a worker thread. Raises ApiError on a bad image.

    `asked_s` is when the thread was asked for, on the same clock.
    """
    # The service starts to answer probes before torch is there; by now the engine has imported it.
    from madtp_core.tasks.vqa import VqaQuery

    started_s = clock()
    picture = decode_image(image_bytes(image, limits), limits)
    decoded_s = clock()
    pixel_values = preprocess_image(picture, geometry)
    query = VqaQuery(pixel_values=pixel_values, question=question, candidates=candidates, num_beams=num_beams)
    return Prepared(
        query=query,
        thread_wait_s=started_s - asked_s,
        decode_s=decoded_s - started_s,
        preprocess_s=clock() - decoded_s,
    )


def image_bytes(image: str | bytes, limits: ImageLimits) -> bytes:
    """The file's bytes: as they are, from base64, or from a data: URL. Raises ApiError."""
    if isinstance(image, str):
        image = _from_text(image, limits)
    if not image:
        raise ApiError("empty_image", param="image")
    if len(image) > limits.max_bytes:
        raise _too_many_bytes(limits)
    return image


def decode_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """The first frame as an upright RGB picture. Raises ApiError; decodes nothing unless the header passes.

    Differs from transformers: transparent pixels show white, not the colour hidden under them; 16-bit grey
    keeps its high byte instead of being clipped to white.
    """
    picture = _open(data)
    _check_size(picture, limits)
    try:
        ImageOps.exif_transpose(picture, in_place=True)
        return _to_rgb(picture)
    except ApiError:
        raise
    except Exception as error:
        # Pillow's decoders raise nearly every type on damaged files (OSError, SyntaxError, IndexError, ...).
        raise ApiError("invalid_image", param="image") from error


def _from_text(text: str, limits: ImageLimits) -> bytes:
    text = text.strip()
    if text[:8].lower().startswith(_URL_SCHEMES):
        raise ApiError("image_url_not_allowed", param="image")
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise ApiError("invalid_base64", "A data: URL must contain ';base64,'.", param="image")
    if len(text) * 3 // 4 > 2 * limits.max_bytes:  # with room for line breaks
        raise _too_many_bytes(limits)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError("invalid_base64", param="image") from error


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ApiError("image_too_many_pixels", param="image") from error
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise ApiError(
            "unsupported_image", f"Not an image; known formats: {known}.", param="image"
        ) from error
    except Exception as error:  # the header itself is damaged
        raise ApiError("invalid_image", param="image") from error


def _check_size(picture: Image.Image, limits: ImageLimits) -> None:
    width, height = picture.size
    if width * height > limits.max_pixels:
        raise ApiError(
            "image_too_many_pixels",
            f"The image has {width} x {height} pixels; at most {limits.max_pixels} are allowed.",
            param="image",
        )
    if min(width, height) < MIN_SIDE:
        raise ApiError("image_too_small", f"The image has {width} x {height} pixels.", param="image")


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in _SIXTEEN_BIT_MODES:
        high_byte = (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ApiError(
            "unsupported_image",
            f"Pixels of mode {picture.mode} (32 bits) have no defined range.",
            param="image",
        )
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _too_many_bytes(limits: ImageLimits) -> ApiError:
    return ApiError("image_too_large", f"The image has more than {limits.max_bytes} bytes.", param="image")
