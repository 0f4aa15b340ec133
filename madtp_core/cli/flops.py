"""`madtp flops`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from madtp_core.config import TASKS

if TYPE_CHECKING:
    from madtp_core.served import Kept
    from madtp_core.tasks.base import PrunedModel

_PAPER = """\
The paper's five models, dense, in billions of multiply-adds (GMACs), which the paper calls GFLOPs. A training
forward also runs what serving does not: momentum copies, negatives, all answers of an image at once."""
_SERVED = """\
One served request{also}, in GMACs. An answer is decoded step by step; the keys and
values of an image or a question count once, however many read them. Lengths are the paper's unless given."""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its options."""
    flops = commands.add_parser("flops", help="what the paper's models and a served request cost")
    which = flops.add_mutually_exclusive_group()
    which.add_argument("--task", choices=TASKS, help="a request of this task alone, at the paper's geometry")
    which.add_argument("--checkpoint", help="a request of this checkpoint alone")
    flops.add_argument("--text-tokens", type=int, help="length of the text; default: the paper's")
    flops.add_argument(
        "--steps", type=int, help="of decoding an answer or a caption; default: the paper's length"
    )
    flops.add_argument("--candidates", type=int, default=1, help="texts for one image, of retrieval")
    counts = "share of what enters that each block keeps (0.9), or a count for each block (400,300,...)"
    flops.add_argument("--vision-kept", type=_kept, metavar="KEPT", help=counts)
    flops.add_argument("--text-kept", type=_kept, metavar="KEPT", help="the same for the text's blocks")
    flops.add_argument("--json", action="store_true", help="figures for a program")
    flops.set_defaults(run=_flops)


def _kept(value: str) -> Kept:
    """A share, or counts between commas."""
    return tuple(int(count) for count in value.split(",")) if "," in value else float(value)


def _flops(args: argparse.Namespace) -> int:
    alone = args.task or args.checkpoint
    paper = [] if alone else _paper_figures()
    requests = _request_figures(args)
    if args.json:
        print(json.dumps({"paper": paper, "requests": requests}, indent=1))
        return 0
    if paper:
        print(_PAPER, end="\n\n")
        _print_paper(paper)
    _print_requests(requests, has_kept=bool(args.vision_kept or args.text_kept))
    return 0


def _paper_figures() -> list[dict[str, Any]]:
    from madtp_core.paper import paper_rows

    return [
        {
            "model": row.model,
            "image_size": row.image_size,
            "forward": row.forward,
            "macs": row.macs,
            "printed_gflops": row.printed,
            "parts": [
                {"what": part.what, "count": part.count, "macs_each": part.macs_each} for part in row.parts
            ],
        }
        for row in paper_rows()
    ]


def _request_figures(args: argparse.Namespace) -> list[dict[str, Any]]:
    from madtp_core.served import reference_model
    from madtp_core.tasks import load_model

    if args.checkpoint:
        return [_request_figure(load_model(args.checkpoint), args)]
    return [_request_figure(reference_model(task), args) for task in ([args.task] if args.task else TASKS)]


def _request_figure(model: PrunedModel, args: argparse.Namespace) -> dict[str, Any]:
    from madtp_core.served import request_shape, served_cost

    wanted = {"vision": args.vision_kept, "text": args.text_kept}
    kept = {branch: counts for branch, counts in wanted.items() if counts is not None}
    shape = request_shape(model.task, args.text_tokens, args.steps, args.candidates)
    dense, spent = served_cost(model, shape, {}, whole=True), served_cost(model, shape, kept)
    return {
        "task": model.task,
        "model": model.name,
        "image_height": model.image_geometry.height,
        "image_width": model.image_geometry.width,
        **asdict(shape),
        "kept": kept,
        "dense": {**asdict(dense), "flops": dense.flops},
        "spent": {**asdict(spent), "flops": spent.flops},
        "flops_ratio": spent.macs / dense.macs,
    }


def _print_paper(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        title = f"{row['model']}, {row['image_size']} pixels, {row['forward']}"
        print(f"{row['macs'] / 1e9:8.2f}  {title} (the paper prints {row['printed_gflops']:g})")
        for part in row["parts"]:
            times = "" if part["count"] == 1 else f"{part['count']} x "
            print(f"  {_gmacs(part['count'] * part['macs_each'])}  {times}{part['what']}")
        print()


def _print_requests(rows: Sequence[Mapping[str, Any]], has_kept: bool) -> None:
    print(
        _SERVED.format(also=", dense and pruned with MADTP's scoring" if has_kept else ", dense"),
        end="\n\n",
    )
    for row in rows:
        print(f"{row['task']}, {row['model']}: {_described(row)}")
        print(f"  {_sum(row['dense'])}")
        if has_kept or row["spent"] != row["dense"]:
            what = "at the kept counts" if has_kept else "as its parameters were pruned"
            print(f"  {_sum(row['spent'])} {what}, {row['flops_ratio']:.1%}")


def _sum(cost: Mapping[str, int]) -> str:
    images, rest = cost["image_macs"], cost["macs"] - cost["image_macs"]
    return f"{_gmacs(cost['macs'])} = images {_gmacs(images)} + all that follows {_gmacs(rest)}"


def _described(row: Mapping[str, Any]) -> str:
    """What the request consists of, in words."""
    parts = [f"{row['images']} x {row['image_width']} x {row['image_height']} pixels"]
    if row["text_tokens"]:
        times = "" if row["candidates"] == 1 else f"{row['candidates']} x "
        parts.append(f"{times}{row['text_tokens']} text tokens")
    if row["steps"]:
        parts.append(f"{row['steps']} decoding steps")
    return ", ".join(parts)


def _gmacs(macs: int) -> str:
    """Multiply-adds in billions."""
    return f"{macs / 1e9:8.3f}"
