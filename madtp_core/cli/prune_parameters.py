"""`madtp prune-parameters`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from madtp_core.cli.train import add_data_options, add_run_options, data_of

if TYPE_CHECKING:
    from madtp_core.tasks.base import PrunedModel

_RECIPES: Final = {
    "vqa": "vqav2",
    "caption": "coco_caption",
    "retrieval": "retrieval_coco",
    "reasoning": "nlvr2",
    "clip": "clip_coco",
}
_DESCRIPTION = """\
Take whole attention heads and feed-forward units out of a model, the least important ones of all towers
together (UPop, ICML 2023). They fade out while the model is trained for --steps; what is left is then trained
for --retrain-steps. With --steps 0 they go at once, by the gradients of a few batches. Everything runs dense;
`madtp train` prunes tokens on top. A run that stopped goes on when started again."""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its options."""
    prune = commands.add_parser(
        "prune-parameters",
        help="take attention heads and feed-forward units out of a model",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    prune.add_argument("checkpoint", help="a directory, or an id on the hub")
    prune.add_argument(
        "--ratio", type=float, required=True, help="share of the parameters of all heads and units that goes"
    )
    prune.add_argument(
        "--within",
        choices=("model", "tower"),
        default="model",
        help="who gives that share: all towers together, as UPop's, or each of them; together a decoder may "
        "give most, whose parameters cost few multiply-adds",
    )
    add_data_options(prune)
    prune.add_argument("--steps", type=int, required=True, help="over which they fade out; 0: at once")
    prune.add_argument("--retrain-steps", type=int, help="of what is left; default: as many as --steps")
    prune.add_argument("--batches", type=int, default=8, help="whose gradients decide with --steps 0")
    prune.add_argument("--recipe", help="the name of one of ours, or a file; default: that of the task")
    add_run_options(prune, "loop.learning_rate=1e-4")
    prune.set_defaults(run=_prune)


def _prune(args: argparse.Namespace) -> int:
    from madtp_core.tasks import load_model
    from madtp_core.train.compress import check_device
    from madtp_core.train.parameter_pruning import ParameterPruning, ParameterPruningRun
    from madtp_core.train.processes import current_processes, process_group
    from madtp_core.train.recipe import read_recipe

    retrain = args.steps if args.retrain_steps is None else args.retrain_steps
    wanted = ParameterPruning(args.ratio, args.steps, retrain, args.batches, args.within)
    with process_group(check_device(args.device)) as device:
        model = load_model(args.checkpoint, device=str(device))
        longest = [f"loop.steps={steps}"] if (steps := max(args.steps, retrain)) > 0 else []
        recipe = read_recipe(args.recipe or _RECIPES[model.task], [*longest, *args.changes])
        before = _said(model)
        written = ParameterPruningRun(recipe, model, data_of(args, model.task), args.output, wanted).run()
        if current_processes().is_first:
            print(f"before: {before}\nafter:  {_said(load_model(written))}")
            print(f"written to {written}; calibrate it, or prune tokens on top by `madtp train`")
    return 0


def _said(model: PrunedModel) -> str:
    """Parameters, and multiply-adds of a dense request of the paper's lengths, in billions."""
    from madtp_core.served import request_shape, served_cost

    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    macs = served_cost(model, request_shape(model.task), {}).macs
    return f"{parameters / 1e6:.2f} M parameters, {macs / 1e9:.3f} GMACs a dense request"
