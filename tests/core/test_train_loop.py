"""The loop: resume, accumulation, recomputation, drop-path, scaled fp16, the best model, what is shown."""

import json
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from madtp_core.encoder import Regime, _drop_path
from madtp_core.errors import CheckpointError, ConfigError
from madtp_core.pruning import TEXT, VISION
from madtp_core.tokens import Tokens
from madtp_core.train.best import BestModel, BestRule
from madtp_core.train.loop import LoopConfig, parameter_groups, train
from madtp_core.train.stepping import Stepper
from tests.core.tiny_training import LOOP, NETWORKS, TinyBatches, make_network, make_task


class Line:
    """Fits y = 3 x; the loss depends on every generator, and what is steered counts the steps."""

    def __init__(self, noise=0.0):
        self.modules = nn.Linear(1, 1)
        nn.init.zeros_(self.modules.weight)
        nn.init.zeros_(self.modules.bias)
        self.noise, self.after = noise, []

    def batches(self):
        return [torch.tensor([[float(index)]]) for index in range(100)]

    def loss(self, batch, step):
        noise = self.noise * (random.random() + np.random.rand() + torch.rand(()).item())
        return (self.modules(batch) - 3 * batch).square().mean() + noise, {"seen": batch.item()}

    def after_step(self, figures):
        self.after.append(figures)

    def evaluate(self):
        return {"score": self.modules.weight.item(), "flops_ratio": 0.5}

    def state(self):
        return {"after": len(self.after)}

    def load_state(self, state):
        self.after = [None] * state["after"]

    def save(self, directory):
        directory.mkdir(exist_ok=True)
        (directory / "weight").write_text(str(self.modules.weight.item()))


def records_of(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def steps_of(directory):
    return {record["step"]: record for record in records_of(directory) if "loss" in record}


def interrupted(task, config, directory, at):
    """Train until a step, and stop in it."""
    original = Stepper.step

    def step(self, batches, now):
        if now == at:
            raise KeyboardInterrupt
        return original(self, batches, now)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Stepper, "step", step)
        train(task, config, directory)


@pytest.mark.parametrize("task", NETWORKS)
def test_a_resumed_compression_repeats_the_uninterrupted_one(tmp_path, task):
    """With accumulation, momentum copy, queue, temperature search and drop-path: bit for bit."""
    config = replace(LOOP, accumulate=2)

    def fresh(seed=0):
        made = make_task(task, 2, network=make_network(task, seed))
        made.network.regimes = {VISION: Regime(drop_path=0.5)}
        return made

    train(fresh(), config, tmp_path / "whole")
    interrupted(fresh(), config, tmp_path / "parts", at=3)
    train(fresh(seed=5), config, tmp_path / "parts")  # whose own weights do not matter
    assert steps_of(tmp_path / "parts") == steps_of(tmp_path / "whole")
    whole, parts = (torch.load(tmp_path / run / "last.pt", weights_only=True) for run in ("whole", "parts"))
    assert all(torch.equal(parts["modules"][name], value) for name, value in whole["modules"].items())


def test_a_resumed_run_finds_every_generator_as_it_was(tmp_path):
    config = replace(LOOP, learning_rate=0.1)
    train(Line(noise=1.0), config, tmp_path / "whole")
    interrupted(Line(noise=1.0), config, tmp_path / "parts", at=2)
    task = Line(noise=1.0)
    train(task, config, tmp_path / "parts")
    assert steps_of(tmp_path / "parts") == steps_of(tmp_path / "whole")
    assert len(task.after) == config.steps


@pytest.mark.parametrize("task", ["vqa", "caption", "reasoning"])
def test_accumulated_batches_are_as_one_large_batch(tmp_path, task):
    """With texts of different lengths, of which captions weigh by their tokens."""
    train(make_task(task, 4, "dense", ragged=True), LOOP, tmp_path / "large")
    train(make_task(task, 2, "dense", ragged=True), replace(LOOP, accumulate=2), tmp_path / "small")
    large, small = steps_of(tmp_path / "large"), steps_of(tmp_path / "small")
    for step, figures in large.items():
        assert small[step] == pytest.approx(figures, rel=2e-4)
    states = [saved(tmp_path / run)["optimizer"]["state"] for run in ("large", "small")]
    for of_large, of_small in zip(*(state.values() for state in states), strict=True):
        assert torch.allclose(of_small["exp_avg"], of_large["exp_avg"], rtol=5e-3, atol=5e-5)


