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
