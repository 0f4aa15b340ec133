"""Every kind of picture a client may send: what is accepted looks right, the rest has its own error."""

import base64
import io
import struct
import zlib
from itertools import count

import numpy as np
import pytest
from PIL import Image

from madtp_core.difficulty import request_features
from madtp_core.images import preprocess_image
from service.errors import ApiError
from service.job import Prepared
from service.preprocess import FORMATS, FeaturesWanted, ImageLimits, decode_image, image_bytes, prepare
from tests.serving.conftest import encode
from tests.serving.fakes import GEOMETRY, solid_picture

LIMITS = ImageLimits(max_bytes=100_000, max_pixels=10_000)
RED = (200, 30, 30)


def _decode(data: bytes) -> np.ndarray:
    picture = decode_image(data, LIMITS)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def _refused(data: bytes, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(ApiError) as caught:
        decode_image(image_bytes(data, limits), limits)
    return caught.value.code


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_of_the_list(image_format: str) -> None:
    picture = Image.fromarray(solid_picture(colour=RED))
    options = {"lossless": True} if image_format == "WEBP" else {}
    decoded = _decode(encode(picture, image_format, **options))
    assert decoded.shape == (6, 8, 3)
    np.testing.assert_allclose(decoded, solid_picture(colour=RED), atol=4)  # JPEG rounds


def _two_halves() -> Image.Image:
    """Left half red, right half blue."""
    levels = solid_picture((16, 8), RED)
    levels[:, 8:] = (30, 30, 200)
    return Image.fromarray(levels)


@pytest.mark.parametrize(("orientation", "red_at"), [(1, "left"), (3, "right"), (6, "top"), (8, "bottom")])
def test_exif_rotation(orientation: int, red_at: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = _decode(encode(_two_halves(), "JPEG", exif=exif, quality=95))
    rows, columns = decoded.shape[:2]
    sides = {
        "left": decoded[rows // 2, 1],
        "right": decoded[rows // 2, -2],
        "top": decoded[1, columns // 2],
        "bottom": decoded[-2, columns // 2],
    }
    assert {side for side, colour in sides.items() if colour[0] > 150} >= {red_at}
    assert (rows > columns) == (red_at in ("top", "bottom"))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_exif_does_not_break_the_picture() -> None:
    data = encode(Image.fromarray(solid_picture()), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert _decode(data).shape == (6, 8, 3)


def test_cmyk() -> None:
    picture = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # full magenta and yellow are red
    red, green, blue = _decode(encode(picture, "JPEG", quality=95))[4, 4]
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_shades(image_format: str) -> None:
    levels = np.array([[0x0000, 0x4000, 0x8000, 0xFFFF]] * 4, dtype=np.uint16)
    decoded = _decode(encode(Image.fromarray(levels), image_format))
    assert decoded[0, :, 0].tolist() == [0, 0x40, 0x80, 0xFF]


def test_grey_and_black_and_white() -> None:
    assert _decode(encode(Image.new("L", (4, 4), 77), "PNG"))[0, 0].tolist() == [77, 77, 77]
    assert _decode(encode(Image.new("1", (4, 4), 1), "PNG"))[0, 0].tolist() == [255, 255, 255]


def test_palette() -> None:
    picture = Image.fromarray(solid_picture(colour=RED)).quantize(4)
    assert picture.mode == "P"
    np.testing.assert_allclose(_decode(encode(picture, "PNG"))[0, 0], RED, atol=2)


def _transparent(mode: str) -> bytes:
    match mode:
        case "RGBA":
            return encode(Image.new("RGBA", (4, 4), (10, 20, 30, 0)), "PNG")
        case "LA":
            return encode(Image.new("LA", (4, 4), (10, 0)), "PNG")
        case "P":
            return encode(Image.new("P", (4, 4), 0), "PNG", transparency=0)
        case _:
            return encode(Image.new("RGB", (4, 4), (10, 20, 30)), "PNG", transparency=(10, 20, 30))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_show_white(mode: str) -> None:
    assert _decode(_transparent(mode))[0, 0].tolist() == [255, 255, 255]


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    decoded = _decode(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"))
    np.testing.assert_allclose(decoded[0, 0], 127, atol=1)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP"])
def test_an_animation_shows_its_first_frame(image_format: str) -> None:
    frames = [Image.fromarray(solid_picture((16, 16), colour)) for colour in (RED, (30, 30, 200))]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encode(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 2
    np.testing.assert_allclose(_decode(data)[0, 0], RED, atol=3)


@pytest.mark.parametrize("image_format", FORMATS)
def test_truncated(image_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), image_format)
    assert _refused(data[: len(data) // 2]) in {"invalid_image", "unsupported_image"}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("image_format", FORMATS)
def test_no_cut_of_a_file_escapes_as_another_error(image_format: str) -> None:
    data = encode(_two_halves(), image_format)
    for length in range(1, len(data), max(1, len(data) // 60)):
        try:
            decode_image(data[:length], LIMITS)
        except ApiError as error:
            assert error.kind.status in (413, 415, 422)


def test_zero_bytes() -> None:
    assert _refused(b"") == "empty_image"


@pytest.mark.parametrize(
    "data",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%PDF-1.7 not a picture",
        b"\0" * 64,
        encode(Image.new("RGB", (8, 8)), "PPM"),  # Pillow could, the list does not
    ],
)
def test_what_is_not_an_image_of_the_list(data: bytes) -> None:
    assert _refused(data) == "unsupported_image"


def test_32_bit_pixels_have_no_range() -> None:
    assert _refused(encode(Image.new("F", (8, 8), 0.5), "TIFF")) == "unsupported_image"


def _png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and has no pixels at all."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    ending = b"IDAT" + zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (chunk, ending)
    )


@pytest.mark.parametrize("size", [(101, 100), (60_000, 60_000)])
def test_too_many_pixels_are_refused_by_the_header_alone(size: tuple[int, int]) -> None:
    assert _refused(_png_header(*size)) == "image_too_many_pixels"


@pytest.mark.parametrize("size", [(2, 50), (50, 2), (1, 1)])
def test_too_small(size: tuple[int, int]) -> None:
    assert _refused(_png_header(*size)) == "image_too_small"


def test_three_by_three_is_enough() -> None:
    assert _decode(encode(Image.new("RGB", (3, 3)), "PNG")).shape == (3, 3, 3)


def test_too_many_bytes() -> None:
    assert _refused(b"x" * (LIMITS.max_bytes + 1)) == "image_too_large"


def test_base64_and_data_urls(png: bytes) -> None:
    text = base64.b64encode(png).decode()
    for form in (text, f" {text}\n", text[:20] + "\r\n" + text[20:], f"data:image/png;base64,{text}"):
        assert image_bytes(form, LIMITS) == png


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("not base64!", "invalid_base64"),
        ("abc", "invalid_base64"),
        ("bäh", "invalid_base64"),
        ("data:image/png,raw", "invalid_base64"),
        ("data:image/png;base64", "invalid_base64"),
        ("http://example.com/a.png", "image_url_not_allowed"),
        ("HTTPS://example.com/a.png", "image_url_not_allowed"),
        ("file:a.png", "invalid_base64"),
        ("", "empty_image"),
        ("data:image/png;base64,", "empty_image"),
        ("A" * 300_000, "image_too_large"),
        ("A" * 150_000, "image_too_large"),
    ],
)
def test_texts_that_are_no_image(text: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        image_bytes(text, LIMITS)
    assert caught.value.code == code


def _prepare(images: list[tuple[str, str | bytes]], features: FeaturesWanted = "never") -> Prepared:
    clock = count(start=10, step=2)
    return prepare(
        "vqa",
        {"question": "is it red?", "candidates": ["yes", "no"], "num_beams": 3},
        images,
        ["is it red?"],
        geometry=GEOMETRY,
        image_tokens=16,
        limits=LIMITS,
        features=features,
        asked_s=9.0,
        clock=lambda: float(next(clock)),
    )


def test_the_query_holds_what_was_asked_and_the_normalised_picture(png: bytes) -> None:
    prepared = _prepare([("image", png)])
    query = prepared.query
    assert (query.question, query.candidates, query.num_beams) == ("is it red?", ("yes", "no"), 3)
    expected = preprocess_image(Image.fromarray(solid_picture()), GEOMETRY)
    np.testing.assert_array_equal(query.pixel_values, expected)
    assert (prepared.images, prepared.dense_tokens, prepared.features) == (1, 16 + 3, None)
    assert (prepared.thread_wait_s, prepared.decode_s, prepared.preprocess_s) == (1.0, 2.0, 4.0)


def test_features_are_those_of_the_picture_and_the_text_as_sent(png: bytes) -> None:
    expected = tuple(request_features([solid_picture()], ["is it red?"]))
    assert _prepare([("image", png)], "now").features == expected
    later = _prepare([("image", png)], "later")
    assert later.features is None and later.find_features is not None
    assert later.find_features() == expected


def test_an_error_names_the_image_at_fault(png: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        _prepare([("images.0", png), ("images.1", "?")])
    assert (caught.value.code, caught.value.param) == ("invalid_base64", "images.1")
