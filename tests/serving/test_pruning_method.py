"""A model without MADTP weights: dense, or pruned by the method that the operator chose."""

import time
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from madtp_core.checkpoint import Checkpoint, save_checkpoint
from service.forward import Forward
from service.job import Job, Prepared
from service.local_model import LocalModel
from service.model import trial_query
from service.settings import ModelSource, Settings


@pytest.fixture
def plain(vqa_checkpoint: Checkpoint, tmp_path: Path) -> ModelSource:
    """A directory as Hugging Face writes it, and madtp.json without alignment tokens."""
    config = replace(vqa_checkpoint.config, alignment=None, pruning=None)
    save_checkpoint(replace(vqa_checkpoint, alignment=None, config=config), tmp_path / "plain")
    return ModelSource("plain", str(tmp_path / "plain"))


def spent(source: ModelSource, settings: Settings) -> float:
    model = LocalModel.load(source, settings)
    forward = Forward("plain", model, settings, time.monotonic)
    job = Job("r", "vqa", "plain", arrived_s=0.0, deadline_s=inf, target=forward.usual_target())
    job.note_prepared(Prepared(trial_query(model, "vqa"), 1, 64.0, None, 0.0, 0.0, 0.0))
    (served,), _ = forward.run([job])
    return served.spent.cost.flops_ratio


def test_without_a_method_it_is_dense(plain: ModelSource) -> None:
    assert spent(plain, Settings()) == 1


@pytest.mark.parametrize("method", ["evit", "tome"])
def test_a_chosen_method_prunes_it_to_the_target(plain: ModelSource, method: str) -> None:
    settings = Settings(pruning_method=method, flops_target=0.8)
    assert LocalModel.load(plain, settings).pruning.method == method
    assert spent(plain, settings) == pytest.approx(0.8, abs=0.1)  # the decoder is never pruned


def test_a_target_of_one_is_dense_whatever_the_method(plain: ModelSource) -> None:
    assert spent(plain, Settings(pruning_method="evit", flops_target=1)) == 1


def test_madtp_weights_go_before_the_method(vqa_checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(vqa_checkpoint, tmp_path / "trained")
    source = ModelSource("trained", str(tmp_path / "trained"))
    assert LocalModel.load(source, Settings(pruning_method="evit")).pruning.method == "madtp"
