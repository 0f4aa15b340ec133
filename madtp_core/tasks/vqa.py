"""Visual question answering with BLIP: queries in, answers out, each with what it cost."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from madtp_core.backbones.blip import text_config
from madtp_core.calibration import Calibration
from madtp_core.checkpoint import VqaCheckpoint, load_checkpoint, save_checkpoint
from madtp_core.config import PruningConfig
from madtp_core.decoding import Decoded, beam_search, greedy, rank
from madtp_core.encoder import Encoded
from madtp_core.errors import ConfigError
from madtp_core.flops import BranchTrace, RequestCost
from madtp_core.images import ImageGeometry
from madtp_core.pruning import MAX_KEEP, check_keep_mode
from madtp_core.tasks.text import TextCodec
from madtp_core.tasks.vqa_cost import VqaCostModel, VqaTrace, branch_traces
from madtp_core.tasks.vqa_network import TEXT, VISION, BatchPruning, VqaNetwork


@dataclass(frozen=True, eq=False)
class VqaQuery:
    """One question about one preprocessed image.

    pixel_values: float32 [3, height, width]. candidates: rank these answers instead of generating one.
    """

    pixel_values: NDArray[np.float32]
    question: str
    candidates: tuple[str, ...] | None = None
    num_beams: int = 1
    max_new_tokens: int = 20


@dataclass(frozen=True)
class VqaAnswer:
    """An answer and what it cost.

    score: mean log-probability of the answer's tokens, its end included. ranked: all candidates with their
    scores, best first. difficulty: share of the tokens of all pruned branches' blocks that the question
    needed; None when nothing was pruned. postprocess_s: seconds spent turning tokens into text.
    """

    answer: str
    score: float
    ranked: tuple[tuple[str, float], ...] | None
    vision: BranchTrace
    text: BranchTrace
    cost: RequestCost
    difficulty: float | None
    postprocess_s: float


class BlipVqa:
    """A BLIP-VQA ready to answer, dense or pruned.

    A row of a `per_instance` batch answers as it would alone; under `max_keep` a batch keeps what its
    neediest row needs, as in the paper.
    """

    def __init__(self, checkpoint: VqaCheckpoint, *, name: str = "blip-vqa", device: str = "cpu") -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        config, geometry = checkpoint.config, checkpoint.image_geometry
        self.codec = TextCodec(checkpoint.tokenizer, config.encoder_first_token, config.max_question_tokens)
        self.network = VqaNetwork(checkpoint.blip, checkpoint.alignment).to(self.device).eval()
        self.cost_model = VqaCostModel(self.network, geometry.height, geometry.width)
        self._pruner = None if self.pruning is None else self.pruning.build()
        self._decoder = self.network.decoder()

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> BlipVqa:
        """Load a checkpoint directory or a hub repository; raises CheckpointError."""
        name = Path(path_or_hub_id).name
        return cls(load_checkpoint(path_or_hub_id, dtype), name=name, device=device)

    def save_pretrained(self, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write a checkpoint directory that `from_pretrained`, and for its own part Hugging Face, reads."""
        save_checkpoint(self.checkpoint, Path(directory), dtype)

    @property
    def image_geometry(self) -> ImageGeometry:
        return self.checkpoint.image_geometry

    @property
    def max_question_tokens(self) -> int:
        return self.codec.max_question_tokens

    @property
    def pruning(self) -> PruningConfig | None:
        return self.checkpoint.config.pruning

    @property
    def calibration(self) -> Calibration | None:
        return self.checkpoint.calibration

    def describe(self) -> dict[str, object]:
        """What a caller may want to know, as plain JSON values."""
        config, vision, text = self.checkpoint.config, self.cost_model.vision, self.cost_model.text
        return {
            "task": config.task,
            "architecture": "blip",
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "dtype": str(self.checkpoint.blip.dtype).removeprefix("torch."),
            "image": {
                "height": vision.image_height,
                "width": vision.image_width,
                "patch_size": vision.patch_size,
            },
            "vision": {"blocks": vision.blocks, "width": vision.width, "tokens": vision.patches},
            "text": {"blocks": text.blocks, "width": text.width, "vocabulary": text.vocabulary},
            "pruning": config.to_dict()["pruning"],
            "calibration": None if self.calibration is None else self.calibration.summary(),
            "limits": {"max_question_tokens": self.max_question_tokens},
        }

    @torch.inference_mode()
    def predict(
        self,
        queries: Sequence[VqaQuery],
        *,
        prune_temperature: float | Sequence[float],
        keep_mode: str = MAX_KEEP,
    ) -> list[VqaAnswer]:
        """Answer a batch; prune_temperature is one for all or one a query, 0 runs dense.

        Raises ConfigError for a value the model cannot take, before anything has run.
        """
        if not queries:
            return []
        self._check(queries)
        token_ids, mask = self.codec.questions([query.question for query in queries])
        candidates = [self._candidate_ids(query) for query in queries]
        pruning = self._batch_pruning(prune_temperature, len(queries), keep_mode)
        pixels = torch.from_numpy(np.stack([query.pixel_values for query in queries])).to(self.device)
        image = self.network.encode_image(pixels, pruning.of(VISION) if pruning else None)
        question = self.network.encode_question(
            token_ids.to(self.device),
            mask.to(self.device),
            image,
            None,
            pruning.of(TEXT) if pruning else None,
        )
        decoded = self._decode(queries, candidates, question)

        dense_text = (mask.sum(1) - 1).tolist()
        traces = [
            VqaTrace(*pair)
            for pair in zip(
                branch_traces(image, [self.cost_model.vision.patches] * len(queries)),
                branch_traces(question, dense_text),
                strict=True,
            )
        ]
        costs = self.cost_model.batch_costs(traces, decoded, pruning)
        return [
            self._answer(query, entries, trace, cost, self.cost_model.difficulty(trace, pruning))
            for query, entries, trace, cost in zip(queries, decoded, traces, costs, strict=True)
        ]

    def _check(self, queries: Sequence[VqaQuery]) -> None:
        wanted = (3, self.image_geometry.height, self.image_geometry.width)
        limit = text_config(self.checkpoint.blip.config).max_position_embeddings
        for query in queries:
            if query.pixel_values.shape != wanted:
                raise ConfigError(f"pixel_values have shape {query.pixel_values.shape}, expected {wanted}")
            if query.candidates is not None and not query.candidates:
                raise ConfigError("candidates is empty; leave it out to generate an answer")
            if query.num_beams < 1 or not 1 <= query.max_new_tokens < limit:
                raise ConfigError(
                    f"need num_beams >= 1 and max_new_tokens in 1..{limit - 1}, "
                    f"got {query.num_beams} and {query.max_new_tokens}"
                )

    def _candidate_ids(self, query: VqaQuery) -> list[list[int]] | None:
        if query.candidates is None:
            return None
        limit = text_config(self.checkpoint.blip.config).max_position_embeddings - 2
        texts = [self.codec.answer_ids(text) for text in query.candidates]
        if (longest := max(map(len, texts))) > limit:
            raise ConfigError(f"a candidate has {longest} tokens, at most {limit} are allowed")
        return texts

    def _batch_pruning(
        self, prune_temperature: float | Sequence[float], count: int, keep_mode: str
    ) -> BatchPruning | None:
        check_keep_mode(keep_mode)
        given = (
            [prune_temperature] * count if isinstance(prune_temperature, int | float) else prune_temperature
        )
        if len(given) != count:
            raise ConfigError(f"got {len(given)} prune temperatures for {count} queries")
        if any(not value >= 0 for value in given):
            raise ConfigError(f"prune temperatures must be >= 0, got {list(given)}")
        if not any(given):
            return None
        if self.pruning is None or self._pruner is None:
            raise ConfigError(
                f"{self.name} has no pruning; serve it at prune temperature 0, or train it with MADTP"
            )
        temperature = torch.tensor(given, dtype=torch.float32, device=self.device)
        return BatchPruning(self._pruner, temperature, keep_mode, frozenset(self.pruning.branches))

    def _decode(
        self, queries: Sequence[VqaQuery], candidates: list[list[list[int]] | None], question: Encoded
    ) -> list[list[Decoded]]:
        """Per query its ranked candidates in the given order, or the one generated answer."""
        memory = self._decoder.remember(question.tokens)
        results: list[list[Decoded]] = [[] for _ in queries]
        greedy_rows: dict[int, list[int]] = defaultdict(list)
        for row, (query, texts) in enumerate(zip(queries, candidates, strict=True)):
            if texts is not None:
                results[row] = rank(self._decoder, memory, row, texts)
            elif query.num_beams > 1:
                results[row] = [
                    beam_search(self._decoder, memory, row, query.num_beams, query.max_new_tokens)
                ]
            else:
                greedy_rows[query.max_new_tokens].append(row)
        for max_new_tokens, rows in greedy_rows.items():
            answers = greedy(self._decoder, memory, torch.tensor(rows, device=self.device), max_new_tokens)
            for row, answer in zip(rows, answers, strict=True):
                results[row] = [answer]
        return results

    def _answer(
        self,
        query: VqaQuery,
        decoded: list[Decoded],
        trace: VqaTrace,
        cost: RequestCost,
        difficulty: float | None,
    ) -> VqaAnswer:
        started = time.perf_counter()
        if query.candidates is None:
            answer, score, ranked = self.codec.text(decoded[0].token_ids), decoded[0].score, None
        else:
            scored = zip(query.candidates, (entry.score for entry in decoded), strict=True)
            ranked = tuple(sorted(scored, key=lambda pair: -pair[1]))
            answer, score = ranked[0]
        seconds = time.perf_counter() - started
        return VqaAnswer(answer, score, ranked, trace.vision, trace.text, cost, difficulty, seconds)
