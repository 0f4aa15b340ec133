"""Released checkpoints in miniature: scrambled originals, their tokenizers, both forwards side by side."""

import builtins

import torch
from transformers import BertTokenizer, CLIPTokenizer

from madtp_core.backbones.blip import scramble
from madtp_core.convert import convert_state_dict
from tests.core.originals import BlipCaption, BlipNlvr, BlipRetrieval, BlipVqa, Clip

VOCABULARY = 40
ORIGINALS = {
    "vqa": BlipVqa,
    "caption": BlipCaption,
    "retrieval": BlipRetrieval,
    "reasoning": BlipNlvr,
    "clip": Clip,
}
HEADS = {"vision_heads": 3, "text_heads": 2}


def bert_tokenizer(words=VOCABULARY - 7):
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(words))]
    return BertTokenizer(vocab={name: index for index, name in enumerate(names)})


def clip_tokenizer():
    names = [
        *(f"{chr(97 + index)}</w>" for index in range(VOCABULARY - 2)),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return CLIPTokenizer(vocab={name: index for index, name in enumerate(names)})


def tokenizer_for(task):
    return clip_tokenizer() if task == "clip" else bert_tokenizer()


def scrambled(task, **sizes):
    original = ORIGINALS[task](**sizes).eval()
    scramble(original, std=0.2)
    return original


def convert(task, original, **options):
    return convert_state_dict(original.state_dict(), task, tokenizer_for(task), **HEADS, **options)


def inputs(task, side=24):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(4 if task == "reasoning" else 2, 3, side, side, generator=generator)
    ids = torch.randint(5, VOCABULARY - 2, (2, 7), generator=generator)
    if task == "clip":
        ids[0, 4:], ids[1, -1] = VOCABULARY - 1, VOCABULARY - 1  # EOT, and padding after it
    return images, ids


def forward(task, model, images, ids):
    """What Hugging Face's model makes of the inputs, in the form that the original gives it."""
    if task == "vqa":
        states = model.vision_model(images).last_hidden_state
        states = model.text_encoder(ids, encoder_hidden_states=states, is_decoder=False).last_hidden_state
        return model.text_decoder(ids.flip(0), encoder_hidden_states=states, is_decoder=True).logits
    if task == "caption":
        return model(pixel_values=images, input_ids=ids).logits
    if task == "retrieval":
        pairs = (model(input_ids=ids, pixel_values=images, use_itm_head=head) for head in (True, False))
        return tuple(pair.itm_score for pair in pairs)
    if task == "reasoning":
        return model(images, ids).logits
    return model(input_ids=ids, pixel_values=images).logits_per_image


def original_forward(task, original, images, ids):
    return original(images, ids, ids.flip(0)) if task == "vqa" else original(images, ids)


class Bomb:
    """A pickle that writes a file when it is executed."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return builtins.open, (str(self.target), "w")
