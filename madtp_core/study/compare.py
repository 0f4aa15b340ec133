"""Variants of pruning at equal multiply-adds, fine-tuned under one budget and training-free.

Three studies are of this kind: pruning methods, branches (supplement, Table 7) and the terms of token
importance (Table 8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from madtp_core.pruning import BRANCHES, MAX_KEEP, TEXT, VISION
from madtp_core.pruning.scores import CLS, SELF, TOKEN
from madtp_core.study.bench import Bench
from madtp_core.study.cells import Cells, Found
from madtp_core.study.fine_tune import FineTuning
from madtp_core.study.variant import GUIDED, NONE, Variant
from madtp_core.tasks.base import PrunedModel

DENSE: Final = "dense"
_RANDOM: Final = "random"


def branch_variants(methods: Sequence[str]) -> dict[str, Variant]:
    """Each method on the image alone, the text alone, and both."""
    choices = {"vision only": (VISION,), "language only": (TEXT,), "vision and language": BRANCHES}
    return {
        f"{method}, {said}": Variant(method, branches)
        for method in methods
        for said, branches in reversed(choices.items())
    }


def term_variants() -> dict[str, Variant]:
    """MADTP with every choice of the terms of token importance, all three first."""
    choices = [(SELF, TOKEN, CLS), (SELF, TOKEN), (SELF, CLS), (TOKEN, CLS), (SELF,), (TOKEN,), (CLS,)]
    return {
        " & ".join(f"S_{term}" for term in terms): Variant(options={"terms": list(terms)})
        for terms in choices
    }


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is compared on one model.

    variants: by name; the first is the one that others are compared with. is_free: whether training-free
    models are measured. fine_tuning: None for those alone.
    """

    variants: Mapping[str, Variant]
    ratios: Sequence[float]
    seeds: Sequence[int] = (0,)
    keep_mode: str = MAX_KEEP
    is_free: bool = True
    fine_tuning: FineTuning | None = None

    def measure(self, model: PrunedModel, bench: Bench, cells: Cells) -> None:
        """Measure all cells that are missing, seed by seed.

        A variant that reads alignment tokens has no training-free cell on a model without them.
        """
        self._cell(model, bench, cells, DENSE, Variant(NONE), 1.0, None)
        for seed in self.seeds:
            for name, variant in self.variants.items():
                own = _seeded(variant, seed)
                for wanted in (1.0,) if variant.method == NONE else self.ratios:
                    can_run = variant.method not in GUIDED or model.checkpoint.alignment is not None
                    if self.is_free and can_run and variant.method != NONE:
                        # Whatever draws nothing is measured once.
                        free_seed = seed if own != variant else None
                        self._cell(model, bench, cells, name, own, wanted, free_seed)
                    if self.fine_tuning is not None:
                        self._cell(model, bench, cells, name, own, wanted, seed, self.fine_tuning)

    def _cell(
        self,
        model: PrunedModel,
        bench: Bench,
        cells: Cells,
        name: str,
        variant: Variant,
        wanted: float,
        seed: int | None,
        fine_tuning: FineTuning | None = None,
    ) -> None:
        place = {
            "model": model.name,
            "variant": name,
            "flops_ratio": wanted,
            "keep_mode": self.keep_mode,
            "is_trained": fine_tuning is not None,
            "seed": seed,
        }

        def found() -> Found:
            of = model
            if fine_tuning is not None:
                assert seed is not None
                of = fine_tuning.model(variant, wanted, seed, (self.keep_mode,))
            tuned = bench.tuned(of, variant, wanted, keep_mode=self.keep_mode)
            return bench.measured(tuned, keep_mode=self.keep_mode)

        cells.measured(place, found)


def _seeded(variant: Variant, seed: int) -> Variant:
    """Random pruning draws by the seed; no other method draws."""
    if variant.method != _RANDOM:
        return variant
    return replace(variant, options={**variant.options, "seed": seed})
