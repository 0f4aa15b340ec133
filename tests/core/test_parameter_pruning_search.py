"""How it is found what may go: the ranking, the fading, the run, and the command."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from madtp_core.checkpoint import load_checkpoint
from madtp_core.cli import main
from madtp_core.errors import ConfigError
from madtp_core.parameter_pruning.masks import Masks
from madtp_core.parameter_pruning.ranking import Layout, dispensable, ratio_at
from madtp_core.parameter_pruning.structures import every_component, geometry_of
from madtp_core.tasks import load_model
from madtp_core.train.loop import train
from madtp_core.train.parameter_search import MaskSearch, measure_importance
from tests.core.test_train_command import SETTINGS, save_tiny
from tests.core.tiny_training import LOOP, make_network, make_task

# Two attentions of two heads, two feed-forward parts of three units; a head holds ten times a unit.
LAYOUT = Layout(
    component=torch.tensor([0, 0, 1, 1, 2, 2, 2, 3, 3, 3]),
    kind=torch.tensor([0] * 4 + [1] * 6),
    parameters=torch.tensor([10] * 4 + [1] * 6),
    group=torch.zeros(10, dtype=torch.int64),
)


def share_left(model, whole):
    """Parameters of all heads and units, as a share of a whole model's."""
    counts = [sum(c.count * c.parameters_each for c in every_component(one)) for one in (model, whole)]
    return counts[0] / counts[1]


def search_task(task, ratio, steps):
    network = make_network(task)
    masks = Masks(network.clip if task == "clip" else network.blip)
    return MaskSearch(make_task(task, 4, "dense", network=network), masks, ratio, steps)


# --- The ranking


@pytest.mark.parametrize(
    ("importance", "ratio", "chosen"),
    [
        ([4, 5, 6, 5, 0, 9, 9, 9, 9, 9], 1 / 46, {4}),  # the one unit that matters little
        ([1, 9, 9, 8, 5, 6, 7, 5, 6, 7], 10 / 46, {0}),  # the one head that matters little
        ([0, 9, 9, 9, 2, 6, 7, 5, 6, 7], 11 / 46, {0, 4}),  # heads and units in one row
        ([1, 2, 8, 9, 5, 6, 7, 5, 6, 7], 20 / 46, {0, 2, 4, 5, 7, 8}),  # the best of a weak attention stays
    ],
)
def test_the_least_important_go(importance, ratio, chosen):
    found = dispensable(torch.tensor(importance, dtype=torch.float32), LAYOUT, ratio)
    assert set(found.nonzero().flatten().tolist()) == chosen


def test_the_scale_of_a_kind_does_not_matter():
    importance = torch.rand(10)
    scaled = torch.where(LAYOUT.kind == 0, 1000 * importance + 7, importance)
    assert torch.equal(dispensable(importance, LAYOUT, 0.4), dispensable(scaled, LAYOUT, 0.4))


def test_every_group_gives_its_share():
    halves = replace(LAYOUT, group=torch.tensor([0, 0, 1, 1, 0, 0, 0, 1, 1, 1]))
    importance = torch.tensor([1, 2, 8, 9, 1, 2, 3, 7, 8, 9], dtype=torch.float32)
    found = [dispensable(importance, layout, 20 / 46) for layout in (LAYOUT, halves)]
    one_row, shared = (set(each.nonzero().flatten().tolist()) for each in found)
    assert one_row == {0, 2, 4, 5, 7} and shared == {0, 2, 4, 7}


