"""The demo's stages end to end on a miniature: one tower, five tasks."""

import json
from functools import cache

import pytest
import torch

from madtp_core.data.shapes import ANSWERS, FAMILIES, ShapesVqa, sample_scene
from madtp_core.errors import CheckpointError, ConfigError
from madtp_core.pruning.madtp import MadtpPruner
from madtp_core.tasks import load_model
from madtp_core.train import demo, demo_models, loop
from madtp_core.train.contents import contents_of
from madtp_core.train.costs import Cost, CostsInTurn
from madtp_core.train.demo import CHECKPOINTS, RECIPE, TASKS, DemoRun, read_recipe
from madtp_core.train.loop import LoopConfig
from madtp_core.train.shapes_data import ShapesBatches
from madtp_core.train.shapes_describe import ShapesCaptionBatches
from madtp_core.train.shapes_reasoning import ReasoningLosses, ShapesStatementBatches
from madtp_core.train.shapes_vqa import ReadingLosses, ShapesVqaBatches

LOOP = {"steps": 7, "learning_rate": 3e-3, "checkpoint_every": 2, "loader_workers": 0, "log_every": 1}
COSTS = {
    "each": [["max_keep", 0.6], ["per_instance", 0.5], ["dense", 1.0]],
    "first_temperatures": {"max_keep": 0.5, "per_instance": 0.4},
    "ramp_steps": 2,
    "gain": 1.0,
}
MINIATURE = {
    "name": "miniature",
    "seed": 0,
    "image": {"size": 64, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "model": {
        "width": 32, "heads": 2, "text_heads": 4, "vision_blocks": 2, "text_blocks": 2, "patch_size": 8,
        "max_text_tokens": 40, "embedding_width": 16,
    },
    "alignment": {"num_tokens": 8, "dim": 32},
    "validation_scenes": 8,
    "stages": {
        "look": {"scenes": 4, "loop": LOOP},
        "describe": {"scenes": 4, "losses": {}, "costs": COSTS, "loop": LOOP},
        "vqa": {
            "scenes": 4, "questions": 2, "family_weights": {"count": 3}, "losses": {}, "costs": COSTS,
            "loop": LOOP,
        },
        "sharpen": {
            "kind": "describe", "scenes": 4, "losses": {}, "costs": COSTS, "loop": LOOP | {"steps": 1},
        },
        "reread": {
            "kind": "vqa", "scenes": 4, "questions": 2, "family_weights": {}, "losses": {}, "costs": COSTS,
            "loop": LOOP | {"steps": 1},
        },
        "caption": {"scenes": 4, "costs": COSTS, "loop": LOOP},
        "retrieval": {"scenes": 4, "losses": {}, "costs": COSTS, "loop": LOOP},
        "reasoning": {"scenes": 4, "statements": 2, "losses": {}, "costs": COSTS, "loop": LOOP},
        "clip": {"scenes": 4, "losses": {}, "costs": COSTS, "loop": LOOP},
    },
    "calibrate": {"samples": 8, "mixes": ["natural"], "batch_sizes": [1, 4]},
    "store": "fp16",
}  # fmt: skip
STAGES = ("look", "describe", *TASKS)


def records(directory):
    lines = map(json.loads, (directory / "log.jsonl").read_text().splitlines())
    return {record["step"]: record for record in lines if "loss" in record}


def losses(directory):
    return {step: record["loss"] for step, record in records(directory).items()}


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer():
    """Train the vocabulary once for the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_models, "build_tokenizer", cache(demo_models.build_tokenizer))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    work = tmp_path_factory.mktemp("demo")
    run = DemoRun(MINIATURE, work / "work", work / "out")
    run.make()
    return run


@pytest.fixture(scope="module")
def codec(finished):
    return load_model(finished.work / "vqa" / "model").codec


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_saved_with_the_temperature_it_reached(finished, task):
    model = load_model(finished.work / task / "model")
    assert model.task == task
    last = records(finished.work / task)[6]
    assert last["prune_temperature/max_keep@0.6"] != 0.5
    assert model.pruning.flops_ratio == 0.6 and model.pruning.prune_temperature != 0.5


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_stored_with_its_calibration(finished, task):
    model = load_model(finished.output / CHECKPOINTS[task])
    assert {(row.keep_mode, row.batch_size) for row in model.calibration.rows} >= {
        ("max_keep", 1), ("max_keep", 4), ("per_instance", 1)
    }  # fmt: skip
    stage = "reread" if task == "vqa" else task
    trained = load_model(finished.work / stage / "model").checkpoint.model.state_dict()
    stored = model.checkpoint.model.state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in trained.items())
    has_own_tower = (finished.output / CHECKPOINTS[task] / "model.safetensors").exists()
    assert has_own_tower == (task == "clip")


def test_what_is_never_pruned_is_stored_as_a_plain_model(tmp_path):
    """The start of comparisons: nothing of MADTP in it, nothing to calibrate, and no other task asked for."""
    dense = {"each": [["dense", 1.0]], "first_temperatures": {}, "ramp_steps": 0, "gain": 1.0}
    stages = {
        name: MINIATURE["stages"][name] | {"loop": LOOP | {"steps": 1, "evaluate_every": 1}}
        for name in ("look", "describe", "vqa")
    }
    for name in ("describe", "vqa"):
        stages[name] |= {"costs": dense, "losses": {"alignment": 0.0}}
    recipe = {name: part for name, part in MINIATURE.items() if name != "calibrate"} | {"stages": stages}
    DemoRun(recipe, tmp_path / "work", tmp_path / "out").make(["vqa"])
    model = load_model(tmp_path / "out" / CHECKPOINTS["vqa"])
    assert model.checkpoint.alignment is None and model.pruning is None and model.calibration is None
    assert not (tmp_path / "out" / CHECKPOINTS["vqa"] / "mag.safetensors").exists()
    lines = map(json.loads, (tmp_path / "work" / "vqa" / "log.jsonl").read_text().splitlines())
    assert [line["evaluation"]["flops_ratio"] for line in lines if "evaluation" in line] == [1.0]


def test_the_recipe_of_the_dense_start_prunes_nothing():
    stages = read_recipe(RECIPE.with_name("dense.yaml"))["stages"]
    costs = [part["costs"]["each"] for part in stages.values() if "costs" in part]
    assert costs == [[["dense", 1.0]]] * 3


def test_tasks_share_the_tower_that_describing_left(finished):
    towers = [
        load_model(finished.work / task / "model").checkpoint.model.vision_model.state_dict()
        for task in ("reread", "caption", "retrieval", "reasoning")
    ]
    for tower in towers[1:]:
        assert all(torch.equal(value, tower[name]) for name, value in towers[0].items())


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_falls(finished, stage):
    seen = losses(finished.work / stage)
    assert sorted(seen) == list(range(7))
    assert seen[6] < seen[0]  # three costs in turn: the same one again


def test_a_later_stage_goes_on_with_what_the_earlier_one_trained(finished):
    """One step moves weights by at most its learning rate, not back to fresh ones."""
    earlier, later = (
        torch.load(finished.work / stage / "last.pt", weights_only=True)["modules"]
        for stage in ("vqa", "reread")
    )
    assert all((value - later[name]).abs().max() < 1e-2 for name, value in earlier.items())
    assert not torch.equal(earlier["answer_head.weight"], later["answer_head.weight"])


def test_costs_come_in_turn_and_each_is_steered(finished):
    logged = records(finished.work / "vqa")
    for step, cost in enumerate(("max_keep@0.6", "per_instance@0.5", "dense")):
        assert f"flops_ratio/{cost}" in logged[step]
        assert 0 < logged[step]["alignment_loss"] < 2
    assert logged[2]["flops_ratio/dense"] > 1  # the alignment tokens are read, nothing is dropped


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_repeats_the_uninterrupted_one(finished, tmp_path, stage):
    """Stop after two steps, start anew, and compare every later loss bit for bit."""
    whole = losses(finished.work / stage)
    again = DemoRun(MINIATURE, tmp_path, tmp_path / "out")
    for other in MINIATURE["stages"]:
        if other != stage:
            (tmp_path / other).symlink_to(finished.work / other)
    wanted = (stage,) if stage in TASKS else ()

    def interrupted(task, config, directory):
        loss = task.loss

        def until(batch, step):
            if step == 2:
                raise KeyboardInterrupt
            return loss(batch, step)

        task.loss = until
        return loop.train(task, config, directory)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(demo, "run", interrupted)
        again.train(wanted)
    again.train(wanted)
    resumed = losses(tmp_path / stage)
    assert {step: resumed[step] for step in whole} == whole


def test_a_changed_configuration_does_not_resume(finished):
    changed = json.loads(json.dumps(MINIATURE))
    changed["stages"]["describe"]["loop"]["learning_rate"] = 0.5
    with pytest.raises(CheckpointError, match="learning_rate"):
        DemoRun(changed, finished.work, finished.output).train()


def test_looking_is_measured_on_held_out_scenes(finished):
    last = json.loads((finished.work / "look" / "log.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["evaluation"]["accuracy/object_patches"] <= 1


def test_the_committed_recipe_is_complete():
    recipe = read_recipe(RECIPE)
    assert set(recipe) == set(MINIATURE)
    stages = recipe["stages"]
    assert set(STAGES) <= set(stages)
    for name, part in stages.items():
        LoopConfig(**part["loop"])
        kind = part.get("kind", name)
        assert set(part) - {"kind"} == set(MINIATURE["stages"][kind])
        if kind == "vqa":
            ReadingLosses(**part["losses"])
            assert set(part["family_weights"]) <= set(FAMILIES)
    ReasoningLosses(**stages["reasoning"]["losses"])


def test_a_cost_moves_its_own_temperature_towards_its_ratio():
    costs = CostsInTurn(
        [Cost("max_keep", 0.5), Cost("dense"), Cost("max_keep", 0.3)], {"max_keep": 1.0}, gain=1.0
    )
    costs.note(0, {"flops_ratio/max_keep@0.5": 0.8})
    costs.note(1, {})
    costs.note(2, {"flops_ratio/max_keep@0.3": 0.2})
    assert costs.prune_temperature(0) > 1 > costs.prune_temperature(2)
    assert costs.prune_temperature(1) == 0
    assert not any(costs.pruning(MadtpPruner(), 1, 3).prune_temperature)
    other = CostsInTurn(costs.costs, {"max_keep": 9.0})
    other.load_state(costs.state())
    assert other.prune_temperature(3) == costs.prune_temperature(0)


def test_the_target_of_a_cost_falls_while_it_ramps():
    costs = CostsInTurn([Cost("max_keep", 0.5)], {"max_keep": 1.0}, ramp_steps=10)
    costs.note(0, {"flops_ratio/max_keep@0.5": 0.9})  # below the first step's 0.95
    assert costs.prune_temperature(1) < 1


@pytest.mark.parametrize("given", [("top_k", 0.5), ("max_keep", 0.0), ("dense", 1.5)])
def test_a_cost_that_cannot_be_is_refused(given):
    with pytest.raises(ConfigError):
        Cost(*given)


def test_batches_are_a_function_of_the_step(codec):
    scenes = ShapesVqa(0, "train", 10**6, 2, 64)

    def batch(step, first_scene=0):
        return ShapesVqaBatches(ShapesBatches(scenes, 3, first_scene), codec)[step]

    first, again, other = batch(5), batch(5), batch(6)
    assert torch.equal(first.scenes.images, again.scenes.images)
    assert torch.equal(first.question_ids, again.question_ids)
    assert not torch.equal(first.scenes.images, other.scenes.images)
    assert torch.equal(first.scenes.images, batch(0, first_scene=15).scenes.images)


def test_answer_labels_index_the_answers(codec):
    data = ShapesBatches(ShapesVqa(0, "train", 10**6, 4, 64), 3)
    said = [question.answer for example in data.examples(0) for question in example.questions]
    assert [ANSWERS[i] for i in ShapesVqaBatches(data, codec)[0].answer_labels.tolist()] == said


def test_a_caption_batch_holds_all_captions_of_its_scenes(codec):
    batch = ShapesCaptionBatches(ShapesBatches(ShapesVqa(0, "train", 100, 0, 64), 3), codec)[0]
    assert batch.reader.tolist() == [row for row in range(3) for _ in range(5)]
    assert batch.contents.shape == (3, 1 + 1 + 6 + 8 + 2 + 3)


def test_contents_are_counted():
    scene = sample_scene(0, "train", 3)
    contents = contents_of(scene)
    assert contents[:2] == [scene.clutter, scene.num_objects]
    assert [sum(contents[2:8]), sum(contents[8:16]), sum(contents[16:18])] == [scene.num_objects] * 3
    assert contents[2] == sum(thing.shape == "circle" for thing in scene.objects)


def test_statements_name_what_stands_on_either_side(codec):
    """Counts decide whether `exactly` and `more` statements hold: they must be those of the right scene."""
    data = ShapesStatementBatches(ShapesBatches(ShapesVqa(0, "train", 1000, 0, 64), 8), codec, 12)[0]
    assert data.right.tolist() == [(left + 1) % 8 for left in data.left.tolist()]
    more = codec.tokenizer.convert_tokens_to_ids("more")
    left_first = codec.tokenizer.convert_tokens_to_ids("left")
    checked = 0
    for row, ids in enumerate(data.token_ids.tolist()):
        if more in ids:
            left, right = data.named.counts[row].tolist()
            is_left = ids.index(left_first) < ids.index(more)
            assert bool(data.labels[row]) == (left > right if is_left else right > left)
            checked += 1
    assert checked > 3
