"""`madtp train`: a miniature of every task through the command line, and what it refuses."""

import json
import re
import shutil
from functools import cache

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from madtp_core.backbones import MODEL_CLASSES
from madtp_core.backbones.blip import blip_config, scramble
from madtp_core.backbones.clip import clip_config
from madtp_core.checkpoint import Checkpoint, save_checkpoint
from madtp_core.cli import main
from madtp_core.config import TASKS, MadtpConfig
from madtp_core.data.shapes import build_tokenizer
from madtp_core.errors import ConfigError, UnknownNameError
from madtp_core.evaluate.run import predict
from madtp_core.images import ImageGeometry
from madtp_core.tasks import load_model
from madtp_core.train.compress import CompressionRun, Data
from madtp_core.train.held_out import HeldOut
from madtp_core.train.recipe import Recipe, checked, read_recipe, recipe_names
from madtp_core.train.shapes_examples import ShapesExamples
from tests.core.benchmark_files import (
    BLIP_VG,
    BLIP_VQA,
    FLICKR_TEST,
    KARPATHY_TEST,
    KARPATHY_TRAIN,
    NLVR,
    OFFICIAL_ANNOTATIONS,
    OFFICIAL_QUESTIONS,
    pictures_of,
    write_json,
    write_pictures,
)
from tests.core.tiny_clip import make_tokenizer

