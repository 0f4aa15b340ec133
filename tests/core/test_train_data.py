"""What is learnt from: scenes, augmentation, and micro-batches as a function of their index."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from madtp_core.data.shapes import build_tokenizer
from madtp_core.images import ImageGeometry
from madtp_core.tasks.text import TextCodec
from madtp_core.train.augment import OPERATIONS, Augmentation, random_crop
from madtp_core.train.example_batches import ExampleBatches
from madtp_core.train.examples import Example, PictureArray
from madtp_core.train.held_out import HeldOut
from madtp_core.train.shapes_examples import ShapesExamples

GEOMETRY = ImageGeometry(16, 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
TASKS = ("vqa", "caption", "retrieval", "clip", "reasoning")


@pytest.fixture(scope="module")
def codec():
    return TextCodec(build_tokenizer(), "enc", 12)


@pytest.mark.parametrize("task", TASKS)
def test_scenes_are_examples_of_every_task(task):
    scenes = ShapesExamples(task, 6, "validation")
    examples, again = list(scenes), ShapesExamples(task, 6, "validation")[0]
    assert len(examples) == 6 and examples[0].text == again.text
    assert len(examples[0].pictures) == (2 if task == "reasoning" else 1)
    assert all(bool(example.answers) is (task == "vqa") for example in examples)
    assert len({example.text for example in examples}) > 1
    assert ShapesExamples(task, 6, "train")[0].text != again.text


def batches_of(examples, task, codec, size=2, **options):
    return ExampleBatches(examples, task, codec, GEOMETRY, size, start_id=9, **options)


@pytest.mark.parametrize("task", TASKS)
def test_batches_are_a_function_of_their_index(codec, task):
    examples = ShapesExamples(task, 5)
    data = batches_of(examples, task, codec, augmentation=Augmentation(), seed=3)
    late = batches_of(examples, task, codec, augmentation=Augmentation(), seed=3)[4]  # without those before
    batch = [data[index] for index in range(5)][4]
    assert torch.equal(batch.pixel_values, late.pixel_values)
    large = batches_of(examples, task, codec, 4, augmentation=Augmentation(), seed=3)[2]
    rows = slice(0, 2)
    assert torch.equal(large.pixel_values[rows], batch.pixel_values[rows])
    other = batches_of(examples, task, codec, augmentation=Augmentation(), seed=4)[4]
    assert not torch.equal(other.pixel_values, batch.pixel_values)


def test_every_epoch_has_every_example_in_an_order_of_its_own(codec):
    pictures = [PictureArray(np.zeros((16, 16, 3), np.uint8))]
    examples = [Example(tuple(pictures), "a star", key=key) for key in range(10)]
    data = batches_of(examples, "clip", codec)
    epochs = [[key for i in range(5) for key in data[5 * epoch + i].image_keys.tolist()] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]


def test_a_question_has_its_answers_behind_each_other(codec):
    picture = (PictureArray(np.zeros((16, 16, 3), np.uint8)),)
    examples = [Example(picture, "what is it", (("red", 0.75), ("dark blue", 0.25)))]
    batch = batches_of(examples, "vqa", codec, 1)[0]
    assert batch.answer_reader.tolist() == [0, 0] and batch.answer_weights.tolist() == [0.75, 0.25]
    said = [[i for i in row if i != -100] for row in batch.answer_ids.tolist()]
    assert [row[0] for row in said] == [9, 9] and codec.text(said[1][1:]) == "dark blue"
    assert batch.question_ids[0, 0] == codec.first_id


def test_a_caption_begins_with_its_prompt(codec):
    picture = (PictureArray(np.zeros((16, 16, 3), np.uint8)),)
    batch = batches_of([Example(picture, "two stars")], "caption", codec, 1, prompt="a large ")[0]
    words = codec.tokenizer.convert_ids_to_tokens(batch.caption_ids[0, 1 : batch.prompt_tokens].tolist())
    assert words == ["a", "large"]
    assert codec.text(batch.caption_ids[0, batch.prompt_tokens :].tolist()) == "two stars"


def test_what_is_too_long_keeps_its_end_token(codec):
    picture = (PictureArray(np.zeros((16, 16, 3), np.uint8)),)
    batch = batches_of([Example(picture, "red " * 40)], "clip", codec, 1)[0]
    assert batch.text_ids.shape == (1, 12) and batch.text_ids[0, -1] == codec.tokenizer.sep_token_id


def test_an_augmented_picture_is_of_the_size_and_of_its_chance():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8))
    versions = [np.asarray(Augmentation()(image, 16, 24, random.Random(seed))) for seed in (1, 1, 2)]
    assert versions[0].shape == (16, 24, 3)
    assert np.array_equal(versions[0], versions[1]) and not np.array_equal(versions[0], versions[2])


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_changes_a_picture_and_keeps_its_size(name):
    image = Image.fromarray(np.random.default_rng(0).integers(40, 200, (20, 20, 3), np.uint8))
    changed = OPERATIONS[name](image, 0.9, random.Random(0))
    assert changed.size == image.size and changed.mode == "RGB"
    assert (changed.tobytes() != image.tobytes()) is (name != "identity")


def test_what_moves_leaves_grey_behind():
    image = Image.new("RGB", (20, 20), "red")
    moved = np.asarray(OPERATIONS["translate_x"](image, 1.0, random.Random(0)))
    assert {tuple(pixel) for pixel in moved.reshape(-1, 3).tolist()} == {(255, 0, 0), (128, 128, 128)}


def test_a_crop_has_at_least_the_smallest_area():
    image = Image.new("RGB", (40, 30))
    areas = [np.prod(random_crop(image, 0.5, random.Random(seed)).size) for seed in range(50)]
    assert min(areas) >= 0.45 * 1200 and max(areas) <= 1200 and len(set(areas)) > 10


def test_held_out_examples_are_requests_with_truths():
    assert HeldOut(ShapesExamples("vqa", 3), "vqa")[0].fields["question"].endswith("?")
    assert HeldOut(ShapesExamples("caption", 3), "caption", "a ")[0].fields == {"prompt": "a "}
    assert isinstance(HeldOut(ShapesExamples("reasoning", 3), "reasoning")[0].truth, bool)
    picture = (PictureArray(np.zeros((16, 16, 3), np.uint8)),)
    said = Example(picture, "what?", (("red", 0.6), ("blue", 0.4)), references=("red",) * 6 + ("blue",) * 4)
    assert HeldOut([said], "vqa")[0].truth == said.references
    assert HeldOut([replace(said, references=())], "vqa")[0].truth == "red"
    captioned = Example(picture, "a hat", references=("A hat.", "One hat"))
    assert HeldOut([captioned], "caption")[0].truth == ("A hat.", "One hat")
    ranked = HeldOut(ShapesExamples("clip", 30), "clip", candidates=4)[2]
    assert len(set(ranked.fields["texts"])) == 4 and ranked.truth == (0,)
    assert ranked.fields["texts"][0] == ShapesExamples("clip", 30)[2].text
