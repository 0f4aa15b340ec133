"""Pictures of pruning, pixel by pixel: what is kept is untouched, what is not is darker; all tasks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from madtp_core.backbones import MODEL_CLASSES
from madtp_core.backbones.blip import blip_config, scramble
from madtp_core.checkpoint import Checkpoint
from madtp_core.cli import main
from madtp_core.config import TASKS
from madtp_core.errors import ConfigError
from madtp_core.flops import BranchTrace
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks import model_class
from madtp_core.tasks.base import PrunedModel
from madtp_core.tasks.cost import MATCH
from madtp_core.visualize import (
    Sight,
    State,
    blocks_figure,
    density_figure,
    images_wanted,
    load_image,
    look,
    save_png,
    with_method,
)
from madtp_core.visualize.canvas import FIGURE_WIDTH, PAPER, paragraph
from madtp_core.visualize.fate import untouched
from madtp_core.visualize.overlay import LOOK, enlarged, overlay
from madtp_core.visualize.samples import by_difficulty, scenes_by_band
from madtp_core.visualize.words import words_strip
from tests.core import tiny_clip

TEXT_OF = {"vqa": "how many red circles are there?", "caption": "", "clip": "red circle"}


def picture(seed: int = 0, size: tuple[int, int] = (64, 64)) -> Image.Image:
    levels = np.random.default_rng(seed).integers(60, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.fixture(scope="module")
def model_of(vqa_checkpoint) -> Callable[[str], PrunedModel]:
    """A tiny scrambled model of a task."""
    tokenizer, built = vqa_checkpoint.tokenizer, {}

    def build(task: str) -> Checkpoint:
        if task == "vqa":
            return vqa_checkpoint
        if task == "clip":
            return tiny_clip.make_checkpoint()
        config = blip_config(
            width=32, heads=2, vision_blocks=2, text_blocks=2, image_size=64, patch_size=8,
            vocabulary=len(tokenizer), max_text_tokens=40,
            bos_token_id=tokenizer.bos_token_id, sep_token_id=tokenizer.sep_token_id,
        )  # fmt: skip
        model = MODEL_CLASSES[task](config).eval()
        scramble(model, std=0.2)
        return replace(vqa_checkpoint, model=model, config=replace(vqa_checkpoint.config, task=task))

    def model(task: str) -> PrunedModel:
        if task not in built:
            built[task] = model_class(task)(build(task))
        return built[task]

    return model


def seen(model: PrunedModel, prune_temperature: float = 4.0, seed: int = 0) -> Sight:
    images = [picture(seed + number) for number in range(images_wanted(model))]
    text = TEXT_OF.get(model.task, "two red circles")
    return look(model, images, text, prune_temperature=prune_temperature)


# --- Looking


@pytest.mark.parametrize("task", TASKS)
def test_what_is_seen_is_what_was_counted(model_of, task: str) -> None:
    sight = seen(model_of(task))
    assert sight.fates.keys() == sight.spent.traces.keys()
    for group, traces in sight.spent.traces.items():
        for fate, trace in zip(sight.fates[group], traces, strict=True):
            assert fate.states(0).size == trace.dense
            assert fate.kept(0) == trace.kept[0]
            kept = [fate.kept(block) for block in range(fate.blocks)]
            assert kept == sorted(kept, reverse=True)
            assert all(own <= counted for own, counted in zip(kept, trace.kept, strict=True))
    assert sight.fates[VISION][0].kept(1) < sight.spent.traces[VISION][0].dense


@pytest.mark.parametrize("task", TASKS)
def test_words_are_as_many_as_tokens(model_of, task: str) -> None:
    sight = seen(model_of(task))
    assert (TEXT in sight.fates) == bool(sight.words) == (task != "caption")
    for group in {TEXT, MATCH} & sight.fates.keys():
        assert sight.fates[group][0].home.shape[1] == len(sight.words)


def test_words_are_the_tokenizers(model_of) -> None:
    assert seen(model_of("vqa")).words == (
        "[ENC]",
        "how",
        "many",
        "red",
        "circles",
        "are",
        "there",
        "?",
        "[SEP]",
    )


def test_a_dense_run_keeps_everything(model_of) -> None:
    sight = seen(model_of("retrieval"), prune_temperature=0.0)
    for fates in sight.fates.values():
        assert all((fate.states(block) == State.KEPT).all() for fate in fates for block in range(fate.blocks))


def test_pictures_are_as_the_model_saw_them(model_of) -> None:
    model, image = model_of("vqa"), picture()
    sight = look(model, [image], "how many?", prune_temperature=0.0)
    assert np.array_equal(np.asarray(sight.pictures[0]), np.asarray(image))
    assert sight.grid == (8, 8)
    cut = look(model_of("clip"), [picture(size=(44, 66))], "red", prune_temperature=0.0)
    assert cut.pictures[0].size == (40, 40) and cut.grid == (5, 5)


def test_looking_does_not_change_the_model(model_of) -> None:
    model = model_of("vqa")
    before = model._pruner
    first, second = seen(model), seen(model)
    assert model._pruner is before
    assert np.array_equal(first.fates[VISION][0].home, second.fates[VISION][0].home)


def test_another_method_prunes_the_same_weights(model_of) -> None:
    model = model_of("vqa")
    other = with_method(model, "stp", {"flops_ratio": 0.6})
    sight = seen(other, prune_temperature=1.0)
    assert sight.method == "stp" and State.DROPPED in sight.fates[VISION][0].states(1)
    assert other.network.blip is model.network.blip and model.pruning.method == "madtp"


def test_the_number_of_images_is_checked(model_of) -> None:
    with pytest.raises(ConfigError, match="takes 2 images a request, got 1"):
        look(model_of("reasoning"), [picture()], "two red circles", prune_temperature=1.0)


# --- One panel


STATES = np.array([0, 2, 3, 4, 5, 1])


def test_kept_patches_are_untouched_and_the_others_darker() -> None:
    panel = np.asarray(overlay(picture(), STATES, (2, 3), 20), dtype=int)
    whole = np.asarray(enlarged(picture(), (2, 3), 20), dtype=int)
    assert panel.shape == (40, 60, 3)
    for place, state in enumerate(STATES):
        row, column = divmod(place, 3)
        cell = np.s_[20 * row : 20 * row + 20, 20 * column : 20 * column + 20]
        inner = np.s_[20 * row + 2 : 20 * row + 18, 20 * column + 2 : 20 * column + 18]
        if state == State.KEPT:
            assert np.array_equal(panel[cell], whole[cell])
        elif state == State.JOINED:
            assert np.array_equal(panel[inner], whole[inner])
            assert (panel[cell][0] == LOOK[State.MERGED_NOW][0]).all()
        else:
            assert panel[cell].mean() < 0.7 * whole[cell].mean()


def test_the_states_look_different() -> None:
    flat = Image.new("RGB", (6, 1), (180, 180, 180))
    panel = np.asarray(overlay(flat, STATES, (1, 6), 20))
    assert len({tuple(panel[10, 20 * place + 10]) for place in range(5)}) == 5


def test_states_must_fit_the_grid() -> None:
    with pytest.raises(ConfigError, match="6 patch states for a grid of 2 x 2"):
        overlay(picture(), STATES, (2, 2), 20)


# --- Figures


@pytest.mark.parametrize("task", TASKS)
def test_a_figure_of_every_task(model_of, task: str) -> None:
    sight = seen(model_of(task))
    figure = blocks_figure([sight])
    again = blocks_figure([seen(model_of(task))])
    assert figure.tobytes() == again.tobytes()
    assert figure.width <= FIGURE_WIDTH + 4 * 20
    taller = blocks_figure([sight, sight])
    assert taller.height > 1.5 * figure.height and taller.width == figure.width


def test_both_images_of_a_request_are_drawn(model_of) -> None:
    sight = seen(model_of("reasoning"))
    one = replace(sight, pictures=sight.pictures[:1], fates=sight.fates | {VISION: sight.fates[VISION][:1]})
    assert blocks_figure([sight]).height > blocks_figure([one]).height + 250


def test_chosen_blocks_alone_are_drawn(model_of) -> None:
    sight = replace(seen(model_of("clip")), words=())
    assert blocks_figure([sight], [2]).width < blocks_figure([sight]).width
    with pytest.raises(ConfigError, match="blocks 1 to 3, asked for"):
        blocks_figure([sight], [4])
    with pytest.raises(ConfigError, match="no request"):
        blocks_figure([])


def test_a_long_text_goes_on_below() -> None:
    words = ("elephants",) * 60
    few, many = (words_strip(words[:count], untouched(TEXT, count, 2), [0, 1]) for count in (5, 60))
    assert many.width <= FIGURE_WIDTH and many.height >= 3 * few.height


def test_words_that_were_merged_are_struck_through() -> None:
    fate = untouched(TEXT, 3, 2)
    fate.home[1, 2] = 1
    first, second = (np.asarray(words_strip(("[ENC]", "red", "box"), fate, [block])) for block in (0, 1))
    tint = LOOK[State.MERGED_NOW][0]
    assert not (first == tint).all(-1).any() and (second == tint).all(-1).sum() > 50
    assert words_strip(("[ENC]", "red", "box"), fate, [0, 1]).height > 1.9 * len(first)


def test_a_paragraph_is_no_wider_than_it_may_be() -> None:
    assert paragraph("one two three four five six seven eight", 200).width <= 200
    assert paragraph("one", 200).height * 2 == paragraph("elephants elephants", 200).height


def traces(*kept: tuple[int, ...]) -> list[BranchTrace]:
    return [BranchTrace(100, (100, *counts[:-1]), counts, counts) for counts in kept]


def test_a_curve_passes_through_its_mean() -> None:
    groups = {"easy": traces((20, 10, 0), (40, 10, 0)), "hard": traces((100, 100, 100))}
    pixels = np.asarray(density_figure(groups, "Title"), dtype=int)
    blue, height = (0, 114, 178), pixels.shape[0]
    at_first_block = np.flatnonzero((abs(pixels[:, 150] - blue) < 8).all(-1))
    top, bottom = 170, height - 130  # 100 % and 0 %
    assert abs(at_first_block.mean() - (bottom - 0.3 * (bottom - top))) < 3
    assert density_figure(groups, "Title").tobytes() == density_figure(groups, "Title").tobytes()


def test_a_density_figure_needs_requests_of_one_model() -> None:
    with pytest.raises(ConfigError, match="at least one request"):
        density_figure({"easy": []}, "Title")
    with pytest.raises(ConfigError, match="different block counts"):
        density_figure({"easy": traces((5, 5)), "hard": traces((5, 5, 5))}, "Title")


def test_requests_are_parted_by_what_they_needed(model_of) -> None:
    sights = [seen(model_of("vqa"), seed=seed) for seed in range(7)]
    bands = by_difficulty(sights)
    assert {band: len(each) for band, each in bands.items()} == {"easy": 2, "middle": 3, "hard": 2}
    ordered = [sight.spent.difficulty for each in bands.values() for sight in each]
    assert ordered == sorted(ordered)
    with pytest.raises(ConfigError, match="nothing was pruned"):
        by_difficulty([seen(model_of("vqa"), prune_temperature=0.0)] * 3)
    with pytest.raises(ConfigError, match="at least 3"):
        by_difficulty(sights[:2])


def test_drawn_scenes_come_in_bands() -> None:
    bands = scenes_by_band(2)
    assert {band: len(each) for band, each in bands.items()} == {"easy": 2, "middle": 2, "hard": 2}
    assert all(question.endswith("?") for each in bands.values() for _, question in each)


# --- Files and the command


def test_a_png_says_its_size_on_paper(tmp_path: Path) -> None:
    save_png(picture(), tmp_path / "new" / "a.png")
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.size == (64, 64) and round(image.info["dpi"][0]) == 300


@pytest.mark.parametrize("name", ["a.jpg", "file/a.png"])
def test_a_picture_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"written as PNG|cannot write"):
        save_png(picture(), tmp_path / name)


def test_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    for name in ("a.png", "missing.png"):
        with pytest.raises(ConfigError, match=f"cannot read a picture from .*{name}"):
            load_image(tmp_path / name)


@pytest.fixture(scope="module")
def files(model_of, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint and three pictures."""
    folder = tmp_path_factory.mktemp("files")
    model_of("vqa").save_pretrained(folder / "tiny")
    for number in range(3):
        picture(number).save(folder / f"{number}.png")
    return folder