SIZE = 24
GEOMETRY = ImageGeometry(SIZE, SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
RECIPES = {
    "vqa": "vqav2", "caption": "coco_caption", "retrieval": "retrieval_coco", "reasoning": "nlvr2",
    "clip": "clip_flickr30k",
}  # fmt: skip
SETTINGS = {
    "loop.steps": 4, "loop.evaluate_every": 2, "loop.log_every": 1, "loop.loader_workers": 0,
    "loop.learning_rate": 0.001, "batch_size": 4, "alignment.num_tokens": 5, "alignment.dim": 16,
    "momentum.queue": 8, "search.first_temperature": 0.5, "search.ramp": 0.5,
}  # fmt: skip

shapes_tokenizer = cache(build_tokenizer)


def save_tiny(task, directory):
    """A plain BLIP or CLIP, as someone has it who has not met MADTP."""
    if task == "clip":
        tokenizer = make_tokenizer()
        config = clip_config(
            vision_width=16, vision_heads=2, vision_blocks=2, image_size=SIZE, patch_size=8, text_width=16,
            text_heads=2, text_blocks=2, embedding_width=8, vocabulary=len(tokenizer), max_text_tokens=30,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        geometry = ImageGeometry(SIZE, SIZE, GEOMETRY.mean, GEOMETRY.std, shortest_edge=SIZE)
        madtp = MadtpConfig(task="clip", max_text_tokens=30)
    else:
        tokenizer, geometry = shapes_tokenizer(), GEOMETRY
        config = blip_config(
            width=16, heads=2, vision_blocks=2, text_blocks=2, image_size=SIZE, patch_size=8,
            vocabulary=len(tokenizer), max_text_tokens=40, bos_token_id=tokenizer.bos_token_id,
            sep_token_id=tokenizer.sep_token_id, embedding_width=8,
        )  # fmt: skip
        madtp = MadtpConfig(task=task, encoder_first_token="enc", max_text_tokens=40)
    model = MODEL_CLASSES[task](config)
    scramble(model, std=0.1)
    save_checkpoint(Checkpoint(model, tokenizer, geometry, madtp), directory)
    return directory


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Directories of plain models, by task."""
    root = tmp_path_factory.mktemp("plain")
    return cache(lambda task: save_tiny(task, root / task))


def arguments(task, model, output, *more, data="shapes:12", validation="shapes:6", **settings):
    changes = [f"--set={name}={json.dumps(value)}" for name, value in (SETTINGS | settings).items()]
    return ["train", RECIPES[task], "--model", str(model), "--data", str(data), "--validation",
            str(validation), "--output", str(output), *changes, *more]  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_a_recipe_of_every_task_compresses_a_plain_model(plain, tmp_path, task, capsys):
    """Within any flops_ratio, so that the best is kept; what is saved loads and predicts, pruned."""
    assert main(arguments(task, plain(task), tmp_path / "run", "--flops-ratio=0.99")) == 0
    assert "best" in capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len([record for record in records if "loss" in record]) == 4
    evaluations = [record["evaluation"] for record in records if "evaluation" in record]
    assert len(evaluations) == 2 and all("flops_ratio" in figures for figures in evaluations)
    for saved in ("model", "best"):
        model = load_model(tmp_path / "run" / saved)
        assert model.task == task and model.pruning.flops_ratio == 0.99 and model.pruning.batch_size == 4
        assert model.pruning.branches == (("vision",) if task == "caption" else ("vision", "text"))
        samples = HeldOut(ShapesExamples(task, 4, "test"), task, codec=model.codec)[:4]
        answers = predict(model, samples, prune_temperature=model.pruning.prune_temperature)
        assert len(answers) == 4 and all(answer.spent.difficulty is not None for answer in answers)
    assert load_model(tmp_path / "run" / "model").pruning.prune_temperature != 0.5  # it was searched


def test_ones_own_data_is_learnt_from_and_changed_at_random(plain, tmp_path, monkeypatch):
    lines = []
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 20 + number, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        lines.append({"images": [f"{number}.png"], "question": "how many stars?", "truth": [str(number)]})
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    augmented = []
    monkeypatch.setattr(
        "madtp_core.train.augment.random_crop", lambda image, area, rng: augmented.append(area) or image
    )
    assert main(arguments("vqa", plain("vqa"), tmp_path / "run", data=data, validation=data)) == 0
    assert len(augmented) == 4 * 4
    assert load_model(tmp_path / "run" / "model").task == "vqa"


def test_a_stopped_command_goes_on(plain, tmp_path):
    def records(run):
        lines = map(json.loads, (tmp_path / run / "log.jsonl").read_text().splitlines())
        return [record for record in lines if "loss" in record]

    assert main(arguments("reasoning", plain("reasoning"), tmp_path / "whole")) == 0
    for stop in (2, 4):
        changed = {"loop.stop_step": stop}
        assert main(arguments("reasoning", plain("reasoning"), tmp_path / "parts", **changed)) == 0
    assert records("parts") == records("whole")


def test_another_recipe_or_other_data_does_not_go_on(plain, tmp_path, capsys):
    assert main(arguments("reasoning", plain("reasoning"), tmp_path / "run")) == 0
    for changed in ({"batch_size": 2}, {"alpha": 0.2}):
        assert main(arguments("reasoning", plain("reasoning"), tmp_path / "run", **changed)) == 2
        assert f"another {next(iter(changed))}" in capsys.readouterr().err
    assert main(arguments("reasoning", plain("reasoning"), tmp_path / "run", data="shapes:13")) == 2
    assert "another examples" in capsys.readouterr().err


def test_a_compressed_model_keeps_its_alignment_tokens(plain, tmp_path):
    assert main(arguments("reasoning", plain("reasoning"), tmp_path / "first")) == 0
    first = load_model(tmp_path / "first" / "model").network.alignment.tokens
    settings = {"loop.learning_rate": 1e-9, "alignment.num_tokens": 9}
    assert main(arguments("reasoning", tmp_path / "first" / "model", tmp_path / "second", **settings)) == 0
    second = load_model(tmp_path / "second" / "model").network.alignment.tokens
    assert torch.allclose(first, second, atol=1e-4)


@pytest.mark.parametrize(
    ("task", "more", "settings", "message"),
    [
        ("caption", (), {}, "for 'caption', but .* is one for 'vqa'"),
        ("vqa", ("--flops-ratio=1.5",), {}, r"flops_ratio must be in \(0, 1\], got 1.5"),
        ("vqa", (), {"batch_size": 3, "loop.accumulate": 2}, "multiple of 2 micro-batches"),
        ("vqa", (), {"loop.stepps": 3}, "key of loop 'stepps'; known: .*steps"),
        ("vqa", (), {"speed": 3}, "key of a recipe 'speed'; known: .*batch_size"),
        ("vqa", (), {"search.basis": "wall"}, "cost basis 'wall'; known: paper, served"),
        ("vqa", ("--set", "loop.steps"), {}, "key=value"),
        ("vqa", ("--set", "epochs.x=1"), {}, "not a section"),
    ],
)
def test_what_cannot_work_is_refused(plain, tmp_path, capsys, task, more, settings, message):
    assert main(arguments(task, plain("vqa"), tmp_path / "run", *more, **settings)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("source", ["shapes:none", "shapes:0", "nowhere.jsonl"])
def test_data_that_is_none_is_refused(plain, tmp_path, capsys, source):
    assert main(arguments("vqa", plain("vqa"), tmp_path / "run", data=source)) == 2
    assert source in capsys.readouterr().err


def test_a_weight_file_is_to_be_converted_first(tmp_path, capsys):
    (tmp_path / "model.pth").write_bytes(b"")
    assert main(arguments("vqa", tmp_path / "model.pth", tmp_path / "run")) == 2
    assert "madtp convert" in capsys.readouterr().err


def test_a_lone_pair_cannot_be_contrasted(plain, tmp_path):
    recipe = read_recipe("clip_coco", ["batch_size=1"])
    data = Data(ShapesExamples("clip", 4), ShapesExamples("clip", 2, "validation"))
    with pytest.raises(ConfigError, match="at least 2"):
        CompressionRun(recipe, load_model(plain("clip")), data, tmp_path / "run")


def test_the_papers_basis_steers_and_judges(plain, tmp_path):
    """The figure that the best model is judged by is the search's own mean."""
    recipe = read_recipe("nlvr2", [f"{name}={value}" for name, value in SETTINGS.items()])
    recipe = checked(Recipe, {**recipe.__dict__, "search": {"basis": "paper"}} | {
        "alignment": {"num_tokens": 5, "dim": 16}, "momentum": {}})  # fmt: skip
    data = Data(ShapesExamples("reasoning", 8), ShapesExamples("reasoning", 4, "validation"))
    run = CompressionRun(recipe, load_model(plain("reasoning")), data, tmp_path / "run")
    figures = run.train()
    assert figures["flops_ratio"] == run.task.costs.states["max_keep@0.5"].mean
    assert figures["flops_ratio/served"] > 0


TABLE = {  # the supplement's Tables 1 and 2: task, epochs, learning rate, weight decay
    "nlvr2": ("reasoning", 15, 3e-6, 0.05),
    "coco_caption": ("caption", 5, 1e-5, 0.05),
    "vqav2": ("vqa", 3, 2e-5, 0.05),
    "retrieval_coco": ("retrieval", 5, 1e-6, 0.05),
    "retrieval_flickr30k": ("retrieval", 10, 1e-7, 0.05),
    "clip_coco": ("clip", 5, 1e-5, 0.2),
    "clip_flickr30k": ("clip", 10, 1e-5, 0.2),
}


def test_there_is_a_recipe_for_every_row_of_the_papers_tables():
    assert recipe_names() == sorted(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_says_what_the_paper_says(name):
    recipe, (task, epochs, learning_rate, weight_decay) = read_recipe(name), TABLE[name]
    loop = recipe.loop_config(3200)
    assert (recipe.task, recipe.epochs, recipe.batch_size) == (task, epochs, 32)
    assert (loop.learning_rate, loop.weight_decay, loop.betas) == (learning_rate, weight_decay, (0.9, 0.999))
    assert loop.steps == 100 * epochs and loop.evaluate_every == 100
    assert (recipe.alpha, recipe.alignment.num_tokens, recipe.alignment.dim) == (0.1, 100, 768)
    assert recipe.search.keep_modes == ("max_keep",) and recipe.augments and recipe.flops_ratio == 0.5


def test_an_unknown_recipe_is_refused_with_those_there_are():
    with pytest.raises(UnknownNameError, match=r"known: clip_coco, .*, vqav2"):
        read_recipe("vqa")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("a: [", "cannot be read"),
        ("[1]", "must be a mapping"),
        ({"task": "vqa"}, "batch_size"),
        ({"task": "vqa", "batch_size": 2, "loop": {"learning_rate": 1}}, "epochs, or loop.steps"),
        ({"task": "vqa", "batch_size": 2, "epochs": 1, "loop": {}}, "learning_rate"),
        ({"task": "song", "batch_size": 2, "epochs": 1, "loop": {"learning_rate": 1}}, "unknown task 'song'"),
        ({"task": "vqa", "batch_size": 2, "epochs": 1, "loop": {"learning_rate": 1}, "search": 3}, "search"),
        ({"task": "vqa", "batch_size": 2, "epochs": 1, "loop": {"learning_rate": 1},
          "search": {"keep_modes": ["dense"]}}, "a mode that prunes"),
        ({"task": "vqa", "batch_size": 2, "epochs": 1, "loop": {"learning_rate": 1},
          "momentum": {"queues": 3}}, "key of momentum 'queues'; known: .*queue"),
    ],
)  # fmt: skip
def test_a_recipe_that_is_wrong_is_refused(tmp_path, recipe, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe))
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)


