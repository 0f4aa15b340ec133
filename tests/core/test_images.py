"""Our picture preprocessing against transformers' own, bit for bit."""

import numpy as np
import pytest
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from madtp_core.errors import ConfigError
from madtp_core.images import ImageGeometry, image_geometry_from_processor_config, preprocess_image


def _picture(width: int, height: int, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels, "RGB")


def _processor(height: int, width: int) -> BlipImageProcessorPil:
    return BlipImageProcessorPil(size={"height": height, "width": width})


def _geometry(processor: BlipImageProcessorPil) -> ImageGeometry:
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
