"""`madtp bench encoder`: a vision tower dense and pruned, in time, multiply-adds and memory, in one process.

The weights are scrambled noise: they cost what trained ones cost, but no prune temperature makes them spend a
wanted share. So the pruned variants keep a fixed schedule of counts, and every block still pays MADTP's whole
scoring: token attention, attention signals, importance, threshold, ranking and merge.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from madtp_core.alignment import Alignment
from madtp_core.attention import Signals
from madtp_core.backbones.blip import (
    blip_config,
    build_blip_vision,
    embed_image,
    scramble,
    vision_blocks,
    vision_geometry,
)
from madtp_core.bench.measure import cpu_model, interleaved_seconds, peak_growth_bytes
from madtp_core.bench.schedule import flops_ratio, geometric_schedule, scheduled_trace
from madtp_core.bench.table import render
from madtp_core.encoder import Encoded, Pruning, encode
from madtp_core.errors import ConfigError
from madtp_core.flops import AlignmentGeometry, vision_macs
from madtp_core.pruning import MAX_KEEP, PruneStep
from madtp_core.pruning.base import real_tokens
from madtp_core.pruning.scores import threshold
from madtp_core.pruning.static import StaticPruner
from madtp_core.tokens import Tokens

BRANCH = "vision"
HUGGING_FACE, DENSE = "hf_eager", "dense_sdpa"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GEOMETRIES = {  # options of blip_config, and MAG's K; d_k is the width
    "base": ({"width": 768, "heads": 12, "vision_blocks": 12, "image_size": 384, "patch_size": 16}, 100),
    "tiny": ({"width": 32, "heads": 4, "vision_blocks": 4, "image_size": 64, "patch_size": 8}, 8),
}
NOTE = (
    "Scrambled weights cannot reach a wanted ratio by prune temperature: the pruned variants keep a fixed\n"
    "schedule of counts per block (geometric decay), with MADTP's whole scoring paid in every block."
)
COLUMNS = {
    "variant": "{}",
    "dtype": "{}",
    "batch": "{}",
    "flops_ratio": "{:.3f}",
    "gmacs": "{:.3f}",
    "median_ms": "{:.1f}",
    "speedup": "{:.2f}",
    "realised": "{:.3f}",
    "peak_memory_mib": "{:.0f}",
}
_MIB = 1 << 20


@dataclass(frozen=True)
class Variant:
    """A forward to measure: kept is its schedule, target_ratio what that was made for; None where dense."""

    name: str
    target_ratio: float | None = None
    kept: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Run:
    """One variant at one dtype and batch size, as JSON and table show it.

    kept: tokens kept behind each block, class and merged token left out. flops_ratio: multiply-adds spent,
    MAG included, as a share of the dense tower's. gmacs: 1e9 multiply-adds an image (the paper's "GFLOPs").
    median_ms, fastest_ms: one forward of the whole batch. speedup: over our dense forward, by medians.
    realised: speedup / multiply-add cut, that is speedup * flops_ratio. peak_memory_mib: above the resting
    process, weights left out; None where the system does not tell.
    """

    variant: str
    dtype: str
    batch: int
    target_ratio: float | None
    kept: tuple[int, ...] | None
    flops_ratio: float
    gmacs: float
    median_ms: float
    fastest_ms: float
    speedup: float
    realised: float | None
    peak_memory_mib: float | None


class ScoredStaticPruner(StaticPruner):
    """The static schedule with MADTP's threshold computed beside it, as a block that uses it would pay."""

    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
        importance, needed = super().decide(tokens, signals, step)
        assert step.guidance is not None
        threshold(importance, step.guidance, step.prune_temperature, real_tokens(tokens))
        return importance, needed


