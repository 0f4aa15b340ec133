"""The shapes world: what it says about a scene is true, and a scene belongs to one split only."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from madtp_core.data.shapes import (
    ANSWERS,
    FAMILIES,
    NUM_PATCH_LABELS,
    SPLITS,
    Background,
    Question,
    Scene,
    SceneObject,
    ShapesVqa,
    build_tokenizer,
    captions,
    difficulty_band,
    draw,
    patch_labels,
    questions,
    sample_scene,
    split_of,
    statement,
)
from madtp_core.data.shapes.preview import contact_sheet, write_preview
from madtp_core.data.shapes.scene import BACKGROUNDS, COLOURS, MAX_OBJECTS, SHAPES, SIZES, TEXTURES
from madtp_core.data.shapes.stamps import RGB
from madtp_core.errors import ConfigError

if TYPE_CHECKING:  # the second process of a test below does without
    from transformers import BertTokenizer

SCENES = [sample_scene(0, "train", index) for index in range(1200)]

# An independent reading of the language: find the noun phrases, keep the objects that fit every word.
_ADJECTIVES = "|".join((*SIZES, *TEXTURES, *COLOURS))
_NOUNS = "|".join(("object", *SHAPES))
_NOUN_PHRASE = re.compile(rf"((?:(?:{_ADJECTIVES}) )*(?:{_NOUNS})(?:es|s)?)\b")
_NUMBERS = [
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]


def named_objects(phrase: str, scene: Scene) -> list[SceneObject]:
    *adjectives, noun = phrase.split()
    noun = next(known for known in ("object", *SHAPES) if noun.startswith(known))
    return [
        thing
        for thing in scene.objects
        if noun in ("object", thing.shape)
        and all(word in (thing.size, thing.texture, thing.colour) for word in adjectives)
    ]


def stands(one: SceneObject, relation: str, other: SceneObject) -> bool:
    ahead = {
        "left": other.x - one.x,
        "right": one.x - other.x,
        "above": other.y - one.y,
        "higher": other.y - one.y,
        "below": one.y - other.y,
        "lower": one.y - other.y,
    }
    return ahead[relation] >= 8  # a third of a cell, so that the eye can tell


def brute_force_answer(text: str, family: str, scene: Scene) -> str:
    groups = [named_objects(phrase, scene) for phrase in _NOUN_PHRASE.findall(text)]
    if family in ("colour", "shape", "size", "texture"):
        ((thing,),) = groups
        return str(getattr(thing, family))
    if family == "count":
        (counted,) = groups
        return str(len(counted))
    if family == "existence":
        (found,) = groups
        return "yes" if found else "no"
    first, second = groups
    if family == "comparison":
        if "more" in text:
            holds = len(first) > len(second)
        elif "fewer" in text:
            holds = len(first) < len(second)
        else:
            assert "as many" in text or "equal" in text
            holds = len(first) == len(second)
        return "yes" if holds else "no"
    assert family == "relation"
    (one,), (other,) = first, second
    relation = re.search(r"left|right|above|higher|below|lower", text)
    assert relation is not None
    is_true, is_opposite = stands(one, relation[0], other), stands(other, relation[0], one)
    assert is_true != is_opposite, "nobody could tell"
    return "yes" if is_true else "no"


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, Question]]:
    return [
        (scene, question)
        for index, scene in enumerate(SCENES)
        for question in questions(scene, random.Random(index), 8)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return build_tokenizer()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_follows_from_the_scene(family: str, asked: list[tuple[Scene, Question]]) -> None:
    of_family = [(scene, question) for scene, question in asked if question.family == family]
    assert len(of_family) > 500
    for scene, question in of_family:
        assert question.answer == brute_force_answer(question.text, family, scene), (question, scene)


@pytest.mark.parametrize("family", ["existence", "comparison", "relation"])
def test_yes_and_no_are_balanced(family: str, asked: list[tuple[Scene, Question]]) -> None:
    answers = Counter(question.answer for _, question in asked if question.family == family)
    assert set(answers) == {"yes", "no"}
    assert 0.45 < answers["yes"] / answers.total() < 0.55


def test_words_give_little_away_about_existence(asked: list[tuple[Scene, Question]]) -> None:
    answers: dict[int, Counter[str]] = defaultdict(Counter)
    for _, question in asked:
        if question.family == "existence":
            (phrase,) = _NOUN_PHRASE.findall(question.text)
            answers[len(phrase.replace("object", "").split())][question.answer] += 1
    assert set(answers) == {1, 2, 3, 4}  # never "is there an object?"
    for num_attributes in (1, 2, 3):  # four are too rare to tell
        counted = answers[num_attributes]
        assert 0.3 < counted["yes"] / counted.total() < 0.7


def test_weights_make_a_family_more_frequent() -> None:
    def share(weights: dict[str, float] | None) -> float:
        data = ShapesVqa(0, "train", 200, 4, family_weights=weights)
        families = [question.family for index in range(100) for question in data[index].questions]
        return families.count("count") / len(families)

    assert share({"count": 7}) > 0.4 > 0.2 > share(None)  # 7 of 14, and 1 of 8


def test_questions_keep_to_the_language(asked: list[tuple[Scene, Question]]) -> None:
    families = Counter(question.family for _, question in asked)
    assert set(families) == set(FAMILIES)
    assert min(families.values()) > 0.8 * len(asked) / len(FAMILIES)
    for _, question in asked:
        assert re.fullmatch(r"[a-z]+( [a-z]+)*\?", question.text), question
        assert len(question.text.split()) <= 14, question
        assert question.answer in ANSWERS
    assert {str(number) for number in range(MAX_OBJECTS + 1)} <= {q.answer for _, q in asked}


def test_a_scene_is_asked_as_often_as_wanted() -> None:
    single = next(scene for scene in SCENES if scene.num_objects == 1)
    many = questions(single, random.Random(0), 40)
    assert len(many) == len({question.text for question in many}) == 40
    assert "relation" not in {question.family for question in many}
    assert len(questions(single, random.Random(0), 2000)) == 2000


def looks(scene: Scene) -> tuple[tuple[object, ...], ...]:
    """What two scenes must not share across splits: everything but jitter and background."""
    return tuple((o.x // 24, o.y // 24, o.shape, o.colour, o.size, o.texture) for o in scene.objects)


def test_splits_share_no_scene() -> None:
    # Scenes of one object have 4,608 layouts: unguarded splits of this length would meet at once.
    layouts = {
        split: {looks(sample_scene(seed, split, index)) for seed in (0, 1) for index in range(2000)}
        for split in SPLITS
    }
    for one, other in itertools.combinations(SPLITS, 2):
        assert not layouts[one] & layouts[other]
    assert all(split_of(sample_scene(7, split, index)) == split for split in SPLITS for index in range(50))


def test_jitter_and_background_do_not_move_a_scene_to_another_split() -> None:
    for index in range(200):
        scene = sample_scene(3, "test", index)
        first, *others = scene.objects
        moved = replace(first, x=first.x // 24 * 24 + 12)
        assert split_of(Scene((moved, *others), Background("plain", seed=0))) == "test"


def test_difficulty_varies_and_is_known() -> None:
    counts = Counter(scene.num_objects for scene in SCENES)
    assert set(counts) == set(range(1, MAX_OBJECTS + 1))
    assert min(counts.values()) > 0.6 * len(SCENES) / MAX_OBJECTS
    assert Counter(scene.clutter for scene in SCENES).keys() == set(range(len(BACKGROUNDS)))
    bands = {scene.num_objects: difficulty_band(scene) for scene in SCENES}
    assert [bands[n] for n in (1, 4, 5, 8, 9, 12)] == ["easy", "easy", "middle", "middle", "hard", "hard"]


def fingerprint() -> str:
    """Hash the first examples of each split, as text; pictures as their bytes."""
    digest = hashlib.sha256()
    for split in SPLITS:
        data = ShapesVqa(seed=5, split=split, length=20)
        for index in range(len(data)):
            example = data[index]
            digest.update(example.image.tobytes() + example.patch_labels.tobytes())
            digest.update(repr((example.scene, example.questions, captions(example.scene))).encode())
    return digest.hexdigest()


def test_another_process_makes_the_same_examples() -> None:
    code = (
        "import importlib.util as u, sys;"
        "spec = u.spec_from_file_location('t', sys.argv[1]); t = u.module_from_spec(spec);"
        "sys.modules['t'] = t; spec.loader.exec_module(t); print(t.fingerprint())"
    )
    root = Path(__file__).parents[2]
    told = subprocess.run(
        [sys.executable, "-c", code, __file__], cwd=root, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == fingerprint()


def test_examples_are_the_ones_that_the_committed_weights_were_trained_on() -> None:
    texts = hashlib.sha256()
    for index in range(100):
        scene = sample_scene(0, "train", index)
        texts.update(repr((scene, questions(scene, random.Random(index), 8), captions(scene))).encode())
    assert texts.hexdigest()[:16] == "36136a5f61d62a7f"
    # Pictures pass through the machine's own sines: compared by their means, not by their bits.
    means = [draw(SCENES[index]).mean() for index in range(6)]
    assert means == pytest.approx([123.581, 130.081, 146.977, 136.427, 138.889, 182.125], abs=0.002)


def one_object(**changes: object) -> Scene:
    thing = SceneObject("circle", "red", "large", "solid", x=36, y=60)
    return Scene((replace(thing, **changes),), Background("plain", seed=1))  # type: ignore[arg-type]


@pytest.mark.parametrize("image_size", [64, 96, 128])
def test_every_look_is_drawn_differently(image_size: int) -> None:
    combinations = list(itertools.product(SHAPES, COLOURS, SIZES, TEXTURES))
    pictures = np.stack(
        [
            draw(one_object(shape=s, colour=c, size=z, texture=t), image_size).reshape(-1)
            for s, c, z, t in combinations
        ]
    ).astype(np.float64)
    squares = (pictures**2).sum(1)
    distances = squares[:, None] + squares[None, :] - 2 * pictures @ pictures.T
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 4 * image_size**2  # a small star is hollow in a few pixels only


def test_place_and_background_are_drawn() -> None:
    plain = draw(one_object())
    assert plain.shape == (96, 96, 3) and plain.dtype == np.uint8
    assert not np.array_equal(plain, draw(one_object(x=37)))
    behind = [draw(replace(one_object(), background=Background(kind, seed=1))) for kind in BACKGROUNDS]
    busyness = [np.abs(np.diff(picture[:40].astype(int), axis=1)).mean() for picture in behind]
    assert busyness[0] == 0 and all(value > 0.05 for value in busyness[1:])


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_no_background_has_the_colour_of_an_object(kind: str) -> None:
    for seed in range(30):
        picture = draw(Scene((), Background(kind, seed))).astype(int)
        assert np.ptp(picture, axis=2).max() <= 60  # muted: every object's colour spans over 130
    assert all(max(rgb) - min(rgb) > 130 for rgb in RGB.values())


def changed_pixels(scene: Scene, image_size: int) -> np.ndarray:
    empty = draw(replace(scene, objects=()), image_size).astype(int)
    return np.abs(draw(scene, image_size).astype(int) - empty).max(axis=2) > 0


@pytest.mark.parametrize("image_size", [64, 96, 100, 128])
def test_objects_never_overlap(image_size: int) -> None:
    full = [scene for scene in SCENES if scene.num_objects == MAX_OBJECTS][:15]
    for scene in full:
        alone = [changed_pixels(replace(scene, objects=(thing,)), image_size) for thing in scene.objects]
        assert np.sum(alone, axis=0).max() == 1


@pytest.mark.parametrize(("image_size", "patch_size"), [(96, 8), (128, 8), (128, 16), (64, 8)])
def test_patch_labels_say_what_the_pixels_show(image_size: int, patch_size: int) -> None:
    for scene in SCENES[:60]:
        solid = replace(scene, objects=tuple(replace(thing, texture="solid") for thing in scene.objects))
        labels = patch_labels(scene, patch_size, image_size)
        assert labels.dtype == np.int64 and labels.max() < NUM_PATCH_LABELS
        assert np.array_equal(labels, patch_labels(solid, patch_size, image_size)), "texture has no say"

        side = image_size // patch_size
        cover = changed_pixels(solid, image_size).reshape(side, patch_size, side, patch_size).mean((1, 3))
        is_labelled = labels.reshape(side, side) > 0
        assert cover[is_labelled].min() > 0.1
        assert cover[~is_labelled].max() < 0.6  # touched pixels: edges count here in full

        picture = draw(solid, image_size).astype(int)
        patches = picture.reshape(side, patch_size, side, patch_size, 3).swapaxes(1, 2)
        for patch, label in zip(patches[is_labelled], labels[labels > 0], strict=True):
            colour = COLOURS[(label - 1) % len(COLOURS)]
            assert np.abs(patch - RGB[colour]).max(axis=-1).min() <= 8, "its colour is in the patch"

        told = Counter(
            (SHAPES[(n - 1) // len(COLOURS)], COLOURS[(n - 1) % len(COLOURS)]) for n in labels if n
        )
        assert set(told) == {(thing.shape, thing.colour) for thing in scene.objects}


def test_patch_labels_are_row_major() -> None:
    labels = patch_labels(one_object(x=36, y=60)).reshape(12, 12)
    rows, columns = np.nonzero(labels)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 8, 3, 5)
    assert set(labels[labels > 0]) == {1 + SHAPES.index("circle") * len(COLOURS) + COLOURS.index("red")}


def tally_is_true(caption: str, scene: Scene) -> bool:
    told = [re.fullmatch(r"([a-z]+) (.+)", part) for part in re.split(r", | and ", caption)]
    return all(
        part is not None and len(named_objects(part[2], scene)) == _NUMBERS.index(part[1]) for part in told
    )


def test_captions_are_true() -> None:
    backgrounds = dict(zip(BACKGROUNDS, ("plain", "shaded", "lined", "grainy", "speckled"), strict=True))
    for scene in SCENES[:400]:
        where, shapes, colours, few, relation = captions(scene)
        many, background = where.split(" on a ")
        assert tally_is_true(many, scene) and background == f"{backgrounds[scene.background.kind]} background"
        assert tally_is_true(shapes, scene) and tally_is_true(colours, scene)
        assert sum(_NUMBERS.index(part.split()[0]) for part in re.split(r", | and ", shapes)) == len(
            scene.objects
        )
        for phrase, times in Counter(_NOUN_PHRASE.findall(few)).items():
            assert len(named_objects(phrase, scene)) >= times
        if scene.num_objects == 1:
            assert named_objects(relation.split(" ", 3)[3], scene) == list(scene.objects)
            continue
        first, second = (named_objects(phrase, scene) for phrase in _NOUN_PHRASE.findall(relation))
        said = re.search(r"left|right|above|below", relation)
        assert said is not None and any(stands(one, said[0], other) for one in first for other in second)


_STATEMENTS: dict[str, Callable[[int, int], bool]] = {
    r"the left image contains more .+ than the right image": lambda left, right: left > right,
    r"the right image contains more .+ than the left image": lambda left, right: left < right,
    r"there are fewer .+ in the left image than in the right image": lambda left, right: left < right,
    r"there are fewer .+ in the right image than in the left image": lambda left, right: left > right,
    r"both images contain the same number of .+": lambda left, right: left == right,
    r"both images contain an? .+": lambda left, right: min(left, right) > 0,
    r"neither image contains an? .+": lambda left, right: max(left, right) == 0,
    r"at least one image contains an? .+": lambda left, right: max(left, right) > 0,
    r"only the left image contains an? .+": lambda left, right: left > 0 == right,
    r"only the right image contains an? .+": lambda left, right: right > 0 == left,
}


def statement_holds(text: str, left: Scene, right: Scene) -> bool:
    (phrase,) = _NOUN_PHRASE.findall(text)
    on_left, on_right = (len(named_objects(phrase, scene)) for scene in (left, right))
    exactly = re.search(r"exactly (\w+)", text)
    if exactly:
        on_right = 0 if "in the left image" in text else on_right
        on_left = 0 if "in the right image" in text else on_left
        return on_left + on_right == _NUMBERS.index(exactly[1])
    (holds,) = (rule for pattern, rule in _STATEMENTS.items() if re.fullmatch(pattern, text))
    return holds(on_left, on_right)


def test_statements_are_as_true_as_they_claim() -> None:
    rng = random.Random(0)
    told = [(left, right, *statement(left, right, rng)) for left, right in itertools.pairwise(SCENES)]
    for left, right, text, truth in told:
        assert statement_holds(text, left, right) == truth, text
    assert 0.45 < sum(truth for *_, truth in told) / len(told) < 0.55
    _, truth = statement(SCENES[0], SCENES[0], rng)  # two equal images still have something to say
    assert truth in (True, False)


def test_tokenizer_knows_every_word_of_the_language(
    tokenizer: BertTokenizer, asked: list[tuple[Scene, Question]], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(1)
    texts = [question.text for _, question in asked[:2000]] + list(ANSWERS)
    texts += [caption for scene in SCENES[:300] for caption in captions(scene)]
    texts += [statement(left, right, rng)[0] for left, right in itertools.pairwise(SCENES[:300])]
    encoded = tokenizer(texts).input_ids
    assert encoded == loaded(texts).input_ids
    assert max(map(len, encoded)) <= tokenizer.model_max_length == loaded.model_max_length
    for text, ids in zip(texts, encoded, strict=True):
        assert tokenizer.unk_token_id not in ids
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert loaded.decode(ids, skip_special_tokens=True) == text
    assert all(len(ids) == 3 for ids in tokenizer(list(ANSWERS)).input_ids), "an answer is one token"


def test_tokenizer_spells_what_it_does_not_know(tokenizer: BertTokenizer) -> None:
    odd = "Is the ZEBRA-crossing #42 {quirky} & (odd)? x0123456789 ajqzvwx"
    assert tokenizer.unk_token_id not in tokenizer(odd).input_ids
    assert tokenizer.unk_token_id in tokenizer("\u2603").input_ids


def test_tokenizer_has_the_tokens_of_blip(tokenizer: BertTokenizer) -> None:
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    last = len(tokenizer) - 1
    assert (tokenizer.pad_token_id, tokenizer.bos_token, tokenizer.bos_token_id) == (0, "[DEC]", last - 1)
    assert tokenizer.convert_tokens_to_ids("[ENC]") == last


def test_tokenizer_is_the_one_that_the_committed_weights_were_trained_with(tokenizer: BertTokenizer) -> None:
    assert build_tokenizer().backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    assert hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16] == "d3afcca45e20acf7"


def test_dataset_is_a_function_of_its_index() -> None:
    data = pickle.loads(pickle.dumps(ShapesVqa(seed=2, split="test", length=5, image_size=128)))
    assert len(data) == 5 and len(list(data)) == 5
    one, same = data[3], data[3]
    assert one.image.shape == (128, 128, 3) and one.patch_labels.shape == (256,)
    assert one.questions == same.questions and np.array_equal(one.image, same.image)
    assert one.scene == sample_scene(2, "test", 3)
    with pytest.raises(IndexError, match=r"0\.\.4"):
        data[5]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: sample_scene(0, "dev", 0), "known: test, train, validation"),  # type: ignore[arg-type]
        (lambda: draw(one_object(), 98), "multiple of 4 between 64 and 128, got 98"),
        (lambda: draw(one_object(), 192), "got 192"),
        (lambda: patch_labels(one_object(), patch_size=7), "must divide image_size 96, got 7"),
        (lambda: contact_sheet([], columns=3), "needs scenes"),
    ],
)
def test_unfit_values_are_refused(call: Callable[[], object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        call()


def test_preview_shows_every_scene(tmp_path: Path) -> None:
    write_preview(tmp_path / "sheet.png", seed=0, split="validation", rows=2, columns=3)
    with Image.open(tmp_path / "sheet.png") as sheet:
        width, height = sheet.width // 3, sheet.height // 2
        cards = [
            sheet.crop((x * width, y * height, (x + 1) * width, (y + 1) * height))
            for y in (0, 1)
            for x in range(3)
        ]
    for index, card in enumerate(cards):
        picture = card.crop((12, 12, 300, 300)).resize((96, 96), Image.Resampling.NEAREST)
        assert np.array_equal(np.asarray(picture), draw(sample_scene(0, "validation", index)))
        assert np.asarray(card.crop((0, 310, width, height)).convert("L")).min() < 64, "text below"
