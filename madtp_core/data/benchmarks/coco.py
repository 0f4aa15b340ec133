"""Pictures with captions: COCO and Flickr30k by the Karpathy split as in BLIP's files, and COCO's own files.

BLIP's (salesforce/BLIP, data/coco_karpathy_dataset.py and flickr30k_dataset.py) have a caption an entry to
learn from (coco_karpathy_train.json, flickr30k_train.json), and all captions of a picture to be measured by
(coco_karpathy_val.json, _test.json, flickr30k_val.json, _test.json):

    [{"image": "val2014/COCO_val2014_000000522418.jpg", "caption": "A woman ...", "image_id": "coco_522418"}]
    [{"image": "val2014/COCO_val2014_000000391895.jpg", "caption": ["A man ...", ... five]}]

COCO's own (captions_val2014.json), whose pictures lie in the folder that their names tell:

    {"images": [{"id": 391895, "file_name": "COCO_val2014_000000391895.jpg"}],
     "annotations": [{"id": 770337, "image_id": 391895, "caption": "A man ..."}]}
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from madtp_core.data.benchmarks.entries import entries, sections
from madtp_core.data.benchmarks.texts import plain_caption
from madtp_core.data.fields import Fields, read_json
from madtp_core.data.records import Captioned
from madtp_core.errors import ConfigError

_COCO_NAME: Final = re.compile(r"COCO_([a-z]+\d+)_(\d+)\.jpg")


def read_captions(files: Sequence[Path]) -> list[Captioned]:
    """Every picture of the files with all its captions, in the order in which pictures come.

    References are the captions as written, texts what the original BLIP shows a model of them. Raises
    ConfigError naming file and entry: for a missing or misshapen field, an empty caption, a picture whose
    captions come twice, or has none, a caption of no picture.
    """
    found: dict[str, _Picture] = {}
    for path in files:
        content = read_json(path)
        if isinstance(content, list):
            for entry in entries(path, content):
                _add_blip(entry, found)
        else:
            _add_official(path, sections(path, content, ("images", "annotations")), found)
    return [
        Captioned(one.where, (name,), tuple(one.texts), tuple(one.references), one.id)
        for name, one in found.items()
    ]


@dataclass(slots=True)
class _Picture:
    """A picture whose captions are being gathered."""

    where: str
    id: int | str
    texts: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)

    def add(self, entry: Fields, caption: object) -> None:
        """Add a caption of an entry."""
        written = entry.checked_text("caption", caption)
        self.texts.append(entry.checked_text("caption", plain_caption(written)))
        self.references.append(written)


def _add_blip(entry: Fields, found: dict[str, _Picture]) -> None:
    name = entry.checked_path(entry.take("image", str, "a path"))
    given = entry.take("caption", object, "")
    if isinstance(given, list):
        if name in found:
            raise ConfigError(f"{entry.where}: the captions of {name!r} are in {found[name].where} already")
        if not given:
            raise ConfigError(f"{entry.where}: {name!r} has no captions")
    one = found.setdefault(name, _Picture(entry.where, _image_id(name)))
    for caption in given if isinstance(given, list) else [given]:
        one.add(entry, caption)


def _add_official(path: Path, whole: Fields, found: dict[str, _Picture]) -> None:
    own: dict[int, _Picture] = {}
    for entry in entries(path, whole.take("images", list, "a list"), "image", "id"):
        image_id = entry.take("id", int, "a whole number")
        name = _in_its_folder(entry.checked_path(entry.take("file_name", str, "a path")))
        if image_id in own or name in found:
            raise ConfigError(f"{entry.where}: image {image_id}, {name!r}, comes twice")
        found[name] = own[image_id] = _Picture(entry.where, image_id)
    seen: dict[int, str] = {}
    for entry in entries(path, whole.take("annotations", list, "a list"), "annotation", "id"):
        caption_id = entry.take("id", int, "a whole number")
        if caption_id in seen:
            raise ConfigError(f"{entry.where}: that id is in {seen[caption_id]} already")
        seen[caption_id] = entry.where
        image_id = entry.take("image_id", int, "a whole number")
        if image_id not in own:
            raise ConfigError(f"{entry.where}: there is no image {image_id} in this file")
        own[image_id].add(entry, entry.take("caption", str, "a text"))
    for image_id, one in own.items():
        if not one.texts:
            raise ConfigError(f"{one.where}: image {image_id} has no captions")


def _in_its_folder(name: str) -> str:
    """val2014/COCO_val2014_000000391895.jpg; other names, as of 2017, are taken as they are."""
    coco = _COCO_NAME.fullmatch(name)
    return f"{coco[1]}/{name}" if coco else name


def _image_id(name: str) -> int | str:
    """COCO's number of a picture, or the name of its file without folder and ending."""
    coco = _COCO_NAME.fullmatch(name.rsplit("/", 1)[-1])
    return int(coco[2]) if coco else Path(name).stem
