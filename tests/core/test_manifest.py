"""One's own data as JSON lines: the same file is learnt from and measured on."""

import json

import numpy as np
import pytest
from PIL import Image

from madtp_core.data import images
from madtp_core.data.images import locate
from madtp_core.data.manifest import read_lines
from madtp_core.data.shapes import build_tokenizer
from madtp_core.data.source import parse_source
from madtp_core.errors import ConfigError, UnknownNameError
from madtp_core.evaluate import read_manifest, read_samples
from madtp_core.tasks.text import TextCodec
from madtp_core.train.read import read_examples

TASKS = ("vqa", "caption", "retrieval", "clip", "reasoning")
LINES = {
    "vqa": {"images": ["1.png"], "question": "what?", "truth": ["red", "red", "blue", "red"]},
    "caption": {"images": ["1.png"], "truth": ["a red star", "one star"]},
    "retrieval": {"images": ["1.png"], "texts": ["a red star", "a hat", "one star"], "truth": [0, 2]},
    "clip": {"images": ["1.png"], "text": "a red star", "truth": [0]},
    "reasoning": {"images": ["1.png", "2.png"], "statement": "both are red", "truth": True},
}


@pytest.fixture
def folder(tmp_path):
    for name in ("1.png", "2.png"):
        Image.new("RGB", (20, 12), "red").save(tmp_path / name)
    return tmp_path


@pytest.fixture(scope="module")
def codec():
    return TextCodec(build_tokenizer(), "enc", 12)


def written(folder, *lines):
    path = folder / "data.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def examples(path, task, **options):
    return read_examples(parse_source(str(path)), task, **options)


# To learn from


def test_answers_of_a_question_weigh_together_one(folder):
    (example,) = examples(written(folder, LINES["vqa"]), "vqa")
    assert example.text == "what?" and dict(example.answers) == {"red": 0.75, "blue": 0.25}
    assert example.references == ("red", "red", "blue", "red")
    line = LINES["vqa"] | {"truth": ["red", {"answer": "rot", "weight": 0.3}]}
    (example,) = examples(written(folder, line), "vqa")
    assert dict(example.answers) == {"red": 0.5, "rot": 0.3} and example.references == ()
    (example,) = examples(written(folder, LINES["vqa"] | {"truth": "red"}), "vqa")
    assert example.answers == (("red", 1.0),)


def test_every_caption_is_an_example_of_its_picture(folder):
    other = {"images": ["2.png"], "truth": ["a hat"]}
    found = examples(written(folder, LINES["caption"], "\n", other, LINES["caption"]), "caption")
    assert [example.text for example in found[:3]] == ["a red star", "one star", "a hat"]
    assert [example.key for example in found] == [0, 0, 1, 0, 0]
    assert found[1].references == ("a red star", "one star")
    with pytest.raises(IndexError):
        found[5]


def test_a_held_out_picture_is_measured_once_by_all_its_captions(folder):
    found = examples(written(folder, LINES["caption"], LINES["caption"]), "caption", held_out=True)
    assert len(found) == 2 and found[1].references == ("a red star", "one star")


def test_right_texts_and_images_make_pairs(folder):
    texts = examples(written(folder, LINES["retrieval"]), "retrieval")
    assert [example.text for example in texts] == ["a red star", "one star"]
    line = {"images": ["1.png", "2.png"], "text": "red", "truth": [1]}
    (pair,) = examples(written(folder, line), "clip")
    assert pair.pictures[0].path.name == "2.png" and pair.key == 1
    assert len(examples(written(folder, {**line, "truth": [0, 1]}), "clip")) == 2
    del line["truth"]
    assert len(examples(written(folder, line), "clip")) == 2


def test_a_statement_is_about_two_pictures(folder):
    (example,) = examples(written(folder, LINES["reasoning"]), "reasoning")
    assert example.label is True and [p.path.name for p in example.pictures] == ["1.png", "2.png"]
    assert example.pictures[0].open().size == (20, 12)


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ("vqa", {"images": ["1.png"], "question": "what?"}),
        ("vqa", {"images": ["1.png"], "question": "what?", "truth": None}),
        ("caption", {"images": ["1.png"]}),
        ("reasoning", {"images": ["1.png", "2.png"], "statement": "x"}),
    ],
)
def test_without_a_truth_there_is_nothing_to_learn_but_something_to_ask(folder, task, line):
    path = written(folder, line)
    with pytest.raises(ConfigError, match=r"data.jsonl:1: .* nothing to learn"):
        examples(path, task)
    assert read_manifest(path, task)[0].truth is None


