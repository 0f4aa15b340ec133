"""One request with what is right about it, before any model's preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from madtp_core.data.lazy import Lazy
from madtp_core.images import preprocess_image
from madtp_core.tasks.base import PrunedModel
from madtp_core.tasks.plain import PlainTask, plain_task

Picture = NDArray[np.uint8]

_TEXT_FIELDS = ("question", "statement", "text", "prompt")


@dataclass(frozen=True, eq=False)
class Sample:
    """One request as a client would send it.

    pictures: decoded, uint8 [H, W, 3] each. fields: everything else of the request, named as in the API.
    truth: the answer (vqa, reasoning), or several annotators' answers as a tuple (vqa), the reference
    captions (caption) or the indices of right candidates (retrieval, clip); None without a label. groups:
    what it is counted under besides `all`. id: the question's or image's in a benchmark, for its submissions.
    """

    pictures: tuple[Picture, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    truth: Any = None
    groups: tuple[str, ...] = ()
    id: int | str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text of the request that a model reads."""
        said = [self.fields[name] for name in _TEXT_FIELDS if self.fields.get(name)]
        return (*said, *(self.fields.get("texts") or ()))


Samples = Lazy[Sample]


@dataclass(frozen=True)
class Asked(Samples):
    """Samples that are asked with some fields of their own; wanted: only so many, evenly spaced, None all."""

    samples: Sequence[Sample]
    fields: Mapping[str, Any]
    wanted: int | None = None

    def __len__(self) -> int:
        return len(self.samples) if self.wanted is None else min(self.wanted, len(self.samples))

    def item(self, index: int) -> Sample:
        sample = self.samples[index * len(self.samples) // len(self)]
        return replace(sample, fields={**sample.fields, **self.fields})


def plain_task_of(model: PrunedModel) -> PlainTask:
    """The task as clients know it; retrieval by BLIP or by CLIP is one."""
    return plain_task("retrieval" if model.task == "clip" else model.task)


def query_of(model: PrunedModel, sample: Sample) -> Any:
    """The sample as the model's `predict` takes it."""
    pixels = [preprocess_image(Image.fromarray(each), model.image_geometry) for each in sample.pictures]
    return plain_task_of(model).query(sample.fields, pixels)