class VisionTower:
    """A BLIP vision tower with scrambled weights and alignment tokens, and the forwards that are compared."""

    def __init__(self, geometry: str, device: torch.device) -> None:
        options, alignment_tokens = GEOMETRIES[geometry]
        width, size = options["width"], options["image_size"]
        config = blip_config(**options)
        self.model: Any = build_blip_vision(config)
        self.alignment = Alignment(alignment_tokens, width, {BRANCH: (width, options["vision_blocks"])})
        self.geometry = vision_geometry(config.vision_config, size, size)
        self.alignment_geometry = AlignmentGeometry(alignment_tokens, width)
        for module in self.modules:
            scramble(module)
            module.to(device=device).eval()
        self.device = device

    @property
    def modules(self) -> tuple[nn.Module, nn.Module]:
        """What holds weights."""
        return self.model, self.alignment

    def cast(self, dtype: torch.dtype) -> None:
        """Bring the weights to dtype."""
        for module in self.modules:
            module.to(dtype=dtype)

    def images(self, batch: int, dtype: torch.dtype) -> Tensor:
        """Noise [B, 3, height, width]."""
        shape = (batch, 3, self.geometry.image_height, self.geometry.image_width)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return noise.to(self.device, dtype)

    def hugging_face(self, pixel_values: Tensor) -> Tensor:
        """Hugging Face's own forward, whose attention is an explicit softmax."""
        hidden: Tensor = self.model(pixel_values).last_hidden_state
        return hidden

    def ours(self, pixel_values: Tensor, kept: Sequence[int] | None) -> Encoded:
        """Our forward with its final norm: dense over torch's fused attention, or pruned to a schedule."""
        pruning = None
        if kept is not None:
            on = torch.ones(len(pixel_values), device=self.device)
            pruning = Pruning(ScoredStaticPruner({BRANCH: kept}), on, MAX_KEEP)
        tokens, blocks = embed_image(self.model, pixel_values), vision_blocks(self.model)
        encoded = encode(tokens, blocks, BRANCH, pruning=pruning, alignment=self.alignment)
        normed = encoded.tokens.with_hidden(self.model.post_layernorm(encoded.tokens.hidden))
        return Encoded(normed, encoded.tokens_in, encoded.needed, encoded.kept, None)

    def variants(self, ratios: Sequence[float]) -> list[Variant]:
        """Hugging Face's, our dense one, and one for every ratio."""
        pruned = [
            Variant(
                f"pruned_{ratio:g}", ratio, geometric_schedule(self.geometry, self.alignment_geometry, ratio)
            )
            for ratio in dict.fromkeys(ratios)
        ]
        return [Variant(HUGGING_FACE), Variant(DENSE), *pruned]

    def measure(self, variants: Sequence[Variant], dtype: str, batch: int, repeats: int) -> list[Run]:
        """Run every variant at one dtype and batch size, in turn."""
        self.cast(DTYPES[dtype])
        pixel_values = self.images(batch, DTYPES[dtype])
        steps: dict[str, Callable[[], object]] = {
            variant.name: partial(self.ours, pixel_values, variant.kept) for variant in variants
        }
        steps[HUGGING_FACE] = partial(self.hugging_face, pixel_values)
        for variant in variants:
            self._check(variant, pixel_values)
        seconds = interleaved_seconds(steps, repeats, self.device)
        dense_s = statistics.median(seconds[DENSE])

        runs = []
        for variant in variants:
            is_pruned = variant.kept is not None
            trace = scheduled_trace(self.geometry, variant.kept)
            alignment = self.alignment_geometry if is_pruned else None
            ratio = flops_ratio(self.geometry, trace, alignment)
            speedup = dense_s / statistics.median(seconds[variant.name])
            peak = peak_growth_bytes(steps[variant.name], self.device)
            runs.append(
                Run(
                    variant=variant.name,
                    dtype=dtype,
                    batch=batch,
                    target_ratio=variant.target_ratio,
                    kept=trace.kept if is_pruned else None,
                    flops_ratio=ratio,
                    gmacs=vision_macs(self.geometry, trace, alignment) / 1e9,
                    median_ms=1e3 * statistics.median(seconds[variant.name]),
                    fastest_ms=1e3 * min(seconds[variant.name]),
                    speedup=speedup,
                    realised=speedup * ratio if is_pruned else None,
                    peak_memory_mib=None if peak is None else peak / _MIB,
                )
            )
        return runs

    def _check(self, variant: Variant, pixel_values: Tensor) -> None:
        """Assert that the forward keeps what the multiply-adds are counted for, and stays finite."""
        encoded, trace = self.ours(pixel_values, variant.kept), scheduled_trace(self.geometry, variant.kept)
        assert encoded.tokens_in[:, 0].tolist() == list(trace.tokens_in), variant
        assert encoded.kept[:, 0].tolist() == list(trace.kept), variant
        assert bool(encoded.tokens.hidden.isfinite().all()), variant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `madtp bench encoder`."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="batch sizes (default: 1 8)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="default: all")
    parser.add_argument(
        "--ratios",
        type=float,
        nargs="+",
        default=[0.7, 0.5, 0.3],
        help="multiply-adds to spend, as shares of the dense forward's (default: 0.7 0.5 0.3)",
    )
    parser.add_argument("--repeats", type=int, default=10, help="timed rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as torch chooses)")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="base", help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON, too")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All runs that the arguments ask for and the machine they ran on, JSON-able; raises ConfigError."""
    numbers = [
        arguments.repeats,
        *arguments.batch,
        *([] if arguments.threads is None else [arguments.threads]),
    ]
    if min(numbers) < 1:
        raise ConfigError(f"--batch, --repeats and --threads start at 1, got {min(numbers)}")
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"--device {device}: torch {torch.__version__} sees no CUDA device; use --device cpu"
        )
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    runs: list[Run] = []
    with torch.inference_mode():
        tower = VisionTower(arguments.geometry, device)
        variants = tower.variants(arguments.ratios)
        for dtype in arguments.dtype:
            for batch in arguments.batch:
                runs += tower.measure(variants, dtype, batch, arguments.repeats)
    return {
        "benchmark": "encoder",
        "note": NOTE.replace("\n", " "),
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "cpu": cpu_model(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": importlib.metadata.version("transformers"),
        },
        "geometry": {"name": arguments.geometry, **asdict(tower.geometry)},
        "alignment": asdict(tower.alignment_geometry),
        "repeats": arguments.repeats,
        "runs": [asdict(run) for run in runs],
    }


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the JSON to --out and a table to standard output; returns the exit status."""
    result = measure(arguments)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    machine = result["machine"]
    place = f"{machine['device']} ({machine['cpu']}, {machine['threads']} threads, torch {machine['torch']})"
    sys.stdout.write(
        f"BLIP vision tower, {arguments.geometry} geometry, on {place};\n"
        f"median of {arguments.repeats} interleaved rounds.\n"
        f"{NOTE}\n\n{render(COLUMNS, result['runs'])}\n"
    )
    return 0