def test_options_of_requests_are_nothing_to_learn(folder):
    path = written(folder, LINES["vqa"] | {"num_beams": 3})
    with pytest.raises(ConfigError, match=r"data.jsonl:1: unknown 'num_beams' to learn from"):
        examples(path, "vqa")
    assert read_manifest(path, "vqa")[0].fields == {"question": "what?", "num_beams": 3}


def test_lines_without_a_right_pair_are_no_data(folder):
    with pytest.raises(ConfigError, match="no examples to learn from"):
        examples(written(folder, LINES["clip"] | {"truth": []}), "clip")


# To be measured on


@pytest.mark.parametrize(
    ("task", "fields", "truth"),
    [
        ("vqa", {"question": "what?"}, ("red", "red", "blue", "red")),
        ("caption", {}, ("a red star", "one star")),
        ("retrieval", {"texts": ("a red star", "a hat", "one star")}, (0, 2)),
        ("clip", {"text": "a red star"}, (0,)),
        ("reasoning", {"statement": "both are red"}, True),
    ],
)
def test_what_trains_also_evaluates(folder, task, fields, truth):
    path = written(folder, LINES[task])
    (sample,) = read_manifest(path, task)
    assert len(examples(path, task)) >= 1
    assert (sample.fields, sample.truth, sample.groups, sample.id) == (fields, truth, (), None)
    assert sample.pictures[0].shape == (12, 20, 3) and sample.pictures[0][0, 0].tolist() == [255, 0, 0]
    assert len(sample.pictures) == (2 if task == "reasoning" else 1)


@pytest.mark.parametrize(
    ("truth", "right"),
    [
        ("red", "red"),
        (["red", "rot", "rot"], "rot"),  # of three annotators, no answer would be right
        ([{"answer": "red", "weight": 0.2}, "rot", "blue", "red"], "red"),
    ],
)
def test_few_or_weighted_answers_are_one(folder, truth, right):
    (sample,) = read_manifest(written(folder, LINES["vqa"] | {"truth": truth}), "vqa")
    assert sample.truth == right


def test_labels_are_given_to_all_or_none(folder):
    asked = {"images": ["1.png"]}
    with pytest.raises(ConfigError, match=r"data.jsonl: 1 of 2"):
        read_manifest(written(folder, asked, {**asked, "truth": ["red"]}), "caption")


def test_longer_texts_than_the_model_reads_lose_their_last_words(folder, codec):
    line = LINES["retrieval"] | {"texts": ["red " * 40, "a hat", "star"]}
    path = written(folder, line)
    (sample,) = read_samples(parse_source(str(path)), "retrieval", codec=codec)
    assert sample.fields["texts"] == (" ".join(["red"] * 10), "a hat", "star")


# Both


@pytest.mark.parametrize("read", [examples, read_manifest])
@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("vqa", "{", "not JSON"),
        ("vqa", "[]", "must be an object"),
        ("vqa", LINES["vqa"] | {"images": ["none.png"]}, "there is no image 'none.png'"),
        ("vqa", LINES["vqa"] | {"images": [7]}, "must be a path"),
        ("vqa", LINES["vqa"] | {"images": []}, "1 paths, got 0"),
        ("vqa", {"images": ["1.png"], "truth": "x"}, "no 'question'"),
        ("vqa", LINES["vqa"] | {"truth": []}, "no answers"),
        ("vqa", LINES["vqa"] | {"truth": [""]}, "not empty"),
        ("vqa", LINES["vqa"] | {"truth": 3}, "must be a text"),
        ("vqa", LINES["vqa"] | {"truth": [{"answer": "x", "weight": -1}]}, "above 0"),
        ("vqa", LINES["vqa"] | {"truth": [{"answer": "x", "wait": 1}]}, "unknown 'wait'"),
        ("vqa", LINES["vqa"] | {"colour": 1}, "unknown 'colour'"),
        ("caption", {"images": ["1.png"], "truth": "one"}, "a list of captions"),
        ("caption", {"images": ["1.png"], "truth": []}, "a list of captions, got none"),
        ("clip", LINES["clip"] | {"truth": [1]}, "places in 0..0"),
        ("clip", LINES["clip"] | {"texts": ["a"]}, "'text' or 'texts', and not both"),
        ("clip", {"images": ["1.png"]}, "'text' or 'texts'"),
        ("clip", {"images": ["1.png", "2.png"], "texts": ["a", "b"]}, "1 paths, got 2"),
        ("reasoning", LINES["reasoning"] | {"truth": "yes"}, "true or false"),
        ("reasoning", LINES["reasoning"] | {"images": ["1.png"]}, "2 paths, got 1"),
    ],
)
def test_a_line_that_is_wrong_is_named(folder, read, task, line, message):
    path = written(folder, LINES[task], line)
    with pytest.raises(ConfigError, match=message) as error:
        read(path, task)
    assert f"{path}:2" in str(error.value)


