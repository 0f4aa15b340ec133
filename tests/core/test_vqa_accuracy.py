"""VQA's official accuracy: expected figures are what the official script gives for these answers."""

from types import SimpleNamespace

import pytest

from madtp_core.evaluate.scores import score
from madtp_core.evaluate.vqa_accuracy import normalised, soft_accuracy


@pytest.mark.parametrize(
    ("agreeing", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)]
)
def test_every_annotator_is_left_out_in_turn(agreeing, accuracy):
    given = ["blue"] * agreeing + ["red"] * (10 - agreeing)
    assert soft_accuracy("blue", given) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat.", "cat"),
        ("on a table", "on table"),
        ("a", ""),
        ("none", "0"),
        ("Two or ten", "2 or 10"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldntve"),  # both apostrophes missing: not in the script's list
        ("lets", "lets"),
        ("its", "its"),
        ("Im", "im"),  # in the list with a capital, looked for in lower case
        ("somebody'd", "somebodyd"),  # the script has it the wrong way round
        ("'ows'at", "'ow's'at"),
        ("x-ray", "x ray"),
        ("red - blue", "red blue"),
        ("yes!no?", "yes no"),
        ("black/white, red", "black white red"),
        ("1,000", "1000"),
        ("1,000 red/blue", "1000 redblue"),  # with a number like that every mark vanishes
        ("3.5", "3.5"),
        ("5.", "5"),
        ("e.g.", "eg"),
        ("." * 33, "."),  # at most 32 periods vanish
        ("man's", "man's"),
        ("12:30", "12:30"),
    ],
)
def test_texts_are_normalised_with_the_scripts_quirks(text, expected):
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("answer", "given", "accuracy"),
    [
        ("2", ["two"] * 10, 0.0),  # all agree: nothing is normalised
        ("two", ["two"] * 10, 1.0),
        ("Stop", ["stop"] * 10, 0.0),
        (" stop\n", ["stop"] * 9 + ["stop\t"], 1.0),  # but for white space at the ends
        ("2", ["two"] * 9 + ["three"], 1.0),
        ("the dog", ["dog"] * 2 + ["a dog."] * 2 + ["cat"] * 6, 1.0),
        ("dog", ["Dog"] + ["cat"] * 9, 0.3),
        ("0", ["none"] * 3 + ["0"] * 7, 1.0),
        ("down", ["down"] * 2 + ["up"], 4 / 9),  # of fewer annotators: (1/3 + 1/3 + 2/3) / 3
    ],
)
def test_texts_are_normalised_where_annotators_differ(answer, given, accuracy):
    assert soft_accuracy(answer, given) == pytest.approx(accuracy)


def test_several_annotators_are_asked_and_one_label_is_taken_as_it_is():
    answers = [SimpleNamespace(answer="blue"), SimpleNamespace(answer="2")]
    assert score("vqa", [("blue",) * 2 + ("red",) * 8, ["2"] * 10], answers).outcomes["accuracy"] == (
        pytest.approx(0.6),
        1.0,
    )
    assert score("vqa", ["blue", "two"], answers).outcomes["accuracy"] == (1.0, 0.0)
