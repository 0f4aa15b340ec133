"""The symbolic scene: which objects stand where on which background, and which split owns it."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from madtp_core.errors import UnknownNameError

Split = Literal["train", "validation", "test"]
Band = Literal["easy", "middle", "hard"]
_Value = TypeVar("_Value")

SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "diamond")
COLOURS: Final = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES: Final = ("small", "large")
TEXTURES: Final = ("solid", "striped", "hollow")
BACKGROUNDS: Final = ("plain", "gradient", "stripes", "noise", "confetti")  # least to most cluttered

MAX_OBJECTS: Final = 12
GRID: Final = 4  # cells along each side
CELL: Final = 24  # units along one side of a cell
CANVAS: Final = GRID * CELL  # a unit is one pixel of a 96-pixel image
DIAMETER: Final = {"small": 12, "large": 20}  # units
_JITTER: Final = {"small": 5, "large": 1}  # units; an object never leaves its cell
_SHARED_LOOKS: Final = 0.4  # share of scenes drawn from few shapes and colours, so that large counts occur

_BUCKETS: Final = 10
_SPLIT_OF_BUCKET: Final[tuple[Split, ...]] = ("train",) * 8 + ("validation", "test")


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object; `x` and `y` are its centre in units of 1/96 of the image, from the upper left corner."""

    shape: str
    colour: str
    size: str
    texture: str
    x: int
    y: int

    @property
    def cell(self) -> int:
        """The grid cell it stands in, row-major, 0..15."""
        return self.y // CELL * GRID + self.x // CELL


@dataclass(frozen=True, slots=True)
class Background:
    """What lies behind the objects: a kind, and the seed of its tones and details."""

    kind: str
    seed: int


@dataclass(frozen=True, slots=True)
class Scene:
    """One to twelve objects that never overlap, in the order of their cells, on one background."""

    objects: tuple[SceneObject, ...]
    background: Background

    @property
    def num_objects(self) -> int:
        return len(self.objects)

    @property
    def clutter(self) -> int:
        """How busy the background is, from 0 (plain) to 4 (confetti)."""
        return BACKGROUNDS.index(self.background.kind)


def difficulty_band(scene: Scene) -> Band:
    """Return `easy` for 1 to 4 objects, `middle` for 5 to 8 and `hard` for 9 to 12."""
    if scene.num_objects <= 4:
        return "easy"
    return "middle" if scene.num_objects <= 8 else "hard"


def layout_hash(scene: Scene) -> int:
    """Return a hash, stable across machines, of every object's looks and cell.

    Jitter and background are left out on purpose: two scenes that differ only there are the same
    question, and must not stand on both sides of a split.
    """
    looks = ";".join(f"{o.cell},{o.shape},{o.colour},{o.size},{o.texture}" for o in scene.objects)
    return zlib.crc32(looks.encode("ascii"))


def split_of(scene: Scene) -> Split:
    """Return the one split that owns this scene: 80 % train, 10 % validation, 10 % test."""
    return _SPLIT_OF_BUCKET[layout_hash(scene) % _BUCKETS]


def sample_scene(seed: int, split: Split, index: int) -> Scene:
    """Return scene number `index` of a split; the same arguments give the same scene everywhere.

    Scenes are redrawn until `split_of` says that they belong to `split`, so splits are disjoint for all
    seeds and lengths. Raises `UnknownNameError` for an unknown split.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    rng = random.Random(f"shapes/{seed}/{split}/{index}")
    num_objects = rng.randint(1, MAX_OBJECTS)
    background = Background(kind=rng.choice(BACKGROUNDS), seed=rng.getrandbits(32))
    while True:
        scene = Scene(_sample_objects(rng, num_objects), background)
        if split_of(scene) == split:
            return scene


def _sample_objects(rng: random.Random, num_objects: int) -> tuple[SceneObject, ...]:
    shapes, colours = _sample_looks(rng, SHAPES), _sample_looks(rng, COLOURS)
    cells = sorted(rng.sample(range(GRID * GRID), num_objects))
    objects = []
    for cell in cells:
        size = rng.choice(SIZES)
        jitter = _JITTER[size]
        objects.append(
            SceneObject(
                shape=rng.choice(shapes),
                colour=rng.choice(colours),
                size=size,
                texture=rng.choice(TEXTURES),
                x=cell % GRID * CELL + CELL // 2 + rng.randint(-jitter, jitter),
                y=cell // GRID * CELL + CELL // 2 + rng.randint(-jitter, jitter),
            )
        )
    return tuple(objects)


def _sample_looks(rng: random.Random, values: Sequence[_Value]) -> Sequence[_Value]:
    if rng.random() < _SHARED_LOOKS:
        return rng.sample(values, rng.randint(1, 3))
    return values
