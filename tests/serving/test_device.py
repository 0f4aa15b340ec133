"""What is asked of the device, on a machine that has none."""

import math

import pytest
import torch

from service.device import gpu_readings, is_out_of_memory


def test_a_cpu_tells_neither_memory_nor_power() -> None:
    assert gpu_readings("cpu") == (None, None)


def test_a_gpu_that_never_told_its_power_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def power_draw(device: str) -> int:
        raise ModuleNotFoundError("no bindings")

    monkeypatch.setattr(torch.cuda, "power_draw", power_draw)
    _, power_watts = gpu_readings("cuda")
    assert power_watts is None


def test_a_gpu_that_no_longer_tells_its_power_leaves_the_other_metrics_readable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    milliwatts = iter([70_000, 90_000])
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device: next(milliwatts))
    _, power_watts = gpu_readings("cuda")
    assert power_watts is not None
    assert power_watts() == 90.0
    assert math.isnan(power_watts())


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("broken"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error: Exception, is_it: bool) -> None:
    assert is_out_of_memory(error) is is_it