def saved(directory):
    return torch.load(directory / "last.pt", weights_only=True)


@pytest.mark.parametrize("keep_mode", ["max_keep", "per_instance"])
@pytest.mark.parametrize("task", NETWORKS)
def test_recomputed_blocks_give_the_same_gradients(task, keep_mode):
    """Pruned, with drop-path: losses and gradients with and without kept activations, bit for bit."""
    results = []
    for recomputes in (False, True):
        made = make_task(task, 3, keep_mode, ragged=True)
        made.network.regimes = {VISION: Regime(0.5, recomputes), TEXT: Regime(recomputes=recomputes)}
        made.modules.train()
        torch.manual_seed(3)
        loss, figures = made.loss(TinyBatches(task, 3, ragged=True)[0], 1)
        loss.backward()
        gradients = {name: p.grad for name, p in made.modules.named_parameters() if p.grad is not None}
        results.append((figures, gradients))
    (kept, gradients), (recomputed, again) = results
    assert recomputed == kept and gradients.keys() == again.keys()
    assert all(torch.equal(again[name], gradient) for name, gradient in gradients.items())


def test_recomputation_keeps_less():
    """Within a block nothing is packed away for the backward pass but what enters it."""
    packed = {}
    for recomputes in (False, True):
        made = make_task("reasoning", 2)
        made.network.regimes = {VISION: Regime(recomputes=recomputes), TEXT: Regime(recomputes=recomputes)}
        made.modules.train()
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            made.loss(TinyBatches("reasoning", 2)[0], 0)
        packed[recomputes] = sum(sizes)
    assert packed[True] < packed[False] / 2


def test_drop_path_leaves_rows_out_and_makes_up_for_it():
    tokens = Tokens.from_hidden(torch.ones(4000, 3, 2))
    updated = tokens.hidden + 2.0
    torch.manual_seed(0)
    out = _drop_path(tokens, updated, 0.25)
    added = (out - tokens.hidden)[:, 0, 0]
    assert torch.equal(out[:, 0], out[:, 2])  # a row as a whole
    assert sorted(set(added.tolist())) == pytest.approx([0.0, 2 / 0.75])
    assert (added == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert _drop_path(tokens, updated, 0.0) is updated


def test_drop_path_grows_over_the_blocks_and_spares_evaluation(monkeypatch):
    rates = []
    original = _drop_path

    def spy(tokens, updated, rate):
        rates.append(rate)
        return original(tokens, updated, rate)

    monkeypatch.setattr("madtp_core.encoder._drop_path", spy)
    network = make_network("caption")
    network.regimes = {VISION: Regime(drop_path=0.3)}
    pixels = TinyBatches("caption", 2)[0].pixel_values
    network.train().encode_image(pixels)
    assert rates == [0.0, 0.0, 0.3, 0.3]
    rates.clear()
    network.eval().encode_image(pixels)
    assert rates == [0.0] * 4


def test_figures_are_the_mean_of_a_steps_micro_batches(tmp_path):
    task = Line()
    train(task, replace(LOOP, steps=2, accumulate=2), tmp_path)
    assert [figures["seen"] for figures in task.after] == [0.5, 2.5]


def test_fp16_scales_its_loss_and_skips_what_overflows(tmp_path):
    task = Line()
    stepper = Stepper(task, replace(LOOP, dtype="fp16"))
    batch = [torch.tensor([[1.0]])]
    before = stepper.scaler.get_scale()
    assert before > 1
    stepper.step([torch.tensor([[float("inf")]])], 0)
    assert stepper.scaler.get_scale() == before / 2 and task.modules.weight.item() == 0
    for step in range(1, 6):
        stepper.step(batch, step)
    assert task.modules.weight.item() != 0
    scale = stepper.scaler.get_scale()
    other = Stepper(Line(), replace(LOOP, dtype="fp16"))
    other.load_state(stepper.state())
    assert other.scaler.get_scale() == scale


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path, dtype):
    stepper = Stepper(Line(), replace(LOOP, dtype=dtype))
    with pytest.raises(FloatingPointError, match="step 7"):
        stepper.step([torch.tensor([[float("nan")]])], 7)


