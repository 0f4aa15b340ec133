"""Two gloo processes train as one with twice the batch: losses, figures, weights, momentum copy and queue."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from madtp_core.train.loop import train
from tests.core.tiny_training import LOOP, NETWORKS, make_task

ROOT = Path(__file__).parents[2]
# Packed rows know nothing of their batch; unpruned ones of different lengths weigh differently in a mean.
CASES = [*(f"{task}-per_instance" for task in NETWORKS), "caption-dense", "retrieval-dense"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The directory of what two processes have trained, each half of every batch."""
    directory = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.core.two_processes", str(directory), *CASES],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(errors)
    return directory


def steps_of(directory):
    records = map(json.loads, (directory / "log.jsonl").read_text().splitlines())
    return [record for record in records if "loss" in record]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_with_both_batches(pair, tmp_path, case):
    task, keep_mode = case.split("-")
    train(make_task(task, 4, keep_mode, ragged=keep_mode == "dense"), LOOP, tmp_path / case)
    alone, joint = steps_of(tmp_path / case), steps_of(pair / case)
    assert len(joint) == len(alone) == LOOP.steps
    for one, other in zip(alone, joint, strict=True):
        assert other == pytest.approx(one, rel=2e-4, abs=1e-5)
    mine, theirs = (torch.load(path / case / "last.pt", weights_only=True) for path in (tmp_path, pair))
    assert len(theirs["random"]) == 2
    for index, state in mine["optimizer"]["state"].items():  # gradients of all steps, before AdamW divides
        moment = theirs["optimizer"]["state"][index]["exp_avg"]
        assert torch.allclose(moment, state["exp_avg"], rtol=5e-3, atol=5e-5), index
    for name, value in mine["modules"].items():
        if name.startswith("queue."):
            assert torch.allclose(theirs["modules"][name], value, rtol=1e-3, atol=1e-4), name
