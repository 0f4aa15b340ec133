"""What a flops_ratio is a share of: a served request, or the training forward that the paper counts.

`served` is this project's own: one request, its answer decoded step by step, with MAG's scoring; what the API
reports, and what calibration and `flops_ratio` mean everywhere else. `paper` is the basis of the paper's
"GFLOPs" (`madtp_core.paper`): for reasoning the same, for the others a training forward, in which a caption
or an answer is read in one pass, an image has 32 questions and 47 answers, retrieval and CLIP run a momentum
copy and compare with a queue, and retrieval matches three pairs. MAG's scoring counts there too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from madtp_core.encoder import BatchPruning
from madtp_core.errors import UnknownNameError
from madtp_core.flops import (
    BranchTrace,
    Scoring,
    decoder_macs,
    linear_macs,
    memory_macs,
    text_encoder_macs,
    vision_macs,
)
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.cost import MATCH, CostModel, Passes, Traces, changed
from madtp_core.train.compression import Measure, Requests, served_ratio

QUESTIONS, ANSWERS = 32, 47  # of one image in the paper's forward
QUEUE = 57_600  # embeddings that a batch is compared with there
_Scorings = Mapping[str, Scoring | None]
# A request's traces and passes -> multiply-adds of its training forward.
_Forward = Callable[[Any, Traces, Passes, _Scorings], int]


def measure_of(basis: str, task: str) -> Measure:
    """The measure of a basis for a task; raises UnknownNameError."""
    if basis == "served":
        return served_ratio
    if basis == "paper":
        return partial(_forward_ratio, _FORWARDS[task])
    raise UnknownNameError("cost basis", basis, BASES)


BASES: Final = ("served", "paper")


def _forward_ratio(
    forward: _Forward, cost_model: CostModel, requests: Requests, pruning: BatchPruning | None
) -> float:
    scoring, none = cost_model.scoring(pruning), {VISION: None, TEXT: None}
    spent = sum(forward(cost_model, traces, passes, scoring) for traces, passes in requests)
    dense = sum(
        forward(cost_model.whole, changed(traces, BranchTrace.unpruned), passes, none)
        for traces, passes in requests
    )
    return spent / dense


def _reasoning(model: Any, traces: Traces, passes: Passes, scoring: _Scorings) -> int:
    total: int = model.macs(traces, passes, scoring)
    return total


def _one_pass(passes: Passes) -> Passes:
    """The teacher-forced pass over all that is decoded step by step."""
    tokens = sum(new for new, _ in passes)
    return [(tokens, tokens)]


def _caption(model: Any, traces: Traces, passes: Passes, scoring: _Scorings) -> int:
    total: int = model.macs(traces, _one_pass(passes), scoring)
    return total


def _vqa(model: Any, traces: Traces, passes: Passes, scoring: _Scorings) -> int:
    (image,), (question,) = traces[VISION], traces[TEXT]
    seen, states = image.leaving()[-1] + 1, question.leaving()[-1] + 1
    memory = memory_macs(model.text, seen)
    asked = text_encoder_macs(model.text, question, seen, scoring[TEXT]) - memory
    answers = decoder_macs(model.decoder, [*_one_pass(passes)] * ANSWERS, states)
    return vision_macs(model.vision, image, scoring[VISION]) + memory + QUESTIONS * asked + answers


def _retrieval(model: Any, traces: Traces, passes: Passes, scoring: _Scorings) -> int:
    (image,), (text,), (match,) = traces[VISION], traces[TEXT], traces[MATCH]
    width, embedding = model.text.width, model.embedding_width
    twice = (
        vision_macs(model.vision, image, scoring[VISION])
        + text_encoder_macs(model.text, text, None, scoring[TEXT])
        + linear_macs(model.vision.width, embedding)
        + linear_macs(width, embedding)
    )
    pair = text_encoder_macs(model.text, match, image.leaving()[-1] + 1, scoring[TEXT])
    return 2 * twice + 3 * (pair + linear_macs(width, 2)) + 4 * linear_macs(embedding, QUEUE)


def _clip(model: Any, traces: Traces, passes: Passes, scoring: _Scorings) -> int:
    (image,), (text,) = traces[VISION], traces[TEXT]
    towers: int = model.branch_macs(VISION, image, scoring[VISION])
    towers += model.branch_macs(TEXT, text, scoring[TEXT])
    return 2 * towers + 4 * linear_macs(model.embedding_width, QUEUE)


_FORWARDS: Final[Mapping[str, _Forward]] = {
    "vqa": _vqa,
    "caption": _caption,
    "retrieval": _retrieval,
    "reasoning": _reasoning,
    "clip": _clip,
}