@pytest.mark.parametrize("task", NETWORKS)
def test_every_task_trains_in_bf16(tmp_path, task):
    train(make_task(task, 2, "max_keep"), replace(LOOP, steps=2, dtype="bf16"), tmp_path)
    assert all(np.isfinite(figures["loss"]) for figures in steps_of(tmp_path).values())


def test_the_best_model_within_the_target_is_kept(tmp_path):
    keeper = BestModel(BestRule("score", target=0.5), tmp_path / "best")
    task = Line()
    seen = []
    for score, ratio in [(0.9, 0.6), (0.5, 0.515), (0.4, 0.4), (0.7, 0.5), (0.7, 0.45)]:
        task.modules.weight.data.fill_(len(seen))
        keeper.judged(task, {"score": score, "flops_ratio": ratio})
        kept = tmp_path / "best" / "weight"
        seen.append(float(kept.read_text()) if kept.exists() else None)
    assert seen == [None, 1.0, 1.0, 3.0, 3.0]


def test_the_best_survives_an_interruption(tmp_path):
    config = replace(LOOP, learning_rate=0.5, evaluate_every=1, checkpoint_every=1)
    rule = BestRule("score", target=None)
    task = Line()
    train(task, replace(config, stop_step=2), tmp_path, best=rule)
    resumed = Line()
    resumed.evaluate = lambda: {"score": -1.0}
    train(resumed, config, tmp_path, best=rule)
    assert float((tmp_path / "best" / "weight").read_text()) == pytest.approx(
        max(record["evaluation"]["score"] for record in records_of(tmp_path) if "evaluation" in record)
    )


def test_another_number_of_processes_does_not_resume(tmp_path):
    train(Line(), replace(LOOP, stop_step=1), tmp_path)
    state = saved(tmp_path)
    torch.save(state | {"random": state["random"] * 2}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="2 processes, this run has 1"):
        train(Line(), LOOP, tmp_path)


def test_other_settings_do_not_resume(tmp_path):
    train(Line(), replace(LOOP, stop_step=1), tmp_path)
    with pytest.raises(CheckpointError, match="accumulate"):
        train(Line(), replace(LOOP, accumulate=2), tmp_path)


def test_tensorboard_gets_what_is_logged(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(Line(), replace(LOOP, tensorboard=True), tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [event.value for event in events.Scalars("train/loss")]
    assert shown == pytest.approx([figures["loss"] for figures in steps_of(tmp_path).values()])
    assert [event.step for event in events.Scalars("evaluation/score")] == [LOOP.steps]


def test_tensorboard_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"madtp-serve\[train\]"):
        train(Line(), replace(LOOP, tensorboard=True), tmp_path)


def test_the_learning_rate_warms_up_stays_and_falls():
    config = LoopConfig(steps=100, learning_rate=1.0, warmup_steps=10, hold_steps=40)
    rates = [config.learning_rate_at(step) for step in (0, 9, 10, 49, 75, 100)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"learning_rate": 0.0}, {"warmup_steps": 11}, {"hold_steps": 11}, {"dtype": "int3"},
     {"accumulate": 0}, {"log_every": 0}],
)  # fmt: skip
def test_a_loop_that_cannot_run_is_refused(options):
    with pytest.raises(ConfigError):
        LoopConfig(**{"steps": 10, "learning_rate": 1e-3, **options})


def test_only_matrices_decay():
    groups = parameter_groups(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), 0.1)
    assert [len(group["params"]) for group in groups] == [1, 3]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
