"""Which tensor of a released checkpoint each of our tensors comes from, and what we leave behind.

The tables translate Hugging Face's names, which ours are, into those of the original BLIP (its modules `vit`,
`med`, `nlvr_encoder`, `blip*`) and of OpenAI's CLIP (`model`). The reference of MADTP keeps the names of the
one or the other and adds `space_dict` and, in CLIP's blocks, `query_model.q_map.0`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

SPACE_DICT = "space_dict"  # the alignment tokens
MOMENTUM, QUEUES, CONSTANTS = "momentum copies", "queues", "constants"
TRAINING, OTHER_TASKS = "contrastive temperature", "parts of other tasks"

_BLIP_VISION = (
    ("vision_model.encoder.layers.", "visual_encoder.blocks."),
    ("vision_model.embeddings.", "visual_encoder."),
    ("vision_model.", "visual_encoder."),
    (".class_embedding", ".cls_token"),
    (".position_embedding", ".pos_embed"),
    (".patch_embedding.", ".patch_embed.proj."),
    (".self_attn.projection.", ".attn.proj."),
    (".self_attn.qkv.", ".attn.qkv."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
    (".post_layernorm.", ".norm."),
)
_CLIP_BLOCK = (
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".self_attn.out_proj.", ".attn.out_proj."),
)
_CLIP_VISION = (
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("vision_model.embeddings.", "visual."),
    ("vision_model.", "visual."),
    (".patch_embedding.", ".conv1."),
    (".position_embedding.weight", ".positional_embedding"),
    (".pre_layrnorm.", ".ln_pre."),
    (".post_layernorm.", ".ln_post."),
    *_CLIP_BLOCK,
)
_CLIP_TEXT = (
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.embeddings.", ""),
    ("text_model.final_layer_norm.", "ln_final."),
    *_CLIP_BLOCK,
)
_CLIP_PROJECTIONS = {
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}
_QKV = re.compile(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)")
_LM_HEAD = "text_decoder.cls.predictions."
TIED = (  # one tensor under two names
    (f"{_LM_HEAD}decoder.weight", "text_decoder.bert.embeddings.word_embeddings.weight"),
    (f"{_LM_HEAD}decoder.bias", f"{_LM_HEAD}bias"),
)
_MAP = re.compile(r"maps\.(vision|text)\.(\d+)\.(weight|bias)")
_BLIP_BLOCKS = {"vision": "visual_encoder.blocks", "text": "text_encoder.encoder.layer"}
_CLIP_BLOCKS = {"vision": "visual.transformer.resblocks", "text": "transformer.resblocks"}
_BLIP_PARTS = {
    "visual_encoder", "text_encoder", "text_decoder", "vision_proj", "text_proj", "itm_head", "cls_head",
}  # fmt: skip
_CLIP_PARTS = {
    "visual", "transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection",
}  # fmt: skip
_QUEUE_NAMES = {"image_queue", "text_queue", "idx_queue", "ptr_queue", "queue_ptr"}
_CONSTANT_NAMES = {"input_resolution", "context_length", "vocab_size"}  # of OpenAI's archives
_CONSTANT_ENDS = ("embeddings.position_ids", ".attn_mask")


@dataclass(frozen=True)
class Origin:
    """Where one of our tensors comes from.

    keys: its names in the source, the first one there counts. third: which third of the rows of a fused
    query, key and value. is_transposed: stored as [in, out], where a Linear has [out, in].
    """

    keys: tuple[str, ...]
    third: int | None = None
    is_transposed: bool = False

    def key(self, source: Mapping[str, Tensor]) -> str | None:
        """Its name in a source; None where the source has none."""
        return next((key for key in self.keys if key in source), None)

    def shape(self, ours: Tensor) -> tuple[int, ...]:
        """The shape of the source's tensor that a tensor of ours is taken from."""
        if self.third is not None:
            return (3 * ours.shape[0], *ours.shape[1:])
        return tuple(ours.T.shape if self.is_transposed else ours.shape)

    def ours(self, tensor: Tensor) -> Tensor:
        """What is ours of the source's tensor."""
        if self.third is not None:
            return tensor.chunk(3)[self.third]
        return tensor.T if self.is_transposed else tensor


def blip_origin(key: str) -> Origin:
    """The origin of a tensor of Hugging Face's BLIP, or of our reasoning model.

    A twin comes from the twin or, in a BLIP not yet made for two images, from the one it was copied from; the
    tied tensors of the language model's head stand for each other.
    """
    if key.startswith("vision_model."):
        return Origin((_translated(key, _BLIP_VISION),))
    for tied in TIED:
        if key in tied:
            return Origin((key, *(other for other in tied if other != key)))
    single = re.sub(r"(\.crossattention\.(?:self|output\.dense))[01]\.", r"\1.", key)
    return Origin((key,) if single == key else (key, single))


def clip_origin(key: str) -> Origin:
    """The origin of a tensor of Hugging Face's CLIPModel."""
    if key in _CLIP_PROJECTIONS:
        return Origin((_CLIP_PROJECTIONS[key],), is_transposed=True)
    third = None
    if fused := _QKV.fullmatch(key):
        key, third = f"{fused[1]}.attn.in_proj_{fused[3]}", "qkv".index(fused[2])
    table = _CLIP_VISION if key.startswith("vision_model.") else _CLIP_TEXT
    return Origin((_translated(key, table),), third)


def alignment_origin(key: str, is_clip: bool) -> Origin:
    """The origin of a tensor of our Alignment.

    The reference's BLIP has no maps; names like those of its CLIP are taken there.
    """
    if mapped := _MAP.fullmatch(key):
        branch, block, parameter = mapped.groups()
        blocks = (_CLIP_BLOCKS if is_clip else _BLIP_BLOCKS)[branch]
        return Origin((f"{blocks}.{block}.query_model.q_map.0.{parameter}",))
    return Origin((SPACE_DICT,))


def left_behind(key: str, used_parts: set[str]) -> str | None:
    """Why a tensor of a source that none of ours comes from is dropped; None where there is no good reason.

    used_parts: the source's top-level modules that the task's model is made of.
    """
    part = key.split(".")[0]
    if part.endswith("_m") and part.removesuffix("_m") in _BLIP_PARTS | _CLIP_PARTS:
        return MOMENTUM
    if key in _QUEUE_NAMES:
        return QUEUES
    if key in _CONSTANT_NAMES or key.endswith(_CONSTANT_ENDS):
        return CONSTANTS
    if key == "temp":
        return TRAINING
    if part in _BLIP_PARTS - used_parts:
        return OTHER_TASKS
    return None


def _translated(key: str, table: tuple[tuple[str, str], ...]) -> str:
    for ours, theirs in table:
        key = key.replace(ours, theirs)
    return key
