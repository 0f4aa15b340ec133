"""BLIP for reasoning over two images (NLVR2): Hugging Face has none, so this one is ours, under its names.

The vision tower and the text embeddings, self-attention and feed-forward are Hugging Face's modules; only the
twin cross-attention and the classifier are new. Source: BLIP (ICML 2022), Natural Language Visual Reasoning,
and the modules `nlvr_encoder` and `blip_nlvr` of its release.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipConfig, BlipTextConfig
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.blip.modeling_blip import BlipPreTrainedModel, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel, BlipTextSelfAttention

from madtp_core.backbones.blip import text_config, vision_config
from madtp_core.blocks import TwinTextBlock

LABELS = (False, True)  # what the classifier's two outputs say of a statement


def merge_start(config: BlipTextConfig) -> int:
    """The first text layer that merges its twins by a linear layer; those below average them.

    The configuration's own `merge_start`, or half of the layers: BLIP's 6 of 12.
    """
    given: int | None = getattr(config, "merge_start", None)
    return config.num_hidden_layers // 2 if given is None else given


class TwinOutput(nn.Module):
    """What both twins read, joined and added to the tokens: LN(x + join(dense0 c0, dense1 c1))."""

    def __init__(self, config: BlipTextConfig, has_merge_layer: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.dense0 = nn.Linear(width, width)
        self.dense1 = nn.Linear(width, width)
        self.merge_layer = nn.Linear(2 * width, width) if has_merge_layer else None
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, contexts: Sequence[Tensor], hidden: Tensor) -> Tensor:
        """contexts: of the first and the second image, each [..., C] like hidden."""
        first, second = self.dense0(contexts[0]), self.dense1(contexts[1])
        if self.merge_layer is None:
            joined = (first + second) / 2
        else:
            joined = self.merge_layer(torch.cat([first, second], -1))
        out: Tensor = self.LayerNorm(self.dropout(joined) + hidden)
        return out


class TwinCrossAttention(nn.Module):
    """Cross-attention with a twin for each image: `self0` reads the first one, `self1` the second."""

    def __init__(self, config: BlipTextConfig, has_merge_layer: bool) -> None:
        super().__init__()
        self.self0 = BlipTextSelfAttention(config, True)  # type: ignore[no-untyped-call]
        self.self1 = BlipTextSelfAttention(config, True)  # type: ignore[no-untyped-call]
        self.output = TwinOutput(config, has_merge_layer)

    def forward(
        self, hidden_states: Tensor, *, encoder_hidden_states: Sequence[Tensor], **unused: Any
    ) -> tuple[Tensor, None]:
        """Called by Hugging Face's text layer in place of its own; encoder_hidden_states: of both images."""
        twins = zip((self.self0, self.self1), encoder_hidden_states, strict=True)
        contexts = [twin(hidden_states, encoder_hidden_states=image)[0] for twin, image in twins]
        return self.output(contexts, hidden_states), None


class TwinTextModel(BlipTextModel):  # type: ignore[no-untyped-call]
    """A BLIP text encoder whose layers read two images."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__(config, add_pooling_layer=False)
        start = merge_start(config)
        for index, layer in enumerate(self.encoder.layer):
            layer.crossattention = TwinCrossAttention(config, has_merge_layer=index >= start)
        self.post_init()  # type: ignore[no-untyped-call]


class BlipForReasoning(BlipPreTrainedModel):  # type: ignore[no-untyped-call]
    """Says whether a statement about two images is true."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        width = text_config(config).hidden_size
        self.vision_model = BlipVisionModel(vision_config(config))
        self.text_encoder = TwinTextModel(text_config(config))
        self.cls_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(LABELS)))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """The unpruned model, by Hugging Face's modules alone.

        pixel_values [2B, 3, height, width]: the first images of all statements, then the second ones.
        input_ids, attention_mask [B, L]; labels [B], 1 where the statement is true -> logits [B, 2].
        """
        images = self.vision_model(pixel_values=pixel_values).last_hidden_state
        states = self.text_encoder(
            input_ids, attention_mask=attention_mask, encoder_hidden_states=images.chunk(2)
        ).last_hidden_state
        logits = self.cls_head(states[:, 0])
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def build_blip_reasoning(config: BlipConfig) -> BlipForReasoning:
    """A BLIP for reasoning over two images, with fresh weights."""
    return BlipForReasoning(config)


def twin_text_blocks(model: TwinTextModel) -> list[TwinTextBlock]:
    """Adapters of a twin text tower's blocks."""
    return [TwinTextBlock(layer) for layer in model.encoder.layer]
