"""A tiny scrambled CLIP, as a network with texts for it, and as a checkpoint."""

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from madtp_core.backbones.blip import scramble
from madtp_core.backbones.clip import build_clip, clip_config
from madtp_core.checkpoint import Checkpoint, build_alignment
from madtp_core.config import AlignmentConfig, MadtpConfig, PruningConfig
from madtp_core.encoder import Pruning
from madtp_core.images import ImageGeometry
from madtp_core.pruning import build_pruner
from madtp_core.tasks.clip_network import ClipNetwork
from madtp_core.tokens import Tokens

BLOCKS, PATCHES, SOT, EOT = 3, 25, 38, 39
TINY = {
    "vision_width": 32, "vision_heads": 4, "vision_blocks": BLOCKS, "image_size": 40, "patch_size": 8,
    "text_width": 24, "text_heads": 4, "text_blocks": BLOCKS, "embedding_width": 16,
    "vocabulary": 40, "max_text_tokens": 24, "bos_token_id": SOT, "eos_token_id": EOT,
}  # fmt: skip


def make_network(**options: int) -> ClipNetwork:
    config = clip_config(**(TINY | options))
    clip = build_clip(config).eval()
    scramble(clip, std=0.3)
    alignment = build_alignment(AlignmentConfig(num_tokens=12, dim=32), config)  # the image tower's own width
    scramble(alignment, seed=1, std=0.3)
    return ClipNetwork(clip, alignment).eval()


def texts(lengths: tuple[int, ...] = (22, 22, 22), seed: int = 11) -> Tensor:
    """Token ids [B, L] of so many tokens, SOT and EOT counted in, padded with EOT as CLIP does."""
    ids = torch.randint(0, SOT, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = SOT
    for row, length in enumerate(lengths):
        ids[row, length - 1 :] = EOT
    return ids


EQUAL, RAGGED = (22, 22, 22), (22, 7, 14)


def madtp(prune_temperature: float, keep_mode: str, rows: int = 3) -> Pruning:
    return Pruning(build_pruner("madtp"), torch.full((rows,), prune_temperature), keep_mode)


def positions_of(tokens: Tokens) -> list[list[int]]:
    """The positions of the real tokens, row by row."""
    rows = zip(tokens.position.tolist(), tokens.lengths().tolist(), strict=True)
    return [row[:length] for row, length in rows]


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's own tokenizer over single letters: it spells every word."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[])


def make_checkpoint() -> Checkpoint:
    """A tiny CLIP as it is stored: preprocessing of 44 pixels cut to 40, texts of up to 24 tokens."""
    tokenizer = make_tokenizer()
    network = make_network(
        vocabulary=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    config = MadtpConfig(
        task="clip",
        max_text_tokens=24,
        alignment=AlignmentConfig(num_tokens=12, dim=32),
        pruning=PruningConfig(prune_temperature=2.0),
    )
    geometry = ImageGeometry(40, 40, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), shortest_edge=44)
    return Checkpoint(network.clip, tokenizer, geometry, config, network.alignment)
