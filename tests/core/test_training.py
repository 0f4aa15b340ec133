"""The loop, the demo's tasks and calibration, end to end on a miniature."""

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from madtp_core.data.shapes import ANSWERS, FAMILIES, ShapesVqa
from madtp_core.encoder import Pruning
from madtp_core.errors import CheckpointError, ConfigError
from madtp_core.pruning.madtp import MadtpPruner
from madtp_core.tasks.vqa import BlipVqa
from madtp_core.train import demo, loop
from madtp_core.train.auxiliary import Pointing, WatchedMadtp, balanced_loss, centres
from madtp_core.train.calibrate import calibrate
from madtp_core.train.demo import RECIPE, DemoRun, read_recipe
from madtp_core.train.evaluate import evaluate_vqa
from madtp_core.train.loop import LoopConfig, parameter_groups, train
from madtp_core.train.shapes_data import (
    ShapesBatches,
    ShapesVqaBatches,
    look_labels,
    named_centres,
    named_counts,
    patch_cells,
    pixel_values,
    spoken_of,
)
from madtp_core.train.shapes_vqa import ReadingLosses

MINIATURE = {
    "name": "miniature",
    "seed": 0,
    "image": {"size": 64, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "model": {
        "width": 32, "heads": 2, "text_heads": 4, "vision_blocks": 2, "text_blocks": 2,
        "patch_size": 8, "max_text_tokens": 40,
    },
    "alignment": {"num_tokens": 8, "dim": 32},
    "validation_scenes": 8,
    "look": {
        "scenes": 4,
        "loop": {
            "steps": 6, "stop_step": 4, "learning_rate": 1e-3, "checkpoint_every": 2, "loader_workers": 0,
        },
    },
    "read": {
        "scenes": 4, "questions": 2, "family_weights": {"count": 3}, "losses": {"pointing": 0.3},
        "loop": {
            "steps": 4, "learning_rate": 1e-3, "warmup_steps": 1, "hold_steps": 1,
            "checkpoint_every": 2, "loader_workers": 0,
        },
    },
    "compress": [{
        "scenes": 4, "questions": 2, "flops_ratio": 0.6,
        "modes": ["max_keep", "per_instance", "dense"],
        "first_temperatures": {"max_keep": 0.5, "per_instance": 0.4}, "ramp_steps": 2,
        "alpha": 0.1, "importance": 0.1, "gain": 1.0,
        "loop": {"steps": 6, "learning_rate": 1e-3, "checkpoint_every": 2, "loader_workers": 0,
                 "log_every": 1},
    }, {
        "scenes": 4, "questions": 2, "flops_ratio": 0.6, "modes": ["max_keep"],
        "first_temperatures": {"max_keep": 0.5}, "ramp_steps": 0,
        "alpha": 0.1, "importance": 0.1, "gain": 1.0,
        "loop": {"steps": 1, "learning_rate": 1e-5, "loader_workers": 0},
    }],
    "calibrate": {"scenes": 8, "batch_sizes": [1, 4], "factors": [0.5, 1.0]},
    "store": "fp16",
}  # fmt: skip


def losses(directory):
    records = map(json.loads, (directory / "log.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in records if "loss" in record}


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer():
    """Train the vocabulary once for the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "build_tokenizer", cache(demo.build_tokenizer))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    work = tmp_path_factory.mktemp("demo")
    run = DemoRun(MINIATURE, work / "work", work / "out")
    return run, run.make()


def test_the_recipe_runs_to_a_calibrated_checkpoint(finished):
    run, model = finished
    loaded = BlipVqa.from_pretrained(run.output)
    assert loaded.pruning == model.pruning and loaded.pruning.prune_temperature > 0
    assert {(row.keep_mode, row.batch_size) for row in loaded.calibration.rows} == {
        ("max_keep", 1), ("max_keep", 4), ("per_instance", 1)
    }  # fmt: skip
    assert all(row.samples == 8 and row.accuracy is not None for row in loaded.calibration.rows)


def test_a_second_compression_goes_on_with_the_first_ones_alignment(finished):
    run, _ = finished
    first, second = (
        BlipVqa.from_pretrained(run.work / f"compress-{part}" / "model").network.alignment for part in (1, 2)
    )
    assert torch.allclose(first.tokens, second.tokens, atol=1e-3)


@pytest.mark.parametrize("stage", ["look", "read"])
def test_the_loss_falls(finished, stage):
    run, _ = finished
    seen = losses(run.work / stage)
    assert sorted(seen) == [0, 3]  # look stops early
    assert seen[3] < seen[0]


def test_reading_leaves_the_vision_tower_as_it_is(finished):
    run, _ = finished
    looked, read = (
        BlipVqa.from_pretrained(run.work / stage / "model").network.blip for stage in ("look", "read")
    )
    after = read.vision_model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in looked.vision_model.state_dict().items())
    assert not torch.equal(looked.text_encoder.embeddings.word_embeddings.weight,
                           read.text_encoder.embeddings.word_embeddings.weight)  # fmt: skip


def test_looking_is_measured_on_held_out_scenes(finished):
    run, _ = finished
    last = json.loads((run.work / "look" / "log.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["evaluation"]["accuracy/object_patches"] <= 1


def test_compression_takes_its_modes_in_turn_and_steers_each(finished):
    run, _ = finished
    records = [json.loads(line) for line in (run.work / "compress-1" / "log.jsonl").read_text().splitlines()][
        :6
    ]
    for step, mode in enumerate(["max_keep", "per_instance", "dense"] * 2):
        assert {name.split("/")[1] for name in records[step] if "/" in name} == {mode}
        assert 0 < records[step]["alignment_loss"] < 2
    for mode, earlier, later in (("max_keep", 0, 3), ("per_instance", 1, 4)):
        name = f"prune_temperature/{mode}"
        assert records[earlier][name] != records[later][name]
        assert 0 < records[later][f"flops_ratio/{mode}"] <= 1.1
    assert records[2]["flops_ratio/dense"] > 1  # the alignment tokens are read, nothing is dropped


@pytest.mark.parametrize("stage", ["look", "read", "compress-1"])
def test_a_resumed_run_repeats_the_uninterrupted_one(finished, tmp_path, stage):
    """Stop after two steps, start anew, and compare every later loss bit for bit."""
    run, _ = finished
    whole = losses(run.work / stage)

    again = DemoRun(MINIATURE, tmp_path, tmp_path / "out")
    stages = ["look", "read", "compress-1"]
    for earlier in stages[: stages.index(stage)]:
        (tmp_path / earlier).symlink_to(run.work / earlier)
    step = loop._step

    def interrupted_step(task, optimizer, batch, now, config):
        if now == 2:
            raise KeyboardInterrupt
        return step(task, optimizer, batch, now, config)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "_step", interrupted_step)
        again.make()
    again.make()
    resumed = losses(tmp_path / stage)
    assert {step: resumed[step] for step in whole} == whole


def test_a_changed_configuration_does_not_resume(finished):
    run, _ = finished
    changed = json.loads(json.dumps(MINIATURE))
    changed["read"]["loop"]["learning_rate"] = 0.5
    with pytest.raises(CheckpointError, match="learning_rate"):
        DemoRun(changed, run.work, run.output).make()


def test_calibration_measures_what_prediction_spends(finished):
    _, model = finished
    scenes = ShapesVqa(0, "validation", 4, 1, 64)
    table = calibrate(model, scenes, [0.8], [4])
    direct = evaluate_vqa(model, scenes, batch_size=4, prune_temperature=0.8)
    assert table.rows[0].flops_ratio == direct.flops_ratio
    assert direct.figures()["samples"] == 4


def test_batches_are_a_function_of_the_step(finished):
    _, model = finished
    scenes = ShapesVqa(0, "train", 10**6, 2, 64)

    def batch(step, first_scene=0):
        return ShapesVqaBatches(ShapesBatches(scenes, 3, first_scene), model.codec)[step]

    first, again, other = batch(5), batch(5), batch(6)
    assert torch.equal(first.scenes.images, again.scenes.images)
    assert torch.equal(first.question_ids, again.question_ids)
    assert not torch.equal(first.scenes.images, other.scenes.images)
    assert torch.equal(first.scenes.images, batch(0, first_scene=15).scenes.images)


def test_answer_labels_index_the_answers(finished):
    _, model = finished
    data = ShapesBatches(ShapesVqa(0, "train", 10**6, 4, 64), 3)
    said = [question.answer for example in data.examples(0) for question in example.questions]
    assert [ANSWERS[i] for i in ShapesVqaBatches(data, model.codec)[0].answer_labels.tolist()] == said


def test_look_labels_follow_the_scene():
    example = ShapesVqa(0, "train", 100, 1, 96)[7]
    looks = look_labels(example)
    assert looks.shape == example.patch_labels.shape
    assert np.array_equal(looks > 0, example.patch_labels > 0)
    named = {(1 + ("small", "large").index(o.size) * 3 + ("solid", "striped", "hollow").index(o.texture))
             for o in example.scene.objects}  # fmt: skip
    assert set(looks[looks > 0].tolist()) == named


def test_learning_rate_stays_at_its_peak_while_held():
    config = LoopConfig(steps=100, learning_rate=1.0, warmup_steps=10, hold_steps=40)
    assert [config.learning_rate_at(step) for step in (10, 30, 50)] == [1.0] * 3
    assert config.learning_rate_at(75) == pytest.approx(0.5)


def test_learning_rate_warms_up_and_ends_near_zero():
    config = LoopConfig(steps=100, learning_rate=1.0, warmup_steps=10)
    rates = [config.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0 and rates[99] < 1e-2
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"learning_rate": 0.0}, {"warmup_steps": 11}, {"hold_steps": 11}, {"dtype": "int3"}],
)
def test_a_loop_that_cannot_run_is_refused(options):
    with pytest.raises(ConfigError):
        LoopConfig(**{"steps": 10, "learning_rate": 1e-3, **options})


def test_only_matrices_decay():
    groups = parameter_groups(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2)), 0.1)
    assert [len(group["params"]) for group in groups] == [1, 3]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    class Broken:
        modules = torch.nn.Linear(1, 1)

        def batches(self):
            return [0] * 10

        def loss(self, batch, step):
            return self.modules(torch.full((1,), float("nan"))).sum(), {}

        def load_state(self, state):
            pass

    with pytest.raises(FloatingPointError, match="step 0"):
        train(Broken(), LoopConfig(steps=2, learning_rate=1e-3, loader_workers=0), tmp_path)


def test_the_committed_recipe_is_complete():
    recipe = read_recipe(RECIPE)
    assert set(recipe) == set(MINIATURE)
    for part in (recipe["look"], recipe["read"], *recipe["compress"]):
        LoopConfig(**part["loop"])
    ReadingLosses(**recipe["read"]["losses"])
    assert set(recipe["read"]["family_weights"]) <= set(FAMILIES)


def test_what_a_question_speaks_of_lies_on_its_objects():
    data = ShapesVqa(0, "train", 100, 8, 96)
    checked = 0
    for example in (data[index] for index in range(20)):
        for question in example.questions:
            first, second = spoken_of(example, question)
            assert not (first | second)[example.patch_labels == 0].any()
            assert len(question.about) == 2 or not second.any()
            named = [o for o in example.scene.objects if question.about[0].matches(o)]
            cells = set(patch_cells(example)[first].tolist())
            assert cells <= {thing.cell for thing in named}
            checked += len(cells) > 0
    assert checked > 50


def test_pointing_and_tally_are_what_the_heads_miss(vqa_checkpoint):
    """Computed again from the weights, question by question: heads 0 and 1 point, heads 2 and 3 tally."""
    model = fresh_model(vqa_checkpoint)
    batch = ShapesVqaBatches(ShapesBatches(ShapesVqa(0, "train", 1000, 2, 64), 2), model.codec)[0]
    helper = Pointing(model.network)
    out = model.network(
        pixel_values(batch.scenes.images, model.image_geometry),
        batch.question_ids,
        batch.question_mask,
        batch.reader,
        batch.answer_ids,
    )
    pointing, tally = helper.losses(batch)

    image = out.vision.tokens.hidden.detach()
    means = {"pointing": [], "tally": []}
    with torch.no_grad():
        for index, attention in enumerate(helper.layers):
            seen = attention_input(model, batch, image, index)
            missed = {"pointing": [], "tally": []}
            for row, reader in enumerate(batch.reader.tolist()):
                query = attention.query(seen[row, 0]).view(4, 8)
                key = attention.key(image[reader]).view(-1, 4, 8)
                logits = torch.einsum("hd,phd->hp", query, key) / 8**0.5
                for place in range(2):
                    wanted = batch.spoken_of[row, place]
                    if wanted.any():
                        missed["pointing"].append(-logits[place, 1:].softmax(0)[wanted].sum().log())
                    if batch.named_counts[row, place] >= 0:
                        there = torch.cat([torch.ones(1), batch.named_centres[row, place].float()])
                        share = logits[2 + place].log_softmax(0)
                        missed["tally"].append(-(share * there).sum() / there.sum())
            for name, values in missed.items():
                means[name].append(torch.stack(values).mean())
    assert pointing.item() == pytest.approx(torch.stack(means["pointing"]).mean().item(), rel=1e-4)
    assert tally.item() == pytest.approx(torch.stack(means["tally"]).mean().item(), rel=1e-4)
    (pointing + tally).backward()
    assert helper.layers[0].query.weight.grad is not None


def fresh_model(checkpoint):
    """A network of its own with four text heads, so that hooks and gradients stay here."""
    from madtp_core.backbones.blip import blip_config, build_blip_vqa, scramble

    tokenizer = checkpoint.tokenizer
    config = blip_config(
        width=32, heads=2, text_heads=4, vision_blocks=1, text_blocks=2, image_size=64, patch_size=8,
        vocabulary=len(tokenizer), max_text_tokens=40,
        bos_token_id=tokenizer.bos_token_id, sep_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    blip = build_blip_vqa(config)
    scramble(blip, std=0.2)
    madtp = replace(checkpoint.config, alignment=None, pruning=None)
    return BlipVqa(replace(checkpoint, model=blip, alignment=None, config=madtp))


def attention_input(model, batch, image, index):
    """What the cross-attention of a question block is asked with, by Hugging Face's own modules."""
    encoder = model.network.blip.text_encoder
    seen = []
    handle = encoder.encoder.layer[index].crossattention.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    encoder(
        input_ids=batch.question_ids,
        attention_mask=batch.question_mask,
        encoder_hidden_states=image[batch.reader],
        encoder_attention_mask=torch.ones(image[batch.reader].shape[:2]),
    )
    handle.remove()
    return seen[0]


def test_importance_loss_is_the_share_that_objects_miss(vqa_checkpoint):
    """Computed again from what every block's pruner saw."""
    model = BlipVqa(vqa_checkpoint)
    data = ShapesBatches(ShapesVqa(0, "train", 1000, 0, 64), 3)[0]
    pixels, is_object = pixel_values(data.images, model.image_geometry), data.patch_labels > 0
    seen = []

    class Recorder(MadtpPruner):
        def decide(self, tokens, signals, step):
            decided = super().decide(tokens, signals, step)
            seen.append((tokens.position, decided[0]))
            return decided

    watched = WatchedMadtp()
    for pruner in (watched, Recorder()):
        model.network.encode_image(pixels, Pruning(pruner, torch.full((3,), 0.7), "max_keep"))
    losses = []
    for position, importance in seen:
        for row in range(3):
            on_object = sum(
                max(weight.item(), 0.0)
                for place, weight in zip(position[row, 1:].tolist(), importance[row], strict=True)
                if place > 0 and is_object[row, place - 1]
            )
            losses.append(-math.log(on_object / importance[row].clamp_min(0).sum().item()))
    assert any((position == -1).any() for position, _ in seen)
    assert watched.importance_loss(is_object).item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_balanced_loss_weighs_rare_objects_like_frequent_background():
    logits = torch.zeros(1, 2, 10)
    logits[0, 0] = 2.0  # says background everywhere
    labels = torch.zeros(1, 10, dtype=torch.int64)
    labels[0, 0] = 1
    miss, hit = torch.nn.functional.cross_entropy(logits[0].T[:2], torch.tensor([1, 0]), reduction="none")
    assert balanced_loss(logits, labels).item() == pytest.approx(((miss + hit) / 2).item())


def test_centres_of_marked_patches():
    patches = torch.zeros(2, 16, dtype=torch.bool)
    patches[0, 1] = True  # row 0, column 1 of 4 x 4
    patches[1, [0, 15]] = True
    assert torch.allclose(centres(patches), torch.tensor([[0.375, 0.125], [0.5, 0.5]]))


def test_named_counts_are_the_answers_to_count_questions():
    data = ShapesVqa(0, "train", 100, 8, 96)
    pairs = [
        (named_counts(example, question), question)
        for example in (data[index] for index in range(30))
        for question in example.questions
    ]
    counted = [(counts, question) for counts, question in pairs if question.family == "count"]
    assert counted and all(counts == (int(question.answer), -1) for counts, question in counted)
    assert all((counts[1] >= 0) == (len(question.about) == 2) for counts, question in pairs)


def test_named_centres_are_one_patch_an_object():
    data = ShapesVqa(0, "train", 100, 8, 96)
    for example in (data[index] for index in range(10)):
        for question in example.questions:
            counts, marked = named_counts(example, question), named_centres(example, question)
            assert [int(n) for n in marked.sum(1)] == [max(count, 0) for count in counts]