BENCHMARKS = {  # to learn from, to be measured on while learning, and afterwards
    "vqa": ("vqav2", (BLIP_VQA, BLIP_VG), (OFFICIAL_QUESTIONS, OFFICIAL_ANNOTATIONS), "answer_type/number"),
    "caption": ("coco", (KARPATHY_TRAIN,), (KARPATHY_TEST,), "cider/all"),
    "retrieval": ("coco", (KARPATHY_TRAIN,), (KARPATHY_TEST,), "recall_at_5/image_to_text"),
    "clip": ("flickr30k", (FLICKR_TEST,), (FLICKR_TEST,), "recall_at_5/text_to_image"),
    "reasoning": ("nlvr2", (NLVR,), (NLVR,), "accuracy/all"),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_benchmarks_files_are_learnt_from_and_measured_on(plain, tmp_path, monkeypatch, task):
    monkeypatch.setattr(
        shutil, "which", lambda name: None
    )  # Java, which takes half a minute to judge captions
    name, *parts, figure = BENCHMARKS[task]
    listed = [content for part in parts for content in part if isinstance(content, list)]
    pictures = [*pictures_of(*listed), "val2014/COCO_val2014_000000262148.jpg"]
    write_pictures(tmp_path / "images", *pictures)
    learnt, measured = (
        f"{name}:"
        + ",".join(str(write_json(tmp_path / f"{part}{row}.json", c)) for row, c in enumerate(files))
        for part, files in zip(("learnt", "measured"), parts, strict=True)
    )
    images = ("--images", str(tmp_path / "images"))
    changed = {"batch_size": 2, "loop.steps": 2, "loop.evaluate_every": 2}
    command = arguments(
        task, plain(task), tmp_path / "run", *images, "--validation-samples=2", data=learnt,
        validation=measured, **changed,
    )  # fmt: skip
    assert main(command) == 0
    model, figures = str(tmp_path / "run" / "model"), tmp_path / "figures.json"
    few = ("--samples=2", "--batch-sizes=1", "--ratios=0.8")
    assert main(["calibrate", model, "--data", measured, *images, *few]) == 0
    assert main(["evaluate", model, "--data", measured, *images, "--out", str(figures)]) == 0
    assert any(figure in key for key in json.loads(figures.read_text()))


def test_a_missing_picture_is_named_before_anything_is_learnt(plain, tmp_path, capsys):
    data = f"nlvr2:{write_json(tmp_path / 'nlvr_train.json', NLVR)}"
    write_pictures(tmp_path, *pictures_of(NLVR)[:3])
    assert main(arguments("reasoning", plain("reasoning"), tmp_path / "run", data=data)) == 2
    missing = capsys.readouterr().err
    assert "nlvr_train.json, entry 1: there is no image 'images/train/11/train-10171-0-img1.png'" in missing
    assert not (tmp_path / "run").exists()
