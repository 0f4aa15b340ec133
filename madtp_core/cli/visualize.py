"""`madtp visualize`: blocks, compare, density."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from madtp_core.cli.options import DEMO_CHECKPOINT, add_cost_options, prune_temperature
from madtp_core.errors import ConfigError
from madtp_core.pruning import PRUNERS

if TYPE_CHECKING:
    from PIL import Image

    from madtp_core.tasks.base import PrunedModel
    from madtp_core.visualize import Sight

Request = tuple[list["Image.Image"], str]  # a request's images and text


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its options."""
    visualize = commands.add_parser("visualize", help="draw what pruning keeps, as PNG")
    kinds = visualize.add_subparsers(required=True, metavar="picture")
    blocks = kinds.add_parser("blocks", help="what every block keeps of images and words")
    _add_options(blocks, _blocks, "+")
    _add_blocks_option(blocks)
    compare = kinds.add_parser("compare", help="two methods on the same images, at equal cost")
    _add_options(compare, _compare, "+")
    _add_blocks_option(compare)
    compare.add_argument("--against", choices=sorted(PRUNERS), default="stp", help="the other method")
    compare.add_argument(
        "--against-flops-ratio", type=float, help="default: the mean that the checkpoint's own method spends"
    )
    density = kinds.add_parser("density", help="density of every block for easy, middle and hard requests")
    _add_options(density, _density, "*")
    density.add_argument(
        "--samples", type=int, default=30, help="drawn scenes a band, where no image is given"
    )
    density.add_argument("--seed", type=int, default=0, help="of the drawn scenes")


def _add_options(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int], images: str
) -> None:
    parser.add_argument("images", nargs=images, type=Path, help="two a request for reasoning, else one")
    parser.add_argument("--text", action="append", help="question or text: one for all, or one a request")
    parser.add_argument("--checkpoint", default=str(DEMO_CHECKPOINT))
    add_cost_options(parser, default_ratio=0.5)
    parser.add_argument("--out", type=Path, required=True)
    parser.set_defaults(run=run)


def _add_blocks_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--blocks", type=int, nargs="+", help="which blocks of the image tower, from 1")


def _blocks(args: argparse.Namespace) -> int:
    from madtp_core.tasks import load_model
    from madtp_core.visualize import blocks_figure

    model = load_model(args.checkpoint)
    sights = _sights(model, _requests(model, args.images, args.text), args)
    return _write(blocks_figure(sights, args.blocks), args)


def _compare(args: argparse.Namespace) -> int:
    from madtp_core.tasks import load_model
    from madtp_core.visualize import blocks_figure, look, with_method

    model = load_model(args.checkpoint)
    requests = _requests(model, args.images, args.text)
    own = _sights(model, requests, args)
    ratio = args.against_flops_ratio
    if ratio is None:
        spent = [sight.spent.cost for sight in own]
        ratio = sum(cost.flops for cost in spent) / sum(cost.dense_flops for cost in spent)
    other = with_method(model, args.against, {"flops_ratio": ratio})
    theirs = [look(other, images, text, prune_temperature=1.0) for images, text in requests]
    pairs = [sight for pair in zip(own, theirs, strict=True) for sight in pair]
    return _write(blocks_figure(pairs, args.blocks), args)


def _density(args: argparse.Namespace) -> int:
    from madtp_core.tasks import load_model
    from madtp_core.visualize import density_figure
    from madtp_core.visualize.samples import by_difficulty, image_traces, scenes_by_band

    model = load_model(args.checkpoint)
    if args.images:
        bands = by_difficulty(_sights(model, _requests(model, args.images, args.text), args))
    elif model.task == "vqa":
        scenes = scenes_by_band(args.samples, args.seed)
        bands = {
            band: _sights(model, [([image], question) for image, question in each], args)
            for band, each in scenes.items()
        }
    else:
        raise ConfigError(f"the drawn scenes come with questions; give images for task {model.task!r}")
    note = f"{model.name}. Lines: means; tints: 80 % of the requests"
    groups = {band: image_traces(sights) for band, sights in bands.items()}
    return _write(density_figure(groups, "Image tokens kept by each block", note), args)


def _requests(model: PrunedModel, paths: Sequence[Path], texts: Sequence[str] | None) -> list[Request]:
    """The given images in requests of as many as the task takes, each with its text."""
    from madtp_core.visualize import images_wanted, load_image

    count = images_wanted(model)
    if len(paths) % count:
        raise ConfigError(f"task {model.task!r} takes {count} images a request, got {len(paths)} in all")
    images = [load_image(path) for path in paths]
    groups = [images[start : start + count] for start in range(0, len(images), count)]
    said = list(texts or [""])
    if len(said) == 1:
        said *= len(groups)
    if len(said) != len(groups):
        raise ConfigError(f"give one text, or one for each of {len(groups)} requests, got {len(said)}")
    return list(zip(groups, said, strict=True))


def _sights(model: PrunedModel, requests: Iterable[Request], args: argparse.Namespace) -> list[Sight]:
    from madtp_core.visualize import look

    temperature = prune_temperature(model, args, batch_size=1)
    return [
        look(model, images, text, prune_temperature=temperature, keep_mode=args.keep_mode)
        for images, text in requests
    ]


def _write(figure: Image.Image, args: argparse.Namespace) -> int:
    from madtp_core.visualize import save_png

    save_png(figure, args.out)
    print(f"{args.out}: {figure.width} x {figure.height} pixels")
    return 0
