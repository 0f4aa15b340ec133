"""`madtp predict`."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madtp_core.cli.options import DEMO_CHECKPOINT, add_cost_options, field_of, prune_temperature
from madtp_core.errors import ConfigError
from madtp_core.pruning import PER_INSTANCE

if TYPE_CHECKING:
    from madtp_core.tasks.base import PrunedModel


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its options."""
    predict = commands.add_parser("predict", help="answer a folder of pictures, or a file of JSON lines")
    predict.add_argument("source", type=Path, help="pictures, or lines of the fields of a route")
    predict.add_argument("--checkpoint", default=str(DEMO_CHECKPOINT))
    predict.add_argument(
        "--task", help="embeddings, of a retrieval model; default: what the checkpoint is for"
    )
    predict.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of every request without it; a value is JSON, or else a text (question='what is it?')",
    )
    predict.add_argument("--batch-size", type=int, default=16)
    add_cost_options(predict, default_ratio=1.0)
    predict.add_argument("--device", default="cpu")
    predict.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    predict.add_argument(
        "--out", type=Path, required=True, help="records are appended; what it holds is not asked again"
    )
    predict.set_defaults(run=_predict)


def _chosen(model: PrunedModel, args: argparse.Namespace) -> Callable[[Sequence[Any]], float | list[float]]:
    """Prune temperatures of a batch: one by its queries' mean shape, or one each where they may differ."""

    @cache  # of a file's requests most are alike
    def temperature(size: int, shape: tuple[tuple[str, int], ...]) -> float:
        return prune_temperature(model, args, size, dict(shape))

    def of_batch(queries: Sequence[Any]) -> float | list[float]:
        shapes = [model.shape_of(query) for query in queries]
        if args.keep_mode == PER_INSTANCE:
            return [temperature(len(queries), tuple(shape.items())) for shape in shapes]
        total = Counter[str]()
        for shape in shapes:
            total.update(shape)
        mean = tuple((kind, round(count / len(shapes))) for kind, count in total.items())
        return temperature(len(queries), mean)

    return of_batch


def _predict(args: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from madtp_core.predict import answer_requests, answered_keys, read_requests
    from madtp_core.tasks import load_model
    from madtp_core.tasks.plain import plain_task

    if args.batch_size < 1:
        raise ConfigError(f"--batch-size is {args.batch_size}, but must be at least 1")
    requests = read_requests(args.source, dict(field_of(text) for text in args.field))
    done = answered_keys(args.out)
    left = [request for request in requests if request.key not in done]
    model = load_model(args.checkpoint, device=args.device, dtype=getattr(torch, args.dtype))
    task = plain_task(args.task or ("retrieval" if model.task == "clip" else model.task))
    if model.task not in task.models:
        raise ConfigError(f"{args.checkpoint} is a model for {model.task}, which does not do {args.task}")
    errors = 0
    with (
        args.out.open("a", encoding="utf-8") as out,
        tqdm(total=len(requests), initial=len(requests) - len(left), unit="request") as bar,
    ):
        for records in answer_requests(
            model,
            task,
            left,
            batch_size=args.batch_size,
            prune_temperature=_chosen(model, args),
            keep_mode=args.keep_mode,
        ):
            out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            out.flush()  # a run that is stopped goes on from here
            errors += sum("error" in record for record in records)
            bar.update(len(records))
    print(f"{args.out}: {len(left)} answered now, {errors} of them with an error; {len(requests)} in all")
    return 0
