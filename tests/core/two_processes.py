"""One of two processes that train together, which `test_train_processes.py` starts as torchrun does."""

import sys
from pathlib import Path

import torch

from madtp_core.train.loop import train
from madtp_core.train.processes import process_group
from tests.core.tiny_training import LOOP, make_task


def main(directory: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    with process_group("cpu"):
        for case in cases:
            task, keep_mode = case.split("-")
            made = make_task(task, 2, keep_mode, ragged=keep_mode == "dense")
            train(made, LOOP, directory / case)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
