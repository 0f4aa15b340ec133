"""What every test may rely on: one thread, no network, no settings of the developer's shell, one seed."""

import os
import random
import sys

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported: the models here are tiny
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for name in [name for name in os.environ if name.startswith("MADTP_")]:
    del os.environ[name]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where torch sees no CUDA device."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Seed every generator in use, so that a test alone equals the test among others."""
    random.seed(0)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(0)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def vqa_checkpoint():
    """A tiny scrambled BLIP-VQA with alignment tokens and the shapes' tokenizer; nothing may change it."""
    from madtp_core.backbones.blip import blip_config, build_blip_vqa, scramble
    from madtp_core.checkpoint import Checkpoint, build_alignment
    from madtp_core.config import AlignmentConfig, MadtpConfig, PruningConfig
    from madtp_core.data.shapes import build_tokenizer
    from madtp_core.images import ImageGeometry

    tokenizer = build_tokenizer()
    config = blip_config(
        width=32, heads=2, vision_blocks=2, text_blocks=2, image_size=64, patch_size=8,
        vocabulary=len(tokenizer), max_text_tokens=40,
        bos_token_id=tokenizer.bos_token_id, sep_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    blip = build_blip_vqa(config)
    scramble(blip, std=0.2)
    alignment_config = AlignmentConfig(num_tokens=12, dim=32)
    alignment = build_alignment(alignment_config, config)
    scramble(alignment, seed=1, std=1.0)
    madtp = MadtpConfig(
        encoder_first_token="enc", max_text_tokens=40, alignment=alignment_config, pruning=PruningConfig()
    )
    geometry = ImageGeometry(64, 64, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Checkpoint(blip, tokenizer, geometry, madtp, alignment)
