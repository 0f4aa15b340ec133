"""Texts to token ids as BLIP wants them, and back."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from torch import Tensor

from madtp_core.decoding import Decoded
from madtp_core.errors import ConfigError

_KNOWN_CANDIDATES: Final = 4  # lists of them that are tokenized once
_TOKENIZING = threading.Lock()  # a tokenizer keeps how it pads as its state, which threads would share
Outcome = tuple[str, float, tuple[tuple[str, float], ...] | None]  # text, score, ranked candidates


class TextCodec:
    """A tokenizer with BLIP's conventions: [ENC] question [SEP], and [DEC] answer [SEP].

    encoder_first_token: `enc` replaces a question's first token by [ENC] as the original BLIP does, `cls`
    leaves it as Hugging Face's port does. Raises ConfigError when `enc` is asked of a tokenizer without
    [ENC].
    """

    def __init__(self, tokenizer: Any, encoder_first_token: str, max_text_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_text_tokens = max_text_tokens
        # A list of thousands of answers may come with every question.
        self._ids_of = lru_cache(_KNOWN_CANDIDATES)(lambda texts: [self.answer_ids(text) for text in texts])
        self.first_id: int | None = None
        if encoder_first_token == "enc":
            self.first_id = tokenizer.convert_tokens_to_ids("[ENC]")
            if self.first_id in (None, tokenizer.unk_token_id):
                raise ConfigError("encoder_first_token is 'enc', but the tokenizer has no [ENC] token")

    def length(self, text: str) -> int:
        """Tokens of a text, its first and last included."""
        return len(self._encoded(text)["input_ids"])

    def _encoded(self, texts: str | list[str], **options: Any) -> Any:
        with _TOKENIZING:
            return self.tokenizer(texts, verbose=False, **options)

    def texts(self, texts: Sequence[str], kind: str = "text") -> tuple[Tensor, Tensor]:
        """Token ids and mask [Q, L], right padded, [CLS] first; kind is what an error calls such a text.

        Raises ConfigError for one that is empty or too long.
        """
        if any(not text.strip() for text in texts):
            raise ConfigError(f"the {kind} is empty")
        encoded = self._encoded(list(texts), padding=True, return_tensors="pt")
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        longest = int(mask.sum(1).max())
        if longest > self.max_text_tokens:
            raise ConfigError(f"the {kind} has {longest} tokens, at most {self.max_text_tokens} are allowed")
        return ids, mask

    def reading(self, ids: Tensor) -> Tensor:
        """Token ids [Q, L] of texts that read an image: [ENC] first where the model wants it."""
        if self.first_id is None:
            return ids
        ids = ids.clone()
        ids[:, 0] = self.first_id
        return ids

    def questions(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask [Q, L] of questions, which read an image; raises ConfigError as `texts`."""
        ids, mask = self.texts(texts, "question")
        return self.reading(ids), mask

    def prompt_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of what a decoded text begins with, without special tokens; "" has none."""
        ids: list[int] = self._encoded(text, add_special_tokens=False)["input_ids"]
        if len(ids) >= self.max_text_tokens:
            raise ConfigError(
                f"the prompt has {len(ids)} tokens, at most {self.max_text_tokens - 1} are allowed"
            )
        return tuple(ids)

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer without special tokens; raises ConfigError when there are none."""
        ids: list[int] = self._encoded(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ConfigError(f"the candidate {text!r} is empty")
        return ids

    def candidate_ids(self, texts: Sequence[str], longest: int) -> Sequence[Sequence[int]]:
        """Token ids of the texts to rank; raises ConfigError for none at all, an empty or a too long one."""
        if not texts:
            raise ConfigError("candidates is empty; leave it out to generate a text")
        ids = self._ids_of(tuple(texts))
        if (length := max(map(len, ids))) > longest:
            raise ConfigError(f"a candidate has {length} tokens, at most {longest} are allowed")
        return ids

    def training_answers(self, texts: Sequence[str], start_id: int) -> Tensor:
        """Start token, answer, end token, then -100: [Q, A]."""
        encoded = self._encoded(list(texts), padding=True, return_tensors="pt")
        ids: Tensor = encoded["input_ids"]
        ids[:, 0] = start_id
        return ids.masked_fill(encoded["attention_mask"] == 0, -100)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of emitted tokens."""
        decoded: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return decoded.strip()

    def outcome(self, decoded: Sequence[Decoded], candidates: Sequence[str] | None) -> Outcome:
        """The text that a search found, its score, and all candidates with theirs, best first."""
        if candidates is None:
            return self.text(decoded[0].token_ids), decoded[0].score, None
        scored = [(candidates[entry.place], entry.score) for entry in decoded]
        ranked = tuple(sorted(scored, key=lambda pair: -pair[1]))
        return *ranked[0], ranked
