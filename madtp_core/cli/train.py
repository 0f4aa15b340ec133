"""`madtp train`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from madtp_core.cli.options import add_images_option

if TYPE_CHECKING:
    from madtp_core.train.compress import Data
    from madtp_core.train.examples import Examples

_TRAIN_SCENES, _HELD_OUT_SCENES = 100_000, 256
_DESCRIPTION = """\
Compress a model by MADTP: its task's loss + alpha x the alignment loss, while the prune temperature is
searched that spends the wanted share of the dense cost. A run that stopped goes on when started again.
Several processes: torchrun --nproc-per-node 8 --no-python madtp train ..."""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its options."""
    train = commands.add_parser(
        "train",
        help="compress a model on one's own data",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("recipe", help="the name of one of ours (vqav2, nlvr2, ...), or a file")
    train.add_argument("--model", required=True, help="a checkpoint directory, or an id on the hub")
    add_data_options(train)
    train.add_argument(
        "--flops-ratio", type=float, help="wanted share of the dense cost; default: the recipe's"
    )
    add_run_options(train, "loop.steps=100 or search.basis=paper")
    train.set_defaults(run=_train)


def add_run_options(parser: argparse.ArgumentParser, example: str) -> None:
    """--output, --set and --device; example: of what --set changes."""
    parser.add_argument("--output", required=True, type=Path, help="where the run and its models are written")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="KEY=VALUE",
        help=f"change a value of the recipe, as {example}; may be repeated",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """--data, --validation and what goes with them, for `data_of`."""
    data = (
        "JSON lines of your own; FORMAT:FILE,FILE of a benchmark (coco, flickr30k, vqav2, nlvr2); `shapes` "
        "for drawn scenes, or `shapes:NUMBER`. See docs/data.md"
    )
    parser.add_argument("--data", required=True, help=data)
    parser.add_argument("--validation", required=True, help="held-out data, in the same forms")
    add_images_option(parser, "both")
    parser.add_argument(
        "--validation-samples",
        type=int,
        metavar="NUMBER",
        help="measure on so many of the held-out, evenly spaced; default: all",
    )


def _train(args: argparse.Namespace) -> int:
    from madtp_core.errors import ConfigError
    from madtp_core.tasks import load_model
    from madtp_core.train.compress import CompressionRun, check_device
    from madtp_core.train.processes import current_processes, process_group
    from madtp_core.train.recipe import read_recipe

    changes: Sequence[str] = args.changes
    if args.flops_ratio is not None:
        changes = [*changes, f"flops_ratio={args.flops_ratio}"]
    recipe = read_recipe(args.recipe, changes)
    if Path(args.model).is_file():
        raise ConfigError(f"{args.model!r} is a file: make a directory of it by `madtp convert` first")
    with process_group(check_device(args.device)) as device:
        model = load_model(args.model, device=str(device))
        run = CompressionRun(recipe, model, data_of(args, recipe.task), args.output)
        figures = run.train()
        if current_processes().is_first:
            for name, value in figures.items():
                print(f"{name}: {value:.4g}")
            best = args.output / "best"
            kept = f"{best}, the best within the target" if best.is_dir() else "none was within the target"
            print(f"written to {args.output / 'model'} (the last), {kept}")
    return 0


def data_of(args: argparse.Namespace, task: str) -> Data:
    """What `add_data_options` asks for."""
    from madtp_core.train.compress import Data

    held_out = _examples(args.validation, args.images, task, held_out=True)
    return Data(
        _examples(args.data, args.images, task, held_out=False),
        _some(held_out, args.validation_samples),
        may_augment=not _is_shapes(args.data),
    )


def _is_shapes(source: str) -> bool:
    return source.split(":")[0] == "shapes" and not Path(source).exists()


def _examples(source: str, images: Sequence[Path], task: str, *, held_out: bool) -> Examples:
    """Drawn scenes, or the examples of files; looking up their pictures is shown."""
    from madtp_core.data.source import parse_source
    from madtp_core.errors import ConfigError
    from madtp_core.train.read import read_examples
    from madtp_core.train.shapes_examples import ShapesExamples

    if not _is_shapes(source):
        with tqdm(desc="images looked up", unit="image", disable=None) as bar:  # None: shown to a terminal
            return read_examples(parse_source(source, images), task, bar.update, held_out=held_out)
    _, _, number = source.partition(":")
    if number and (not number.isdigit() or int(number) < 1):
        raise ConfigError(f"{source!r}: write shapes, or shapes:NUMBER")
    scenes = int(number or (_HELD_OUT_SCENES if held_out else _TRAIN_SCENES))
    return ShapesExamples(task, scenes, "validation" if held_out else "train")


def _some(examples: Examples, wanted: int | None) -> Examples:
    """So many of the examples, evenly spaced; None: all."""
    from madtp_core.errors import ConfigError

    if wanted is None or wanted >= len(examples):
        return examples
    if wanted < 1:
        raise ConfigError(f"--validation-samples must be at least 1, got {wanted}")
    return [examples[row * len(examples) // wanted] for row in range(wanted)]