def run(files: Path, *arguments: str) -> int:
    options = ["--checkpoint", str(files / "tiny"), "--out", str(files / "out.png")]
    return main(["visualize", *arguments, *options])


@pytest.mark.parametrize(
    ("kind", "images", "options"),
    [
        ("blocks", 2, ["--text", "how many?", "--text", "how many red?", "--blocks", "1"]),
        ("compare", 1, ["--text", "how many?", "--against", "tome", "--against-flops-ratio", "0.7"]),
        ("density", 3, ["--text", "how many?"]),
        ("density", 0, ["--samples", "1"]),
    ],
)
def test_the_command_writes_a_picture(files: Path, kind: str, images: int, options: list[str]) -> None:
    paths = [str(files / f"{number}.png") for number in range(images)]
    (files / "out.png").unlink(missing_ok=True)
    assert run(files, kind, *paths, "--prune-temperature", "4", *options) == 0
    with Image.open(files / "out.png") as image:
        assert image.convert("RGB").getpixel((0, 0)) == PAPER


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["blocks", "missing.png", "--prune-temperature", "4"], "cannot read a picture"),
        (["blocks", "0.png"], "has no calibration; give --prune-temperature"),
        (
            ["blocks", "0.png", "1.png", "2.png", "--text", "a", "--text", "b"],
            "one for each of 3 requests, got 2",
        ),
        (["density", "0.png", "--text", "how many?", "--prune-temperature", "4"], "at least 3 requests"),
    ],
)
def test_the_command_says_what_is_wrong(
    files: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [str(files / part) if part.endswith(".png") else part for part in arguments]
    assert run(files, *given) == 2
    assert message in capsys.readouterr().err
