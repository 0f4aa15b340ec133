"""Texts of benchmarks as the original BLIP shows them to a model (its `pre_caption` and `pre_question`)."""

from __future__ import annotations

import re
from typing import Final

CAPTION_WORDS: Final = 30  # the original reads no more of a caption,
STATEMENT_WORDS: Final = 40  # of a statement,
QUESTION_WORDS: Final = 50  # or of a question
_MARKS: Final = re.compile(r'[.!"()*#:;~]')  # question marks and commas stay


def plain_caption(caption: str, max_words: int = CAPTION_WORDS) -> str:
    """Lower case, a space for every mark, one space between words, the first words."""
    return " ".join(_MARKS.sub(" ", caption.lower()).split()[:max_words])


def plain_question(question: str) -> str:
    """Lower case, marks left out (`t-shirt.` -> `t-shirt`), the first words."""
    return " ".join(_MARKS.sub("", question.lower()).split()[:QUESTION_WORDS])
