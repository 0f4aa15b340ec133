"""Tiny networks of every task with something to learn, row by row a function of the row's number."""

from pathlib import Path

import torch
from torch.utils.data import Dataset

from madtp_core.backbones import MODEL_CLASSES
from madtp_core.backbones.blip import blip_config, scramble
from madtp_core.backbones.clip import clip_config
from madtp_core.checkpoint import build_alignment
from madtp_core.config import AlignmentConfig
from madtp_core.tasks.caption_cost import CaptionCostModel
from madtp_core.tasks.caption_network import CaptionNetwork
from madtp_core.tasks.clip_cost import ClipCostModel
from madtp_core.tasks.clip_network import ClipNetwork
from madtp_core.tasks.reasoning_cost import ReasoningCostModel
from madtp_core.tasks.reasoning_network import ReasoningNetwork
from madtp_core.tasks.retrieval_cost import RetrievalCostModel
from madtp_core.tasks.retrieval_network import RetrievalNetwork
from madtp_core.tasks.vqa_cost import VqaCostModel
from madtp_core.tasks.vqa_network import VqaNetwork
from madtp_core.train.batches import Captions, ImageTexts, Statements, VqaAnswers
from madtp_core.train.compress import TASKS
from madtp_core.train.costs import Cost, CostsInTurn
from madtp_core.train.hooks import Hooks
from madtp_core.train.loop import LoopConfig
from madtp_core.train.momentum import MomentumConfig

SIZE, VOCABULARY, WORDS = 24, 40, 6  # 9 patches of 8 pixels
START, END = 39, 2
COSTS = {"vqa": VqaCostModel, "caption": CaptionCostModel, "retrieval": RetrievalCostModel,
         "reasoning": ReasoningCostModel, "clip": ClipCostModel}  # fmt: skip
NETWORKS = {"vqa": VqaNetwork, "caption": CaptionNetwork, "retrieval": RetrievalNetwork,
            "reasoning": ReasoningNetwork, "clip": ClipNetwork}  # fmt: skip
LOOP = LoopConfig(
    steps=4, learning_rate=1e-3, dtype="fp32", loader_workers=0, log_every=1, checkpoint_every=2
)


def make_network(task, seed=0):
    if task == "clip":
        config = clip_config(
            vision_width=16, vision_heads=2, vision_blocks=2, image_size=SIZE, patch_size=8, text_width=16,
            text_heads=2, text_blocks=2, embedding_width=8, vocabulary=VOCABULARY, max_text_tokens=16,
            bos_token_id=START, eos_token_id=END + 1,
        )  # fmt: skip
    else:
        config = blip_config(
            width=16, heads=2, vision_blocks=2, text_blocks=2, image_size=SIZE, patch_size=8,
            vocabulary=VOCABULARY, max_text_tokens=16, bos_token_id=START, sep_token_id=END,
            embedding_width=8,
        )  # fmt: skip
    model = MODEL_CLASSES[task](config)
    scramble(model, seed, std=0.2)
    alignment = build_alignment(AlignmentConfig(num_tokens=5, dim=16), config)
    scramble(alignment, seed + 1, std=1.0)
    return NETWORKS[task](model, alignment)


class TinyBatches(Dataset):
    """Index -> micro-batch of rows index * size onwards; ragged: texts of different lengths."""

    def __init__(self, task, size, ragged=False):
        self.task, self.size, self.ragged = task, size, ragged

    def __getitem__(self, index):
        numbers = range(index * self.size, (index + 1) * self.size)
        generators = [torch.Generator().manual_seed(1000 + number) for number in numbers]
        pixels = torch.stack([torch.randn(3, SIZE, SIZE, generator=g) for g in generators])
        ids = torch.stack([torch.randint(4, 38, (WORDS,), generator=g) for g in generators])
        lengths = torch.tensor([WORDS - number % 3 if self.ragged else WORDS for number in numbers])
        mask = (torch.arange(WORDS) < lengths.unsqueeze(1)).long()
        rows = torch.arange(self.size)
        decoded = ids.clone()
        decoded[:, 0], decoded[rows, lengths - 1] = START, END
        decoded[mask == 0] = -100
        if self.task == "vqa":  # two answers a question, the second without its last words
            second = decoded.clone()
            second[:, 2], second[:, 3:] = END, -100
            answers = torch.stack([decoded, second], 1).flatten(0, 1)
            weights = torch.tensor([0.7, 0.3]).repeat(self.size)
            return VqaAnswers(pixels, ids * mask, mask, rows, answers, rows.repeat_interleave(2), weights)
        if self.task == "caption":
            return Captions(pixels, decoded, 2, rows)
        if self.task == "reasoning":
            right = torch.stack([torch.randn(3, SIZE, SIZE, generator=g) for g in generators])
            labels = torch.tensor([number % 2 for number in numbers])
            return Statements(torch.cat([pixels, right]), ids * mask, mask, labels)
        if self.task == "clip":
            ids[:, 0], ids[rows, lengths - 1] = START, END + 1
            ids[mask == 0] = END + 1
        keys = torch.tensor([number // 2 * 2 if number % 5 == 1 else number for number in numbers])
        return ImageTexts(pixels, ids * mask if self.task == "retrieval" else ids, ids, mask, keys)


def make_task(task, size=4, keep_mode="per_instance", ragged=False, network=None, **options):
    network = make_network(task) if network is None else network
    if task in ("retrieval", "clip"):
        options.setdefault("momentum", MomentumConfig(momentum=0.9, queue=10, soft_ramp_steps=2))
    cost = Cost(keep_mode, 1.0 if keep_mode == "dense" else 0.6)
    costs = CostsInTurn([cost], {keep_mode: 0.5}, ramp_steps=2)
    hooks = Hooks(lambda: {"score": 0.5, "flops_ratio": 0.6}, lambda directory: Path(directory).mkdir())
    return TASKS[task](
        network, TinyBatches(task, size, ragged), COSTS[task](network, SIZE, SIZE), hooks, costs, **options
    )
