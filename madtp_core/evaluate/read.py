"""A data set's records as samples and galleries, whose pictures are opened when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from madtp_core.data.images import Located, OnChecked, PictureFile, locate
from madtp_core.data.lazy import Lazy
from madtp_core.data.records import Captioned, Question, Record, Statement
from madtp_core.data.source import DataSource, parse_source, read_records
from madtp_core.errors import ConfigError
from madtp_core.evaluate.gallery import Gallery
from madtp_core.evaluate.samples import Picture, Sample, Samples
from madtp_core.tasks.text import TextCodec


def read_samples(
    source: DataSource,
    task: str,
    on_checked: OnChecked | None = None,
    *,
    codec: TextCodec | None = None,
) -> RecordSamples:
    """Read a source and check it before anything is asked: its fields, and that every picture is there.

    on_checked: told how many more pictures have been looked up. codec: with the model, which refuses longer
    texts than it reads: they lose their last words. Raises ConfigError naming file and line or entry; for a
    source with truths for some samples only; and for one that is measured by `read_gallery`.
    """
    if source.has_gallery(task):
        raise ConfigError(f"{task} over {source.format} is measured over its gallery, not by samples")
    records = read_records(source, task)
    known = sum(_truth(record) is not None for record in records)
    if known not in (0, len(records)):
        named = ", ".join(map(str, source.files))
        raise ConfigError(f"{named}: {known} of {len(records)} have a truth: give all or none")
    return RecordSamples(records, locate(records, source.images, on_checked), codec)


def read_manifest(path: Path, task: str) -> RecordSamples:
    """The samples of a manifest whose pictures lie beside it; raises ConfigError as `read_samples`."""
    return read_samples(parse_source(str(path)), task)


def read_gallery(
    source: DataSource, on_checked: OnChecked | None = None, *, codec: TextCodec | None = None
) -> Gallery:
    """All pictures of a source and all their captions, every caption for itself and of its picture alone.

    That is the original's protocol (salesforce/BLIP, train_retrieval.py): of two equal captions of different
    pictures only a picture's own is right. Arguments and errors are those of `read_samples`.
    """
    if not source.has_gallery("retrieval"):
        raise ConfigError(f"{source.format} has no gallery: it is not pictures with captions")
    records = [record for record in read_records(source, "retrieval") if isinstance(record, Captioned)]
    located = locate(records, source.images, on_checked)
    texts = tuple(fitted(text, codec) for record in records for text in record.texts)
    owners = np.repeat(np.arange(len(records)), [len(record.texts) for record in records])
    right = owners == np.arange(len(records))[:, None]
    files = tuple(located.files(record)[0] for record in records)
    return Gallery(OpenedPictures(files), texts, right, ((),) * len(records))


@dataclass(frozen=True)
class RecordSamples(Samples):
    """Records as samples, in their order; arguments as of `read_samples`."""

    records: Sequence[Record]
    located: Located
    codec: TextCodec | None = None

    def __len__(self) -> int:
        return len(self.records)

    def item(self, index: int) -> Sample:
        record = self.records[index]
        pictures = tuple(map(_opened, self.located.files(record)))
        fields = {**record.options, **self._asked(record)}
        groups = record.groups if isinstance(record, Question) else ()
        return Sample(pictures, fields, _truth(record), groups, record.id)

    def _asked(self, record: Record) -> dict[str, Any]:
        if isinstance(record, Question):
            return {"question": fitted(record.text, self.codec)}
        if isinstance(record, Statement):
            return {"statement": fitted(record.text, self.codec)}
        if isinstance(record, Captioned):
            return {}
        texts = tuple(fitted(text, self.codec) for text in record.texts)
        return {"text": texts[0]} if len(texts) == 1 else {"texts": texts}


class OpenedPictures(Lazy[Picture]):
    """Pictures of files, each opened anew whenever it is asked for: uint8 [H, W, 3]."""

    def __init__(self, files: Sequence[PictureFile]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def item(self, index: int) -> Picture:
        return _opened(self._files[index])


def fitted(text: str, codec: TextCodec | None) -> str:
    """As many of a text's words as the model reads; without a codec, all."""
    if codec is None:
        return text
    while codec.length(text) > codec.max_text_tokens:
        shorter = text.rsplit(maxsplit=1)[0]
        if shorter == text:
            break  # one long word: the model says so itself
        text = shorter
    return text


def _opened(file: PictureFile) -> Picture:
    return np.asarray(file.open())


def _truth(record: Record) -> Any:
    if isinstance(record, Question | Statement):
        return record.truth
    if isinstance(record, Captioned):
        return record.references or None
    return record.right