@pytest.mark.parametrize("read", [examples, read_manifest])
def test_a_manifest_that_is_not_there_or_empty_is_refused(folder, read):
    with pytest.raises(ConfigError, match="no manifest"):
        read(folder / "none.jsonl", "vqa")
    with pytest.raises(ConfigError, match="no examples"):
        read(written(folder, "\n"), "vqa")


@pytest.mark.parametrize("read", [examples, read_manifest])
def test_a_file_that_is_no_picture_names_its_line(folder, read):
    (folder / "1.png").write_text("hello")
    found = read(written(folder, LINES["clip"]), "clip")
    with pytest.raises(ConfigError, match=r"data.jsonl:1: .*1.png.* does not open"):
        found[0].pictures[0].open()


def test_a_picture_is_seen_as_the_service_sees_it(folder):
    pixels = np.zeros((12, 20, 4), np.uint8)  # black, and transparent
    Image.fromarray(pixels).save(folder / "1.png")
    path = written(folder, LINES["clip"])
    (example,), (sample,) = examples(path, "clip"), read_manifest(path, "clip")
    assert np.asarray(example.pictures[0].open()).min() == 255 and sample.pictures[0].min() == 255


# Where pictures lie


def test_a_picture_is_taken_from_the_first_folder_that_has_it(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for name in ("2.png", "3.png"):
        Image.new("RGB", (4, 4), "blue").save(other / name)
    lines = [LINES["reasoning"] | {"images": pair} for pair in (["1.png", "2.png"], ["3.png", "1.png"])]
    path = written(folder, *lines)
    found = read_examples(parse_source(str(path), (folder, other)), "reasoning")
    places = [picture.path for example in found for picture in example.pictures]
    assert places == [folder / "1.png", folder / "2.png", other / "3.png", folder / "1.png"]


def test_all_missing_pictures_are_counted_and_the_first_named(folder):
    lines = [LINES["clip"] | {"images": [name]} for name in ("1.png", "b/c.png", "d.png", "d.png")]
    with pytest.raises(
        ConfigError, match=r":2: there is no image 'b/c.png' in .*; of 3 images 2 are missing"
    ):
        examples(written(folder, *lines), "clip")


def test_a_folder_is_no_picture(folder):
    (folder / "a.png").mkdir()
    with pytest.raises(ConfigError, match=r"no image 'a.png'"):
        examples(written(folder, LINES["clip"] | {"images": ["a.png"]}), "clip")


def test_every_picture_is_told_once_and_every_folder_listed_once(folder, monkeypatch):
    listed, list_files = [], images._files_of
    monkeypatch.setattr(images, "_files_of", lambda folder: listed.append(folder) or list_files(folder))
    monkeypatch.setattr(images, "_TOLD_AT_ONCE", 2)
    lines = [LINES["clip"] | {"images": [name]} for name in ("1.png", "2.png", "1.png", "./2.png")]
    records = read_lines([written(folder, *lines)], "clip")
    told = []
    located = locate(records, [folder], told.append)
    assert told == [2, 1] and sorted(listed) == sorted({str(folder), f"{folder}/."})
    assert [located.key(record.pictures[0]) for record in records] == [0, 1, 0, 2]


def test_a_source_is_a_format_with_files_or_a_manifest(folder):
    source = parse_source("vqav2:a/x.json, b/y.json")
    assert (source.format, [str(file) for file in source.files]) == ("vqav2", ["a/x.json", "b/y.json"])
    assert [str(root) for root in source.images] == ["a", "b"]
    manifest = parse_source(str(folder / "data.jsonl"), (folder / "images",))
    assert manifest.format == "manifest" and manifest.images == (folder / "images",)
    assert parse_source("coco:x.json").has_gallery("clip") and not manifest.has_gallery("clip")
    assert not parse_source("coco:x.json").has_gallery("caption")


def test_a_source_of_another_kind_is_refused(folder):
    with pytest.raises(UnknownNameError, match="data format 'vqa'; known: coco, flickr30k, nlvr2, vqav2"):
        parse_source("vqa:x.json")
    with pytest.raises(ConfigError, match="names no file: write vqav2:FILE"):
        parse_source("vqav2:")
    with pytest.raises(ConfigError, match="vqav2 is data for vqa, not for 'caption'"):
        read_examples(parse_source("vqav2:x.json"), "caption")
    named = folder / "my:data.jsonl"
    named.write_text(json.dumps(LINES["clip"]))
    assert parse_source(str(named)).format == "manifest"