def test_towers_give_the_same_share_when_they_are_asked_to():
    masks = Masks(make_network("vqa").blip, "tower")
    masks.importance[: len(masks.importance) // 2] = 9.0  # the image's matter more
    masks.shrink(0.3, 0.0)
    left, whole = Counter(), Counter()
    for component, kept in zip(masks.components, masks.kept(), strict=True):
        left[component.tower] += component.parameters_each * len(kept)
        whole[component.tower] += component.parameters_each * component.count
    shares = {tower: left[tower] / whole[tower] for tower in whole}
    assert shares == pytest.approx(dict.fromkeys(whole, 0.7), abs=0.05)


def test_one_of_each_stays_at_the_most():
    found = dispensable(torch.rand(10), LAYOUT, 24 / 46)
    assert [int(found[LAYOUT.component == one].sum()) for one in range(4)] == [1, 1, 2, 2]


@pytest.mark.parametrize("ratio", [0.0, -1.0, 0.53, 2.0, float("nan")])
def test_a_ratio_out_of_reach_is_refused(ratio):
    with pytest.raises(ConfigError, match=r"\(0, 0\.522\]"):
        dispensable(torch.rand(10), LAYOUT, ratio)


def test_the_schedule_grows_to_the_ratio():
    ratios = [ratio_at(step, 8, 0.3) for step in range(8)]
    assert ratios == sorted(ratios)
    assert ratios[-1] == 0.3
    assert ratios[3] == pytest.approx(0.3 * 0.5**0.5)
    assert ratios[0] < 0.1


# --- The masks


def test_importance_is_the_gradient_of_the_masks():
    task = make_task("vqa", 4, "dense")
    masks = Masks(task.network.blip)
    measure_importance(task, masks, 1)
    batch, place = task.batches()[0], 5

    def loss_at(value):
        with torch.no_grad():
            masks.values[place] = value
            return task.loss(batch, 0)[0].item()

    slope = (loss_at(1.01) - loss_at(0.99)) / 0.02
    assert masks.importance[place].item() == pytest.approx(abs(slope), rel=2e-2)


def test_measuring_trains_nothing_and_leaves_all_trainable():
    task = make_task("vqa", 4, "dense")
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    measure_importance(task, Masks(task.network.blip), 2)
    assert all(torch.equal(value, before[name]) for name, value in task.network.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in task.network.parameters())


def test_a_gradient_that_is_not_finite_counts_for_nothing():
    masks = Masks(make_network("vqa").blip)
    masks.values.grad = torch.full_like(masks.values, float("inf"))
    masks.collect()
    assert masks.importance.abs().sum() == 0
    assert masks.values.grad is None


def test_what_turns_out_to_matter_comes_back():
    masks = Masks(make_network("vqa").blip)
    masks.importance.copy_(torch.arange(len(masks.importance)) + 1.0)
    masks.shrink(0.3, 0.5)
    faded = int((masks.values == 0.5).nonzero()[0])
    masks.importance[faded] = 1e6
    masks.shrink(0.3, 0.5)
    assert masks.values[faded] == 1


# --- The search


@pytest.mark.parametrize("task", ["vqa", "caption", "retrieval", "reasoning", "clip"])
def test_a_search_ends_at_its_ratio(task, tmp_path):
    search = search_task(task, 0.3, LOOP.steps)
    train(search, LOOP, tmp_path)
    values, sizes = search.masks.values.detach(), search.masks.layout.parameters
    assert set(values.tolist()) == {0.0, 1.0}
    assert float((sizes * (1 - values)).sum() / sizes.sum()) == pytest.approx(0.3, abs=0.06)
    assert min(map(len, search.masks.kept())) >= 1


def test_the_last_step_ranks_whatever_the_interval(tmp_path, monkeypatch):
    monkeypatch.setattr("madtp_core.train.parameter_search.UPDATES", 2)  # every 2 steps of 5
    search = search_task("vqa", 0.3, 5)
    train(search, replace(LOOP, steps=5), tmp_path)
    assert set(search.masks.values.tolist()) == {0.0, 1.0}


def test_masks_fade_while_weights_learn(tmp_path):
    search = search_task("vqa", 0.4, 4)
    before = [p.clone() for p in search.task.network.parameters()]
    train(search, replace(LOOP, stop_step=2), tmp_path)
    factor = 1 - ratio_at(1, 4, 0.4) / 0.4
    assert sorted(set(search.masks.values.tolist())) == pytest.approx([factor, 1.0])
    assert any(
        not torch.equal(own, old) for own, old in zip(search.task.network.parameters(), before, strict=True)
    )


def test_a_resumed_search_is_the_uninterrupted_one(tmp_path):
    whole, first, second = (search_task("vqa", 0.3, 4) for _ in range(3))
    train(whole, LOOP, tmp_path / "whole")
    train(first, replace(LOOP, stop_step=2), tmp_path / "parts")
    (tmp_path / "parts" / "model").rmdir()
    train(second, LOOP, tmp_path / "parts")
    assert torch.equal(whole.masks.values, second.masks.values)
    assert torch.equal(whole.masks.importance, second.masks.importance)
    theirs = second.task.network.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in whole.task.network.state_dict().items())


