"""Captions against references: CIDEr and BLEU, and with Java what else COCO's script measures.

All measures are pycocoevalcap's, a copy of COCO's own. Its tokenizer (Stanford's PTB), METEOR and SPICE are
Java programs; ROUGE-L is left out.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import SubprocessError
from typing import Any, Final

from madtp_core.errors import ConfigError

Texts = dict[int, list[str]]  # of an image by its number, tokens with a space between
_SPICE_NEEDS: Final = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_JAVA_FAILURES: Final = (
    OSError,
    SubprocessError,
    ValueError,
)  # ValueError: an empty line where a figure was due


def score_captions(
    truths: Sequence[Sequence[str]], captions: Sequence[str], *, official: bool = False
) -> tuple[dict[str, tuple[float, ...]], dict[str, float], dict[str, str]]:
    """CIDEr of every caption, whose mean is the corpus'; the corpus' BLEU 1 to 4; notes on both.

    official: cut texts by the PTB tokenizer, as COCO's script does, and add METEOR and SPICE; a note says
    what could not run, and why. Else, or without Java, texts are lower-cased and cut into runs of letters and
    digits: the same for plain words, as both drop punctuation. Raises ConfigError without pycocoevalcap.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise ConfigError("scoring captions needs pycocoevalcap: install madtp-serve[evaluate]") from error
    notes = {"captions": "cut into runs of letters and digits"}
    references = {number: [plain_words(text) for text in truth] for number, truth in enumerate(truths)}
    written = {number: [plain_words(caption)] for number, caption in enumerate(captions)}
    if official:
        try:
            references, written = _ptb_tokenized(truths, captions)
            notes = {"captions": "cut by the PTB tokenizer"}
        except _JAVA_FAILURES as error:
            notes["ptb"] = f"the PTB tokenizer did not run: {error}"
    _, cider = Cider().compute_score(references, written)
    bleu, _ = Bleu(4).compute_score(references, written, verbose=0)
    whole = {f"bleu_{n}": float(score) for n, score in enumerate(bleu, start=1)}
    for name, measure in _JAVA_MEASURES.items() if official else ():
        try:
            whole[name] = measure(references, written)
        except _JAVA_FAILURES as error:
            notes[name] = f"not measured: {error}"
    return {"cider": tuple(map(float, cider))}, whole, notes


def plain_words(text: str) -> str:
    """A text in lower case without punctuation, one space between words."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _ptb_tokenized(truths: Sequence[Sequence[str]], captions: Sequence[str]) -> tuple[Texts, Texts]:
    """References and captions, cut in one run of the program: a line is a text."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    _need_java()
    texts = {("reference", number): truth for number, truth in enumerate(truths)}
    texts |= {("caption", number): [caption] for number, caption in enumerate(captions)}
    lines = {key: [{"caption": " ".join(text.split())} for text in each] for key, each in texts.items()}
    cut = PTBTokenizer().tokenize(lines)
    if {key: len(each) for key, each in cut.items()} != {key: len(each) for key, each in lines.items()}:
        raise ValueError("it did not answer every line")
    numbers = range(len(captions))
    return {n: cut["reference", n] for n in numbers}, {n: cut["caption", n] for n in numbers}


def _meteor(references: Texts, written: Texts) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    _need_java()
    score, _ = Meteor().compute_score(references, written)
    return float(score)


def _spice(references: Texts, written: Texts) -> float:
    """SPICE fetches what it lacks from the network, without being asked: so it is looked for first."""
    import pycocoevalcap.spice

    _need_java()
    folder = Path(pycocoevalcap.spice.__file__).parent / "lib"
    if missing := [name for name in _SPICE_NEEDS if not (folder / name).exists()]:
        raise FileNotFoundError(f"{' and '.join(missing)} must lie in pycocoevalcap/spice/lib")
    from pycocoevalcap.spice.spice import Spice

    score, _ = Spice().compute_score(references, written)
    return float(score)


def _need_java() -> None:
    if shutil.which("java") is None:
        raise FileNotFoundError("there is no java")


_JAVA_MEASURES: Final[Mapping[str, Callable[[Any, Any], float]]] = {"meteor": _meteor, "spice": _spice}
