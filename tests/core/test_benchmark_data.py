"""Readers of benchmarks' own files, each on a miniature in the true format: what is right, what is not."""

import copy

import numpy as np
import pytest

from madtp_core.data.benchmarks.texts import plain_caption, plain_question
from madtp_core.data.benchmarks.vqav2 import read_answer_list
from madtp_core.data.images import PictureFile
from madtp_core.data.source import parse_source
from madtp_core.errors import ConfigError
from madtp_core.evaluate import read_gallery, read_samples
from madtp_core.train.read import read_examples
from tests.core.benchmark_files import (
    BLIP_VG,
    BLIP_VQA,
    BLIP_VQA_TEST,
    COCO_CAPTIONS,
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

OFFICIAL_PICTURES = ("val2014/COCO_val2014_000000262148.jpg",)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    listed = pictures_of(BLIP_VQA, BLIP_VG, BLIP_VQA_TEST, KARPATHY_TRAIN, KARPATHY_TEST, FLICKR_TEST, NLVR)
    write_pictures(root, *listed, *OFFICIAL_PICTURES, "000000037777.jpg")
    return root


@pytest.fixture
def source(tmp_path, images):
    def make(name, *contents):
        files = [write_json(tmp_path / f"{row}.json", content) for row, content in enumerate(contents)]
        return parse_source(f"{name}:{','.join(map(str, files))}", [images])

    return make


# Texts


def test_texts_are_shown_as_the_original_shows_them():
    assert plain_caption(' A  man (left): "red-hot"!\n') == "a man left red-hot"
    assert plain_caption("word " * 40) == " ".join(["word"] * 30)
    assert plain_question("What's the t.v. #1, here? ") == "what's the tv 1, here?"
    assert plain_question("why " * 60).count("why") == 50


# VQA v2


def test_answers_weigh_as_annotators_gave_them_and_visual_genome_weighs_a_fifth(source):
    examples = read_examples(source("vqav2", BLIP_VQA, BLIP_VG), "vqa")
    assert [example.text for example in examples] == [
        "what are the people doing?", "is the cat asleep?", "how many people are there?"
    ]  # fmt: skip
    first, second, third = (dict(example.answers) for example in examples)
    assert first == pytest.approx({"spectating": 1 / 3, "watching": 2 / 3})
    assert second == pytest.approx({"yes": 1.0}) and third == {"two": 0.2}
    assert examples[2].pictures[0].path.parts[-2:] == ("image", "1.jpg")


def test_questions_of_blip_are_measured_by_ten_annotators(source):
    samples = read_samples(source("vqav2", BLIP_VQA, BLIP_VG), "vqa")
    assert [sample.id for sample in samples] == [262148001, 524286000, None]
    assert samples[1].truth == ("yes",) * 10 and samples[2].truth == "two"
    left_out = set(samples[0].truth[3:])
    assert samples[0].truth[:3] == ("spectating", "watching", "watching") and len(samples[0].truth) == 10
    assert len(left_out) == 1 and not left_out & {"", "spectating", "watching"}
    assert samples[1].fields == {"question": "is the cat asleep?"} and samples[1].groups == ()


def test_questions_of_the_test_set_are_asked_without_truth(source):
    (sample,) = read_samples(source("vqav2", BLIP_VQA_TEST), "vqa")
    assert sample.truth is None and sample.id == 262144000
    with pytest.raises(ConfigError, match=r"0.json, entry 0 \(question_id 262144000\): .* nothing to learn"):
        read_examples(source("vqav2", BLIP_VQA_TEST), "vqa")
    with pytest.raises(ConfigError, match=r"0.json, .*1.json: 2 of 3 have a truth"):
        read_samples(source("vqav2", BLIP_VQA, BLIP_VQA_TEST), "vqa")


def test_official_questions_meet_their_annotations_by_id(source):
    for contents in (
        (OFFICIAL_QUESTIONS, OFFICIAL_ANNOTATIONS),
        (OFFICIAL_ANNOTATIONS, OFFICIAL_QUESTIONS),
    ):
        first, second = read_samples(source("vqav2", *contents), "vqa")
        assert first.fields["question"] == "where is he looking?" and first.id == 262148000
        assert first.truth == ("down",) * 9 + ("at table",)
        assert first.groups == ("question_type/none of the above", "answer_type/other")
        assert second.truth == ("2",) * 7 + ("3",) * 2 + ("",)
        assert second.groups == ("question_type/how many", "answer_type/number")
    learnt = read_examples(source("vqav2", OFFICIAL_QUESTIONS, OFFICIAL_ANNOTATIONS), "vqa")
    assert dict(learnt[1].answers) == pytest.approx({"2": 0.7, "3": 0.2})  # nothing said is not learnt
    assert learnt[1].references == second.truth
    assert learnt[0].pictures[0].path.as_posix().endswith(OFFICIAL_PICTURES[0])


def test_official_questions_alone_are_those_of_a_test_set(source, images):
    asked = OFFICIAL_QUESTIONS | {"data_subtype": "test-dev2015"}
    with pytest.raises(ConfigError, match=r"no image 'test2015/COCO_test2015_000000262148.jpg'"):
        read_samples(source("vqav2", asked), "vqa")
    assert {sample.truth for sample in read_samples(source("vqav2", OFFICIAL_QUESTIONS), "vqa")} == {None}


def test_official_and_blips_questions_are_read_together(source):
    samples = read_samples(source("vqav2", BLIP_VQA, OFFICIAL_QUESTIONS, OFFICIAL_ANNOTATIONS), "vqa")
    assert [sample.id for sample in samples] == [262148001, 524286000, 262148000, 262148002]


def changed(content, place, **fields):
    """A copy with other fields of one entry; None takes a field away."""
    entries = copy.deepcopy(content)
    entries[place] = {k: v for k, v in (entries[place] | fields).items() if v is not None}
    return entries


def section(content, name, place, **fields):
    """A copy of an official file with other fields of one entry of a section."""
    return content | {name: changed(content[name], place, **fields)}


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (["[1, 2,\n oops]"], r"0.json:2: not JSON"),
        ([[]], "0.json: must be a list of objects, got an empty list"),
        (["3"], "0.json: must be a list, or an object with 'questions' or 'annotations', got a int"),
        ([{"data": []}], "got an object with 'data'"),
        ([["x"]], r"0.json, entry 0: must be an object, got 'x'"),
        ([changed(BLIP_VQA, 1, question=None)], r"0.json, entry 1 \(question_id 524286000\): no 'question'"),
        ([changed(BLIP_VQA, 1, question="...")], r"entry 1 .*'question' must be a text that is not empty"),
        ([changed(BLIP_VQA, 1, question_id=None)], r"0.json, entry 1: no 'question_id'"),
        ([changed(BLIP_VQA, 1, question_id=True)], "'question_id' must be a whole number, got True"),
        ([changed(BLIP_VQA, 1, dataset="gqa")], "'dataset' must be one of vqa, vg, got 'gqa'"),
        ([changed(BLIP_VQA, 1, image=7)], "'image' must be a path, got 7"),
        ([changed(BLIP_VQA, 1, image="none.jpg")], r"entry 1 .*: there is no image 'none.jpg'"),
        ([changed(BLIP_VQA, 1, answer=[])], r"'answer' must be a text or a list of them, got \[\]"),
        ([changed(BLIP_VQA, 1, answer=[3])], r"'answer' must be a text or a list of them, got \[3\]"),
        ([BLIP_VQA, BLIP_VQA], r"1.json, entry 0 .*: that question_id is in \S*0.json, entry 0 .* already"),
        ([OFFICIAL_QUESTIONS, section(OFFICIAL_ANNOTATIONS, "annotations", 0, question_id=1)],
         r"1.json, annotation 0 \(question_id 1\): none of the question files has that question"),
        ([OFFICIAL_QUESTIONS, {"annotations": OFFICIAL_ANNOTATIONS["annotations"][:1]}],
         r"0.json, question 0 \(question_id 262148000\): none of the annotation files has that question"),
        ([OFFICIAL_ANNOTATIONS], "annotation 0 .*: none of the question files"),
        ([OFFICIAL_QUESTIONS, OFFICIAL_ANNOTATIONS, OFFICIAL_ANNOTATIONS], "2.json, annotation 0 .*already"),
        ([OFFICIAL_QUESTIONS, OFFICIAL_QUESTIONS], "1.json, question 0 .*that question_id is in .*already"),
        ([OFFICIAL_QUESTIONS, section(OFFICIAL_ANNOTATIONS, "annotations", 0, image_id=5)],
         "annotation 0 .*: is of image 5, but its question, in .*0.json, question 1 .*, of 262148"),
        ([OFFICIAL_QUESTIONS, section(OFFICIAL_ANNOTATIONS, "annotations", 0, answers=["2"])],
         "annotation 0 .*: 'answers' must be objects with an 'answer' each"),
        ([OFFICIAL_QUESTIONS, section(OFFICIAL_ANNOTATIONS, "annotations", 0, question_type=None)],
         "annotation 0 .*: no 'question_type'"),
        ([{k: v for k, v in OFFICIAL_QUESTIONS.items() if k != "data_subtype"}], "0.json: no 'data_subtype'"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_questions_is_named(source, contents, message):
    with pytest.raises(ConfigError, match=message):
        read_samples(source("vqav2", *contents), "vqa")


def test_visual_genomes_questions_have_numbers_of_their_own(source):
    same = changed(BLIP_VG, 0, question_id=BLIP_VQA[0]["question_id"])
    assert len(read_samples(source("vqav2", BLIP_VQA, same), "vqa")) == 3


def test_an_answer_list_is_distinct_texts(tmp_path):
    assert read_answer_list(write_json(tmp_path / "a.json", ["net", "0", "a b"])) == ("net", "0", "a b")
    wrong = {"a list": {}, "list of answers": [], r"answer 1: must be a text": ["x", 3]}
    wrong |= {"answer 2: 'x' is answer 0 already": ["x", "y", "x"]}
    for message, content in wrong.items():
        with pytest.raises(ConfigError, match=message):
            read_answer_list(write_json(tmp_path / "a.json", content))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_answer_list(tmp_path / "none.json")


# COCO and Flickr30k


@pytest.mark.parametrize("task", ["caption", "retrieval", "clip"])
def test_captions_of_a_picture_share_its_key(source, task):
    examples = read_examples(source("coco", KARPATHY_TRAIN), task)
    assert sorted((example.key, example.text) for example in examples) == [
        (0, "a woman in a net cutting a cake"), (0, "someone is cutting a cake"),
        (1, "a child holding an umbrella"),
    ]  # fmt: skip
    paths = {example.key: example.pictures[0].path.name for example in examples}
    assert paths == {0: "COCO_val2014_000000522418.jpg", 1: "COCO_train2014_000000184613.jpg"}


def test_pictures_are_captioned_by_requests_and_measured_by_what_people_wrote(source):
    samples = read_samples(source("coco", KARPATHY_TEST), "caption")
    assert [sample.id for sample in samples] == [391895, 60623]
    assert samples[0].fields == {} and samples[0].groups == ()
    assert samples[0].truth == (
        "A man with a red helmet.", "A dirt bike: parked!", "A man rides", "One man", "A view"
    )  # fmt: skip
    assert read_samples(source("flickr30k", FLICKR_TEST), "caption")[1].id == "1009434119"


def test_held_out_pictures_come_once_with_all_captions(source):
    examples = read_examples(source("coco", KARPATHY_TEST), "caption", held_out=True)
    assert len(examples) == 2 and examples[1].references[2] == "A girl, at a table"
    assert len(read_examples(source("coco", KARPATHY_TEST), "retrieval", held_out=True)) == 10


def test_a_gallery_has_every_caption_for_its_own_picture_alone(source, images):
    gallery = read_gallery(source("coco", KARPATHY_TEST))
    assert len(gallery.pictures) == 2 and len(gallery.texts) == 10 and gallery.right.dtype == bool
    assert gallery.texts[:2] == ("a man with a red helmet", "a dirt bike parked")
    assert np.array_equal(gallery.right, np.repeat(np.eye(2, dtype=bool), 5, axis=1))
    assert gallery.texts[3] == gallery.texts[6] and not gallery.right[0, 6]  # equal, but of another picture
    assert gallery.groups == ((), ())


def test_pictures_of_a_gallery_are_opened_when_asked_for(source, images, monkeypatch):
    opened = []
    gallery = read_gallery(source("flickr30k", FLICKR_TEST))
    open_file = PictureFile.open
    monkeypatch.setattr(PictureFile, "open", lambda file: opened.append(file.path.name) or open_file(file))
    (second,) = gallery.pictures[1:5]
    assert opened == ["1009434119.jpg"] and second.dtype == np.uint8 and second.shape[2] == 3
    assert np.array_equal(gallery.pictures[1], second) and len(opened) == 2


def test_a_gallery_is_no_requests(source):
    coco = source("coco", KARPATHY_TEST)
    assert coco.has_gallery("retrieval")
    with pytest.raises(ConfigError, match="retrieval over coco is measured over its gallery"):
        read_samples(coco, "retrieval")
    with pytest.raises(ConfigError, match="nlvr2 has no gallery"):
        read_gallery(source("nlvr2", NLVR))


def test_cocos_own_captions_are_gathered_by_image(source):
    first, second = read_samples(source("coco", COCO_CAPTIONS), "caption")
    assert first.id == 391895 and first.truth == ("A man with a red helmet.", "A dirt bike")
    assert second.id == 37777 and second.truth == ("A kitchen",)
    gallery = read_gallery(source("coco", COCO_CAPTIONS))
    assert gallery.right.tolist() == [[True, True, False], [False, False, True]]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (["{}"], "must be a list, or an object with 'images' and 'annotations', got an object with nothing"),
        ([changed(KARPATHY_TRAIN, 2, caption=" .")], "0.json, entry 2: 'caption' must be a text that is not"),
        ([changed(KARPATHY_TRAIN, 2, caption=3)], "0.json, entry 2: 'caption' must be a text"),
        ([changed(KARPATHY_TRAIN, 2, caption=None)], "0.json, entry 2: no 'caption'"),
        ([changed(KARPATHY_TRAIN, 2, image=None)], "0.json, entry 2: no 'image'"),
        ([changed(KARPATHY_TEST, 1, caption=[])], "entry 1: 'val2014/.*60623.jpg' has no captions"),
        ([KARPATHY_TEST, KARPATHY_TEST], r"1.json, entry 0: the captions of .* are in \S*0.json, entry 0"),
        ([changed(KARPATHY_TEST, 1, image="x.jpg")], "0.json, entry 1: there is no image 'x.jpg'"),
        ([section(COCO_CAPTIONS, "annotations", 1, image_id=5)],
         r"annotation 1 \(id 7\): there is no image 5 in this file"),
        ([section(COCO_CAPTIONS, "annotations", 1, image_id=391895)], r"image 1 \(id 37777\): .*no captions"),
        ([section(COCO_CAPTIONS, "annotations", 2, id=7)], r"annotation 2 \(id 7\): that id is in .*tion 1"),
        ([section(COCO_CAPTIONS, "images", 1, id=391895)], r"image 1 .*: image 391895, .* comes twice"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_captions_is_named(source, contents, message):
    with pytest.raises(ConfigError, match=message):
        read_samples(source("coco", *contents), "caption")


# NLVR2


def test_statements_are_about_a_left_and_a_right_picture(source):
    examples = read_examples(source("nlvr2", NLVR), "reasoning")
    assert [(example.text, example.label) for example in examples] == [
        ("the left image contains twice the number of dogs", True), ("there is one 1 dog", False)
    ]  # fmt: skip
    assert [file.path.name for file in examples[0].pictures] == ["dev-850-0-img0.png", "dev-850-0-img1.png"]
    first, second = read_samples(source("nlvr2", NLVR), "reasoning")
    assert first.fields == {"statement": examples[0].text} and (first.truth, second.truth) == (True, False)
    left, right = (np.asarray(file.open()) for file in examples[0].pictures)
    assert np.array_equal(first.pictures[0], left) and not np.array_equal(left, right)
    assert first.id is None
    named = read_samples(source("nlvr2", changed(NLVR, 0, identifier="dev-850-0-0")), "reasoning")
    assert named[0].id == "dev-850-0-0"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(NLVR, 1, label="true"), "0.json, entry 1: 'label' must be 'True' or 'False', got 'true'"),
        (
            changed(NLVR, 1, images=NLVR[0]["images"][:1]),
            "0.json, entry 1: 'images' must have 2 paths, got 1",
        ),
        (changed(NLVR, 1, sentence=None), "0.json, entry 1: no 'sentence'"),
        (changed(NLVR, 1, images=["dev/x.png", "dev/y.png"]), "entry 1: there is no image 'dev/x.png'"),
        (changed(NLVR, 1, label=None), "1 of 2 have a truth"),
    ],
)
def test_what_is_wrong_in_statements_is_named(source, content, message):
    with pytest.raises(ConfigError, match=message):
        read_samples(source("nlvr2", content), "reasoning")
