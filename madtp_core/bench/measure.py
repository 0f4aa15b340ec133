"""Time and memory of callables, measured so that a machine that drifts cannot favour one of them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

_PROC = Path("/proc/self")
_RESET_PEAK = "5"  # what clear_refs takes to make VmHWM the present VmRSS; see proc(5)


def interleaved_seconds(
    steps: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, warm_ups: int = 2
) -> dict[str, list[float]]:
    """Wall seconds of every call, the steps taken in turn (A B C, A B C, ...) after warm-up rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_index in range(warm_ups + repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round_index >= warm_ups:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def peak_growth_bytes(step: Callable[[], object], device: torch.device) -> int | None:
    """How far memory rises above its resting level while a step runs: weights that rest there do not count.

    CUDA: what torch's allocator handed out. CPU: the process's resident set, which holds libraries' scratch,
    too; None where the system does not tell (only Linux does). Warm a step up: its first run loads code.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        resting = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - resting
    try:
        _give_back_freed_memory()
        (_PROC / "clear_refs").write_text(_RESET_PEAK)
        resting = _status_bytes("VmRSS")
        step()
        return max(0, _status_bytes("VmHWM") - resting)
    except OSError:
        return None


def peak_growth_mib(step: Callable[[], object], device: torch.device) -> float | None:
    """`peak_growth_bytes` in MiB."""
    grown = peak_growth_bytes(step, device)
    return None if grown is None else grown / (1 << 20)


def cpu_model() -> str:
    """The processor as it names itself."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB$", (_PROC / "status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"no {field} in {_PROC / 'status'}")
    return 1024 * int(found[1])


def _give_back_freed_memory() -> None:
    """Let glibc return what was freed, so that a step cannot hide in what the one before it left behind."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
