"""Caption scores: COCO's script with Java, words without, and notes on what could not run."""

import shutil

import pytest

from madtp_core.evaluate import captions as module
from madtp_core.evaluate.captions import plain_words, score_captions

TRUTHS = [("A man can't stop, ever.", "one man (blue)"), ("two squares", "two blue squares on a plain one")]
SAID = ["a man ca n't stop ever", "two blue squares"]


@pytest.fixture
def no_java(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)


@pytest.mark.skipif(shutil.which("java") is None, reason="the PTB tokenizer is a Java program")
def test_texts_are_cut_as_cocos_script_cuts_them(monkeypatch):
    """Stanford's tokenizer parts can't into ca n't; letters and digits alone do not."""
    monkeypatch.setattr(module, "_JAVA_MEASURES", {})
    _, official, notes = score_captions(TRUTHS, SAID, official=True)
    _, plain, _ = score_captions(TRUTHS, SAID)
    assert official["bleu_1"] == pytest.approx(1.0) and plain["bleu_1"] < 0.99
    assert notes == {"captions": "cut by the PTB tokenizer"}


def test_bleu_is_the_corpus_precision_by_hand():
    """7 of 9 words and 5 of 7 pairs are the references'; both captions are as long as the closest one."""
    truths = [("one two three four five",), ("a b c d",)]
    _, whole, _ = score_captions(truths, ["one two three four six", "a b c x"])
    assert whole["bleu_1"] == pytest.approx(7 / 9)
    assert whole["bleu_2"] == pytest.approx((7 / 9 * 5 / 7) ** 0.5)
    assert list(whole) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4"]


def test_a_short_caption_pays_for_its_brevity():
    _, whole, _ = score_captions([("one two three four",), ("a b",)], ["one two", "a b"])
    assert whole["bleu_1"] == pytest.approx(2.718281828 ** (1 - 6 / 4))


def test_cider_is_ten_for_a_caption_that_is_all_that_is_said():
    """Every n-gram of it is its references' alone: all cosines are one."""
    outcomes, _, _ = score_captions(
        [("red star on top",), ("two blue small squares",)], ["red star on top", "x"]
    )
    assert outcomes["cider"] == (pytest.approx(10.0), 0.0)


@pytest.mark.usefixtures("no_java")
def test_without_java_words_are_compared_and_notes_say_so():
    expected = score_captions(TRUTHS, SAID)
    outcomes, whole, notes = score_captions(TRUTHS, SAID, official=True)
    assert (outcomes, whole) == expected[:2]
    assert notes["captions"] == "cut into runs of letters and digits"
    assert all("no java" in notes[name] for name in ("ptb", "meteor", "spice"))


def test_java_is_not_started_for_figures_during_training(monkeypatch):
    monkeypatch.setattr(module, "_need_java", lambda: pytest.fail("java was wanted"))
    assert score_captions(TRUTHS, SAID)[2] == {"captions": "cut into runs of letters and digits"}


def test_spice_is_not_fetched_from_the_network(monkeypatch, tmp_path):
    import pycocoevalcap.spice

    monkeypatch.setattr(pycocoevalcap.spice, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(module.shutil, "which", lambda name: name)
    with pytest.raises(FileNotFoundError, match="corenlp"):
        module._spice({0: ["a"]}, {0: ["a"]})


def test_a_measure_that_breaks_costs_no_other(monkeypatch):
    def broken(references, written):
        raise ValueError("could not convert string to float: b''")

    monkeypatch.setattr(module, "_ptb_tokenized", lambda truths, said: ({0: ["a b"]}, {0: ["a b"]}))
    monkeypatch.setattr(module, "_JAVA_MEASURES", {"meteor": broken, "spice": lambda *texts: 0.5})
    _, whole, notes = score_captions([("a b",)], ["a b"], official=True)
    assert whole["spice"] == 0.5 and "meteor" not in whole
    assert "could not convert" in notes["meteor"]


def test_a_tokenizer_that_skips_a_line_is_not_believed(monkeypatch):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    monkeypatch.setattr(module.shutil, "which", lambda name: name)
    monkeypatch.setattr(PTBTokenizer, "tokenize", lambda self, lines: {("caption", 0): ["a"]})
    monkeypatch.setattr(module, "_JAVA_MEASURES", {})
    assert "every line" in score_captions(TRUTHS, SAID, official=True)[2]["ptb"]


def test_plain_words_are_lower_case_without_punctuation():
    assert plain_words("A red  star, above!") == "a red star above"
