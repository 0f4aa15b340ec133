"""VQA's official accuracy: an answer against those of several annotators, both normalised first.

Source: `PythonEvaluationTools/vqaEvaluation/vqaEval.py` of GT-Vision-Lab/VQA as it stands for VQA v2, its
quirks included. An earlier version, which LAVIS copied, normalises every answer of the model but only the
punctuation of annotators: it never credits "two" where they wrote "two" and "2".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from typing import Final

_PUNCTUATION: Final = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER: Final = re.compile(r"\d,\d")
# Meant to spare periods within numbers; its lookbehind is misspelt there, so only the digit behind counts.
_PERIOD: Final = re.compile(r"\.(?!\d)")
_MOST_PERIODS: Final = 32  # a flag passed as a count
_ARTICLES: Final = ("a", "an", "the")
_NUMBERS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS: Final = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_CONTRACTIONS: Final = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
_AGREEING: Final = 3  # so many others with the same answer make it right


def soft_accuracy(answer: str, annotators: Sequence[str]) -> float:
    """min(1, annotators who agree / 3), the mean of leaving out each annotator in turn.

    Texts are normalised only where the annotators differ: where all wrote the same, it may be what a sign
    says, and the very same is asked for.
    """
    answer, given = _plain(answer), [_plain(each) for each in annotators]
    if len(set(given)) > 1:
        answer, given = normalised(answer), [normalised(each) for each in given]
    others = list(combinations(given, len(given) - 1))
    return sum(min(1.0, each.count(answer) / _AGREEING) for each in others) / len(others)


def normalised(text: str) -> str:
    """A text without punctuation and articles, with digits for number words and apostrophes put back."""
    words = [_DIGITS.get(word, word) for word in _without_punctuation(text).lower().split()]
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Marks between letters become spaces; beside a space, or anywhere in a text with 1,000, they vanish."""
    result, has_number = text, _COMMA_IN_NUMBER.search(text) is not None
    for mark in _PUNCTUATION:
        vanishes = has_number or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if vanishes else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _missing_one(word: str) -> list[str]:
    """The word without one of its apostrophes, for each of them."""
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


_APOSTROPHES: Final = {wrong: word for word in _CONTRACTIONS.split() for wrong in _missing_one(word)}
_APOSTROPHES["somebody'd"] = "somebodyd"  # the wrong way round there, and so here
