"""What is asked of torch about the device that models compute on."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial

Reading = Callable[[], float] | None
GpuReadings = tuple[Reading, Reading]


def gpu_readings(device: str) -> GpuReadings:
    """What to ask for the memory that this process uses on a GPU, in bytes, and for its power, in watts.

    None for what cannot be told: on a CPU both, without NVIDIA's management library the power.
    """
    import torch

    if torch.device(device).type != "cuda":
        return None, None
    memory_bytes = partial(torch.cuda.memory_allocated, device)
    power_watts = partial(_power_watts, device)
    return memory_bytes, None if math.isnan(power_watts()) else power_watts


def _power_watts(device: str) -> float:
    """Not a number where the driver does not tell, or no longer: the other metrics are still to be read."""
    import torch

    with suppress(Exception):  # torch raises whatever the bindings of NVIDIA's library raise
        return torch.cuda.power_draw(device) / 1000
    return math.nan


def is_out_of_memory(error: Exception) -> bool:
    """Torch's own error on a GPU; on a CPU it raises a RuntimeError that only its text tells apart."""
    is_torchs = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return is_torchs or isinstance(error, MemoryError)


def free_memory() -> None:
    """Gives back what torch keeps of a GPU's memory for later."""
    import torch

    torch.cuda.empty_cache()
