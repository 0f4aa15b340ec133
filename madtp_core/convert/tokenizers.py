"""The tokenizer of a released checkpoint, which its file does not hold."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from madtp_core.errors import CheckpointError

DECODER_TOKEN, ENCODER_TOKEN = "[DEC]", "[ENC]"  # BLIP appends them to BERT's vocabulary in this order


def load_tokenizer(name: str | Path) -> Any:
    """A tokenizer from a directory or by its id on the hub; raises CheckpointError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(str(name))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot load a tokenizer from {str(name)!r}: {error}") from error


def blip_tokenizer(tokenizer: Any, embedding_rows: int) -> Any:
    """A copy with [DEC] as its BOS and with [ENC], appended where it has none, which makes BERT's BLIP's.

    Raises CheckpointError unless its tokens are as many as the rows of the word embeddings.
    """
    fitted = copy.deepcopy(tokenizer)
    if fitted.bos_token != DECODER_TOKEN:
        fitted.add_special_tokens({"bos_token": DECODER_TOKEN})
    if ENCODER_TOKEN not in fitted.get_vocab():
        fitted.add_special_tokens({"extra_special_tokens": [*fitted.extra_special_tokens, ENCODER_TOKEN]})
    _check_ids(fitted, embedding_rows, ("bos_token_id", "sep_token_id", "pad_token_id"))
    return fitted


def clip_tokenizer(tokenizer: Any, embedding_rows: int) -> Any:
    """The tokenizer as it is; raises CheckpointError unless its tokens are as many as the embeddings."""
    _check_ids(tokenizer, embedding_rows, ("bos_token_id", "eos_token_id", "pad_token_id"))
    return tokenizer


def _check_ids(tokenizer: Any, embedding_rows: int, needed: tuple[str, ...]) -> None:
    highest = max(tokenizer.get_vocab().values())
    if len(tokenizer) != embedding_rows or highest >= embedding_rows:
        raise CheckpointError(
            f"the tokenizer has {len(tokenizer)} tokens with ids up to {highest}, the checkpoint embeds "
            f"{embedding_rows}; give the tokenizer it was trained with"
        )
    if missing := [name for name in needed if getattr(tokenizer, name) is None]:
        raise CheckpointError(f"the tokenizer has no {', '.join(missing)}")