def test_a_momentum_copy_runs_under_the_same_masks():
    search = search_task("clip", 0.3, 4)
    copied = search.task.copy.network
    pixels = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        before = copied.image_embeddings(copied.encode_image(pixels))
        search.masks.values[: len(search.masks.values) // 2] = 0.0
        after = copied.image_embeddings(copied.encode_image(pixels))
    assert not torch.allclose(before, after)


# --- The command


@pytest.fixture
def tiny(tmp_path):
    """A plain BLIP for questions in a directory."""
    save_tiny("vqa", tmp_path / "plain")
    return tmp_path / "plain"


def command(tiny, output, *options):
    settings = {key: value for key, value in SETTINGS.items() if key.startswith(("loop.l", "batch"))}
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return main(
        ["prune-parameters", str(tiny), "--data", "shapes:8", "--validation", "shapes:4",
         "--output", str(output), *changes, *options]
    )  # fmt: skip


def test_at_once(tiny, tmp_path, capsys):
    assert command(tiny, tmp_path / "run", "--ratio", "0.3", "--steps", "0", "--batches", "1") == 0
    smaller, whole = load_checkpoint(tmp_path / "run" / "search" / "model"), load_checkpoint(tiny)
    assert share_left(smaller.model, whole.model) == pytest.approx(0.7, abs=0.05)
    assert geometry_of(smaller.model) == smaller.config.geometry
    assert "GMACs" in capsys.readouterr().out


def test_step_by_step_then_trained_then_madtp_on_top(tiny, tmp_path):
    output = tmp_path / "run"
    options = ("--ratio", "0.25", "--steps", "3", "--retrain-steps", "2")
    assert command(tiny, output, *options) == 0
    searched, trained = (load_checkpoint(output / place) for place in ("search/model", "model"))
    assert share_left(trained.model, load_checkpoint(tiny).model) == pytest.approx(0.75, abs=0.05)
    assert trained.config == searched.config
    assert any(
        not torch.equal(own, old)
        for own, old in zip(trained.model.parameters(), searched.model.parameters(), strict=True)
    )
    assert (output / "best" / "madtp.json").is_file()
    changes = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    code = main(
        ["train", "vqav2", "--model", str(output / "model"), "--data", "shapes:8", "--validation", "shapes:4",
         "--flops-ratio", "0.5", "--output", str(tmp_path / "madtp"), *changes]
    )  # fmt: skip
    both = load_model(tmp_path / "madtp" / "model")
    assert code == 0
    assert both.checkpoint.config.geometry == trained.config.geometry
    assert both.checkpoint.alignment is not None


def test_a_finished_run_is_taken_as_it_is(tiny, tmp_path):
    options = ("--ratio", "0.3", "--steps", "2", "--retrain-steps", "0")
    assert command(tiny, tmp_path / "run", *options) == 0
    written = tmp_path / "run" / "search" / "model" / "model.safetensors"
    before = written.stat().st_mtime_ns
    assert command(tiny, tmp_path / "run", *options) == 0
    assert written.stat().st_mtime_ns == before


def test_a_run_with_another_ratio_is_refused(tiny, tmp_path, capsys):
    options = ("--steps", "0", "--batches", "1")
    assert command(tiny, tmp_path / "run", "--ratio", "0.3", *options) == 0
    assert command(tiny, tmp_path / "run", "--ratio", "0.2", *options) == 2
    assert "another ratio" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--ratio", "0.99", "--steps", "0"), "one head and one unit stay"),
        (("--ratio", "1.5", "--steps", "0"), "a ratio in (0, 1)"),
        (("--ratio", "0.3", "--steps", "-1"), "steps >= 0"),
        (("--ratio", "0.3", "--steps", "0", "--batches", "0"), "batches >= 1"),
        (("--ratio", "0.3", "--steps", "2", "--recipe", "nlvr2"), "is for 'reasoning'"),
    ],
)
def test_what_cannot_work_is_said(tiny, tmp_path, capsys, options, said):
    assert command(tiny, tmp_path / "run", *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "search" / "model").exists()
