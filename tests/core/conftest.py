"""A tiny BLIP-VQA with scrambled weights and the inputs it is tested on, made once for all core tests.

Nothing may change them: a test that needs other weights asks `make_network` for a network of its own.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from madtp_core.alignment import Alignment
from madtp_core.backbones.blip import blip_config, build_blip_vqa, scramble
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.vqa_network import VqaNetwork

WIDTH, HEADS, BLOCKS, ALIGNMENT_TOKENS = 32, 4, 3, 12
IMAGE, PATCH, VOCABULARY = 40, 8, 40  # 25 patches


@pytest.fixture(scope="session")
def make_network() -> Callable[..., VqaNetwork]:
    """Build a tiny network: seed of its weights, and options of `blip_config`."""

    def make(seed: int = 0, **options: int) -> VqaNetwork:
        sizes = {
            "width": WIDTH,
            "heads": HEADS,
            "vision_blocks": BLOCKS,
            "text_blocks": BLOCKS,
            "image_size": IMAGE,
            "patch_size": PATCH,
            "vocabulary": VOCABULARY,
            "max_text_tokens": 32,
            "bos_token_id": VOCABULARY - 1,
            "sep_token_id": 2,
        } | options
        blip = build_blip_vqa(blip_config(**sizes)).eval()
        scramble(blip, seed, std=0.2)
        branches = {VISION: (sizes["width"], BLOCKS), TEXT: (sizes["width"], BLOCKS)}
        alignment = Alignment(ALIGNMENT_TOKENS, sizes["width"], branches)
        scramble(alignment, seed + 1, std=1.0)
        return VqaNetwork(blip, alignment).eval()

    return make


@pytest.fixture(scope="session")
def network(make_network: Callable[..., VqaNetwork]) -> VqaNetwork:
    """The tiny network: 3 blocks of width 32 in every tower, 25 patches, 12 alignment tokens."""
    return make_network()


@pytest.fixture(scope="session")
def pixel_values() -> Tensor:
    """Three images [3, 3, 40, 40]."""
    return torch.randn(3, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(10))


def _questions(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(3, VOCABULARY - 1, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return ids * mask, mask


@pytest.fixture(scope="session")
def questions() -> tuple[Tensor, Tensor]:
    """Three questions of 14 tokens: token_ids [3, 14] and their mask."""
    return _questions((14, 14, 14))


@pytest.fixture(scope="session")
def ragged_questions() -> tuple[Tensor, Tensor]:
    """Three questions of 14, 6 and 10 tokens, padded with zeros: token_ids [3, 14] and their mask."""
    return _questions((14, 6, 10))
