"""From what a client sent as an image to the model's query, in a worker thread: header first, then pixels."""

from __future__ import annotations

import base64
import binascii
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from madtp_core.difficulty import image_features, joined_features, text_features
from madtp_core.errors import ConfigError
from madtp_core.images import preprocess_image, upright_rgb
from service.errors import ApiError
from service.job import Features, Prepared

if TYPE_CHECKING:
    from madtp_core.images import ImageGeometry
    from service.settings import Settings

FeaturesWanted = Literal["now", "later", "never"]
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MIN_SIDE = 3
_URL_SCHEMES = ("http://", "https://")


@dataclass(frozen=True)
class ImageLimits:
    """What is refused before any pixel is decoded."""

    max_bytes: int
    max_pixels: int

    @classmethod
    def of(cls, settings: Settings) -> ImageLimits:
        return cls(settings.max_image_bytes, settings.max_image_pixels)


def load_decoders() -> None:
    """Has Pillow import its decoders, and the encoder that features use, before the first request comes."""
    Image.init()
    image_features(np.zeros((MIN_SIDE, MIN_SIDE, 3), np.uint8))


def prepare(
    task: str,
    fields: Mapping[str, Any],
    images: Sequence[tuple[str, str | bytes]],
    texts: Sequence[str],
    *,
    geometry: ImageGeometry,
    image_tokens: int,
    limits: ImageLimits,
    features: FeaturesWanted,
    asked_s: float,
    hold: Callable[[Any], Any] = lambda query: query,
    clock: Callable[[], float] = time.monotonic,
) -> Prepared:
    """Makes the query of one request; runs in a worker thread. Raises ApiError on a bad image.

    images: each with the name that an error calls it by. texts: what the model reads. `asked_s` is when the
    thread was asked for, on the same clock. `hold` gives what stands for the query from here on. features:
    whether they are found here, or the caller is told how.
    """
    # The service starts to answer probes before torch is there; by now the engine has imported it.
    from madtp_core.tasks.plain import plain_task

    started_s = clock()
    decode_s = 0.0
    pixels, pictures = [], []
    for param, image in images:
        began_s = clock()
        picture = _picture(param, image, limits)
        decode_s += clock() - began_s
        pixels.append(preprocess_image(picture, geometry))
        pictures.append(picture)
    find_features = None if features == "never" else partial(_features, pictures, texts)
    found = find_features() if find_features is not None and features == "now" else None
    return Prepared(
        query=hold(plain_task(task).query(fields, pixels)),
        images=len(images),
        dense_tokens=request_tokens(len(images), texts, image_tokens),
        features=found,
        thread_wait_s=started_s - asked_s,
        decode_s=decode_s,
        preprocess_s=clock() - started_s - decode_s,
        find_features=find_features if features == "later" else None,
    )


def _features(pictures: Sequence[Image.Image], texts: Sequence[str]) -> Features:
    looks = [image_features(np.asarray(picture)) for picture in pictures]
    return tuple(joined_features(looks, [text_features(text) for text in texts]).tolist())


def request_tokens(images: int, texts: Sequence[str], image_tokens: int) -> float:
    """Tokens of an unpruned request, its words counted for tokens: near enough to share a budget by."""
    return max(1.0, images * image_tokens + sum(len(text.split()) for text in texts))


def is_url(image: str | bytes) -> bool:
    """Whether an image is given by its address on the web."""
    return isinstance(image, str) and image.lstrip()[:8].lower().startswith(_URL_SCHEMES)


def _picture(param: str, image: str | bytes, limits: ImageLimits) -> Image.Image:
    try:
        return decode_image(image_bytes(image, limits), limits)
    except ApiError as error:
        error.param = param
        raise


def image_bytes(image: str | bytes, limits: ImageLimits) -> bytes:
    """The file's bytes: as they are, from base64, or from a data: URL. Raises ApiError."""
    if isinstance(image, str):
        image = _from_text(image, limits)
    if not image:
        raise ApiError("empty_image")
    if len(image) > limits.max_bytes:
        raise _too_many_bytes(limits)
    return image


def decode_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """The first frame as an upright RGB picture. Raises ApiError; by the header, before decoding anything."""
    picture = _open(data)
    _check_size(picture, limits)
    try:
        return upright_rgb(picture)
    except ConfigError as error:
        raise ApiError("unsupported_image", str(error)) from error
    except Exception as error:
        # Pillow's decoders raise nearly every type on damaged files (OSError, SyntaxError, IndexError, ...).
        raise ApiError("invalid_image") from error


def _from_text(text: str, limits: ImageLimits) -> bytes:
    text = text.strip()
    if is_url(text):
        raise ApiError("image_url_not_allowed")
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise ApiError("invalid_base64", "A data: URL must contain ';base64,'.")
    if len(text) * 3 // 4 > 2 * limits.max_bytes:  # with room for line breaks
        raise _too_many_bytes(limits)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError("invalid_base64") from error


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ApiError("image_too_many_pixels") from error
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise ApiError("unsupported_image", f"Not an image; known formats: {known}.") from error
    except Exception as error:  # the header itself is damaged
        raise ApiError("invalid_image") from error


def _check_size(picture: Image.Image, limits: ImageLimits) -> None:
    width, height = picture.size
    if width * height > limits.max_pixels:
        raise ApiError(
            "image_too_many_pixels",
            f"The image has {width} x {height} pixels; at most {limits.max_pixels} are allowed.",
        )
    if min(width, height) < MIN_SIDE:
        raise ApiError("image_too_small", f"The image has {width} x {height} pixels.")


def _too_many_bytes(limits: ImageLimits) -> ApiError:
    return ApiError("image_too_large", f"The image has more than {limits.max_bytes} bytes.")
