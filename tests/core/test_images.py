"""Our picture preprocessing against transformers' own, bit for bit."""

import numpy as np
import pytest
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from madtp_core.errors import ConfigError
from madtp_core.images import ImageGeometry, image_geometry_from_processor_config, preprocess_image


def _picture(width: int, height: int, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels, "RGB")


def _processor(height: int, width: int) -> BlipImageProcessorPil:
    return BlipImageProcessorPil(size={"height": height, "width": width})


def _clip_processor(shortest_edge: int, height: int, width: int) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(
        size={"shortest_edge": shortest_edge}, crop_size={"height": height, "width": width}
    )


def _geometry(processor: BlipImageProcessorPil | CLIPImageProcessorPil) -> ImageGeometry:
    return image_geometry_from_processor_config(processor.to_dict())


@pytest.mark.parametrize(
    "picture_size", [(3, 3), (7, 5), (96, 96), (129, 97), (640, 11), (11, 640), (384, 384)]
)
@pytest.mark.parametrize("model_size", [(96, 96), (33, 47)])
def test_equals_transformers(picture_size: tuple[int, int], model_size: tuple[int, int]) -> None:
    processor, picture = _processor(*model_size), _picture(*picture_size)
    theirs = processor(images=picture, return_tensors="np")["pixel_values"][0]
    ours = preprocess_image(picture, _geometry(processor))
    assert ours.shape == (3, *model_size)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)


def test_geometry_of_the_hub_config() -> None:
    geometry = image_geometry_from_processor_config(_processor(384, 384).to_dict())
    assert (geometry.height, geometry.width, geometry.resample) == (384, 384, Image.Resampling.BICUBIC)
    assert geometry.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert geometry.std == pytest.approx((0.26862954, 0.26130258, 0.27577711))
    assert geometry.rescale == pytest.approx(1 / 255)


def test_a_picture_that_is_not_rgb_is_refused() -> None:
    with pytest.raises(ConfigError, match="RGB"):
        preprocess_image(Image.new("L", (8, 8)), _geometry(_processor(16, 16)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size": {"shortest_edge": 224}}, "size"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"do_normalize": False}, "do_normalize"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_std": [0.0, 1.0, 1.0]}, "std"),
        ({"size": {"height": 0, "width": 4}}, "size"),
    ],
)
def test_a_config_we_cannot_follow_is_refused(change: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        image_geometry_from_processor_config(_processor(16, 16).to_dict() | change)


# --- CLIP's: the shortest edge, then the centre


@pytest.mark.parametrize(
    "picture_size", [(3, 3), (7, 5), (96, 96), (129, 97), (97, 130), (160, 11), (11, 160), (400, 375)]
)
@pytest.mark.parametrize("model_size", [(96, 96, 96), (40, 32, 32), (33, 33, 20), (25, 40, 24)])
def test_clips_equals_transformers(picture_size: tuple[int, int], model_size: tuple[int, int, int]) -> None:
    """Odd margins, upright and lying pictures, and crops that reach over the picture's edge onto black."""
    processor, picture = _clip_processor(*model_size), _picture(*picture_size)
    theirs = processor(images=picture, return_tensors="np")["pixel_values"][0]
    ours = preprocess_image(picture, _geometry(processor))
    assert ours.shape == (3, *model_size[1:])
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("picture_size", [(1000, 2), (2, 1000)])
def test_of_a_strip_only_the_middle_is_resized(
    picture_size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resized whole, this one would take 96 x 48,000 pixels."""
    processor, sizes = _clip_processor(96, 96, 96), []
    resize = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *args: object, **options: object) -> Image.Image:
        sizes.append(size)
        return resize(image, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    picture = _picture(*picture_size)
    ours = preprocess_image(picture, _geometry(processor))
    assert max(sizes[0]) <= 16 * 96
    theirs = processor(images=picture, return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("size", "crop_size", "expected"),
    [
        ({"shortest_edge": 224}, {"height": 224, "width": 224}, (224, 224, 224)),
        (336, 336, (336, 336, 336)),  # as OpenAI's own configurations have it
        ({"shortest_edge": 256}, {"height": 224, "width": 192}, (224, 192, 256)),
        ({"height": 64, "width": 64}, {"height": 64, "width": 64}, (64, 64, None)),
    ],
)
def test_clips_geometry_of_a_config(
    size: object, crop_size: object, expected: tuple[int, int, int | None]
) -> None:
    config = _clip_processor(8, 8, 8).to_dict() | {"size": size, "crop_size": crop_size}
    geometry = image_geometry_from_processor_config(config)
    assert (geometry.height, geometry.width, geometry.shortest_edge) == expected
    assert geometry.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size": {"height": 32, "width": 16}}, "shortest_edge"),
        ({"size": {"shortest_edge": 16, "longest_edge": 32}}, "longest_edge"),
        ({"size": {"shortest_edge": 0}}, "shortest edge"),
        ({"crop_size": None}, "crop_size"),
        ({"do_center_crop": False}, "height and width"),
        ({"do_resize": False}, "do_resize"),
    ],
)
def test_a_clip_config_we_cannot_follow_is_refused(change: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        image_geometry_from_processor_config(_clip_processor(16, 16, 16).to_dict() | change)
