"""`madtp convert`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from madtp_core.config import TASKS
from madtp_core.errors import ConfigError

if TYPE_CHECKING:
    from madtp_core.convert import Conversion

_DTYPES = ("float32", "float16", "bfloat16")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its options."""
    convert = commands.add_parser(
        "convert", help="make a checkpoint directory of a released .pth, .pt or .safetensors file"
    )
    convert.add_argument("source", type=Path, help="MADTP's reference, an original BLIP, or an OpenAI CLIP")
    convert.add_argument("--task", choices=TASKS, required=True)
    convert.add_argument("--tokenizer", required=True, help="directory or hub id; bert-base-uncased for BLIP")
    convert.add_argument("--out", type=Path, required=True, help="the directory to write")
    convert.add_argument("--force", action="store_true", help="replace a checkpoint that is there")
    convert.add_argument("--image-size", type=int, help="pixels a side, to interpolate positions to")
    convert.add_argument("--vision-heads", type=int, help="default: 64 wide")
    convert.add_argument("--text-heads", type=int, help="default: 64 wide")
    convert.add_argument("--dtype", choices=_DTYPES, default="float32", help="of the stored weights")
    convert.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> int:
    import torch

    from madtp_core.checkpoint import save_checkpoint
    from madtp_core.convert import convert_file

    _check_target(args.out, args.force)
    conversion = convert_file(
        args.source,
        args.task,
        args.tokenizer,
        image_size=args.image_size,
        vision_heads=args.vision_heads,
        text_heads=args.text_heads,
    )
    save_checkpoint(conversion.checkpoint, args.out, getattr(torch, args.dtype))
    print("\n".join(_account(conversion)))
    print(args.out)
    return 0


def _check_target(out: Path, force: bool) -> None:
    """Refuse to write over what is there, and with force over what is no checkpoint of ours."""
    from madtp_core.checkpoint import MADTP_JSON

    if not out.exists():
        return
    if not force:
        raise ConfigError(f"{str(out)!r} exists; give another --out, or --force to replace it")
    if not (out / MADTP_JSON).is_file():
        raise ConfigError(f"{str(out)!r} is no checkpoint directory of ours and is not replaced")


def _account(conversion: Conversion) -> list[str]:
    """What became of the source's tensors, a line each."""
    lines = [_line("converted", conversion.converted, "tensors", _modules(conversion.converted))]
    for reason, names in conversion.dropped.items():
        lines.append(_line("dropped", names, reason, _modules(names)))
    if conversion.fresh:
        names = conversion.fresh
        lines.append(_line("fresh", names, "tensors, to be trained", ", ".join(names)))
    pruning, alignment = conversion.checkpoint.config.pruning, conversion.checkpoint.alignment
    if pruning is None or alignment is None:
        lines.append("no alignment tokens: served dense, or with a training-free method")
    else:
        lines.append(
            f"alignment: {alignment.num_tokens} tokens of width {alignment.dim}, "
            f"prune temperature {pruning.prune_temperature:g}"
        )
    return lines


def _line(fate: str, names: Sequence[str], what: str, listed: str) -> str:
    return f"{fate} {len(names)} {what}: {listed}"


def _modules(names: Sequence[str]) -> str:
    """Top-level modules with how many tensors each: `visual_encoder (150), space_dict (1)`."""
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{module} ({count})" for module, count in counts.items())
