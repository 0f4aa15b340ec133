"""A small WordPiece vocabulary trained from the language of the scenes, as a BLIP tokenizer."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from madtp_core.data.shapes.captions import captions
from madtp_core.data.shapes.questions import questions
from madtp_core.data.shapes.scene import sample_scene
from madtp_core.data.shapes.statements import statement

if TYPE_CHECKING:
    from transformers import BertTokenizer

MAX_TEXT_TOKENS: Final = 40
BERT_TOKENS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DECODER_TOKEN: Final = "[DEC]"  # begins every text that BLIP decodes
ENCODER_TOKEN: Final = "[ENC]"  # replaces [CLS] where BLIP matches a text with an image
_WORD_CHARACTERS: Final = string.ascii_lowercase + string.digits
_ALPHABET: Final = string.punctuation + string.digits + string.ascii_lowercase
_CORPUS_SEED: Final = 0
_CORPUS_SCENES: Final = 1500
_QUESTIONS_PER_SCENE: Final = 10


def build_tokenizer(vocab_size: int = 512) -> BertTokenizer:
    """Train a lower-case WordPiece tokenizer on texts of the train split; the same bytes every time.

    `vocab_size` is an upper bound that includes the special tokens; every letter, digit and
    punctuation mark of ASCII is in the vocabulary both at the start and inside of a word, so that
    unseen ASCII words split into pieces instead of turning into [UNK]. `[DEC]` (BOS) and `[ENC]`
    come last, as in BLIP's own vocabulary.
    """
    from tokenizers import Tokenizer, models, trainers
    from transformers import BertTokenizer

    bert = BertTokenizer().backend_tokenizer  # for its normaliser and its way of splitting words
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = bert.normalizer, bert.pre_tokenizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size - 2,
        show_progress=False,
        # The trainer numbers characters in no fixed order and breaks ties by number: we number them.
        special_tokens=[*BERT_TOKENS, *_ALPHABET, *(f"##{character}" for character in _WORD_CHARACTERS)],
    )
    trained.train_from_iterator(_corpus(), trainer)
    vocabulary = trained.get_vocab()
    return BertTokenizer(
        vocab=dict(sorted(vocabulary.items(), key=lambda entry: entry[1])),
        bos_token=DECODER_TOKEN,
        extra_special_tokens=[ENCODER_TOKEN],
        model_max_length=MAX_TEXT_TOKENS,
    )


def _corpus() -> Iterator[str]:
    rng = random.Random(_CORPUS_SEED)
    before = sample_scene(_CORPUS_SEED, "train", 0)
    for index in range(_CORPUS_SCENES):
        scene = sample_scene(_CORPUS_SEED, "train", index)
        for question in questions(scene, rng, _QUESTIONS_PER_SCENE):
            yield question.text
            yield question.answer
        yield from captions(scene)
        yield statement(before, scene, rng)[0]
        before = scene
