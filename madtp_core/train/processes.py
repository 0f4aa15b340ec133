"""Training in several processes, as `torchrun` starts them: who we are, gathering, averaging.

Everything works alike in one process without torchrun. Batches of all processes are of one size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_TIMEOUT = timedelta(hours=6)  # the others wait while the first process evaluates


@dataclass(frozen=True)
class Processes:
    """How many processes train together, and which of them this is; rank 0 writes and evaluates."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def current_processes() -> Processes:
    """Who we are within the process group, or the only process where there is none."""
    if not (dist.is_available() and dist.is_initialized()):
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


@contextmanager
def process_group(device_type: str) -> Iterator[torch.device]:
    """Join the others that torchrun started, if it started any: nccl on CUDA, gloo elsewhere.

    Yields this process's device. Reads WORLD_SIZE and LOCAL_RANK, and torch reads the rest of what torchrun
    sets.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device(device_type, local_rank) if device_type == "cuda" else torch.device(device_type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield device
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Return when every process has come here."""
    if current_processes().count > 1:
        dist.barrier()


@torch.no_grad()
def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes by rank, without gradient: [B, ...] -> [processes * B, ...]."""
    count = current_processes().count
    if count == 1:
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(count)]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


@torch.no_grad()
def gathered_ragged(rows: Tensor, fill: int) -> Tensor:
    """As `gathered` for token ids [B, L], whose L may differ between processes: widened with fill."""
    if current_processes().count == 1:
        return rows
    longest = torch.tensor(rows.shape[1], device=rows.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    padded = rows.new_full((len(rows), int(longest)), fill)
    padded[:, : rows.shape[1]] = rows
    return gathered(padded)


def mean_of_all(figures: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Every figure's mean over the processes, which must all have the same names."""
    count = current_processes().count
    if count == 1:
        return dict(figures)
    values = torch.tensor([float(value) for value in figures.values()], dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return dict(zip(figures, (values / count).tolist(), strict=True))
