"""Texts to token ids as BLIP wants them, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from madtp_core.errors import ConfigError


class TextCodec:
    """A tokenizer with BLIP's conventions: [ENC] question [SEP], and [DEC] answer [SEP].

    encoder_first_token: `enc` replaces a question's first token by [ENC] as the original BLIP does, `cls`
    leaves it as Hugging Face's port does. Raises ConfigError when `enc` is asked of a tokenizer without
    [ENC].
    """

    def __init__(self, tokenizer: Any, encoder_first_token: str, max_question_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_question_tokens = max_question_tokens
        self.first_id: int | None = None
        if encoder_first_token == "enc":
            self.first_id = tokenizer.convert_tokens_to_ids("[ENC]")
            if self.first_id in (None, tokenizer.unk_token_id):
                raise ConfigError("encoder_first_token is 'enc', but the tokenizer has no [ENC] token")

    def questions(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask [Q, L], right padded; raises ConfigError for an empty or too long question."""
        if any(not text.strip() for text in texts):
            raise ConfigError("the question is empty")
        encoded = self.tokenizer(list(texts), padding=True, return_tensors="pt", verbose=False)
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        longest = int(mask.sum(1).max())
        if longest > self.max_question_tokens:
            raise ConfigError(
                f"the question has {longest} tokens, at most {self.max_question_tokens} are allowed"
            )
        if self.first_id is not None:
            ids[:, 0] = self.first_id
        return ids, mask

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer without special tokens; raises ConfigError when there are none."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not ids:
            raise ConfigError(f"the candidate {text!r} is empty")
        return ids

    def training_answers(self, texts: Sequence[str], start_id: int) -> Tensor:
        """Start token, answer, end token, then -100: [Q, A]."""
        encoded = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        ids: Tensor = encoded["input_ids"]
        ids[:, 0] = start_id
        return ids.masked_fill(encoded["attention_mask"] == 0, -100)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of emitted tokens."""
        decoded: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return decoded.strip()
