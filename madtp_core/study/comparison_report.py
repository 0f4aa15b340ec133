"""Comparisons of variants as tables and plots, from their cells alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from madtp_core.study.cells import Cells, Found
from madtp_core.study.compare import DENSE
from madtp_core.study.drawing import Curve, Panel
from madtp_core.study.figures import (
    COST,
    COST_WIDTH,
    EMPTY,
    difference,
    is_near,
    margin,
    mean_ratio,
    measured,
    percent,
    ratio,
    section,
    spread,
    table,
    with_spread,
)

REFERENCES: Final = {
    "methods": ("madtp", "madtp:vision", "madtp:text"),
    "branches": ("madtp, vision and language",),
    "tis": ("S_self & S_token & S_cls",),
}
_HEAD: Final = (
    "reduction",
    "variant",
    "{measure}",
    "flops_ratio",
    "multiply-adds, M",
    "against dense",
)
_NOTE: Final = (
    "Accuracy times 100, ± standard deviation over seeds. Differences: paired, ± half the 95 % interval over "
    "samples, then seed by seed. (!): more than 3 % off the wanted multiply-adds, which are out of reach or "
    "were missed by the search. A pair farther apart than that says at which cost."
)


def tables(cells: Cells) -> str:
    """Markdown: a section a model, its fine-tuned variants and its training-free ones."""
    parts = []
    for model, about in cells.models.items():
        body = [
            f"**{title}**\n\n{_table(cells, model, is_trained)}"
            for is_trained, title in ((True, "Fine-tuned under one budget"), (False, "Training-free"))
            if _names(cells, model, is_trained)
        ]
        parts.append(section(model, about, "\n\n".join(body)))
    return "\n".join(parts) + f"\n{_NOTE}\n"


def panels(cells: Cells) -> list[Panel]:
    """A model's methods as curves over cost; its branches or terms as a row each."""
    draw = _curves if cells.study == "methods" else _rows
    return [draw(cells, model) for model in cells.models]


def runs(cells: Cells, model: str, variant: str, wanted: float, is_trained: bool) -> list[Found]:
    """The cells of all seeds, by seed."""
    found = cells.of(model=model, variant=variant, flops_ratio=wanted, is_trained=is_trained)
    return [cell for _, cell in sorted(found, key=lambda one: one[0]["seed"] or 0)]


def _variants(cells: Cells) -> list[str]:
    """Those of the study, in one order for all its models, so that they look alike everywhere."""
    return [name for name in cells.values("variant") if name != DENSE]


def _names(cells: Cells, model: str, is_trained: bool) -> list[str]:
    measured_here = cells.values("variant", model=model, is_trained=is_trained)
    return [name for name in _variants(cells) if name in measured_here]


def _table(cells: Cells, model: str, is_trained: bool) -> str:
    names = _names(cells, model, is_trained)
    references = [name for name in REFERENCES[cells.study] if name in names]
    dense = runs(cells, model, DENSE, 1.0, False)
    head = [part.format(measure=cells.models[model]["measure"]) for part in _HEAD]
    head += [f"{reference} − it" for reference in references]
    rows = []
    if dense:
        rows.append(["0", DENSE, with_spread(dense), *_cost(dense, 1.0), *[EMPTY] * (1 + len(references))])
    for wanted in sorted(cells.values("flops_ratio", model=model, is_trained=is_trained), reverse=True):
        for name in names:
            own = runs(cells, model, name, wanted, is_trained)
            if own:
                against = difference(dense, own) if dense else EMPTY
                leads = [
                    EMPTY if name == one else _lead(runs(cells, model, one, wanted, is_trained), own)
                    for one in references
                ]
                cost = _cost(own, wanted)
                rows.append([f"{1 - wanted:.3g}", name, with_spread(own), *cost, against, *leads])
    return table(head, rows)


def _lead(reference: Sequence[Found], own: Sequence[Found]) -> str:
    if not reference:
        return EMPTY
    lead, cost = difference(own, reference), mean_ratio(reference) / mean_ratio(own)
    return lead if is_near(cost, 1.0) else f"{lead} at {cost:.2f} x its cost"


def _cost(own: Sequence[Found], wanted: float) -> list[str]:
    spent = sum(run["multiply_adds"] for run in own) / len(own)
    return [ratio(own, wanted), f"{spent / 1e6:,.1f}"]


def _curves(cells: Cells, model: str) -> Panel:
    variants = _variants(cells)
    curves = []
    for is_trained in (True, False):
        ratios = sorted(cells.values("flops_ratio", model=model, is_trained=is_trained))
        for name in _names(cells, model, is_trained):
            found = [own for wanted in ratios if (own := runs(cells, model, name, wanted, is_trained))]
            known = [(own, mean) for own in found if (mean := percent(own)) is not None]
            curves.append(
                Curve(
                    name if is_trained else f"{name}, training-free",
                    [(mean_ratio(own), mean) for own, mean in known],
                    [100 * spread(own) for own, _ in known],
                    variants.index(name),
                    is_dashed=not is_trained,
                )
            )
    level = percent(runs(cells, model, DENSE, 1.0, False))
    return Panel(model, COST, measured(cells.models[model]), curves, level=level, least_width=COST_WIDTH)


def _rows(cells: Cells, model: str) -> Panel:
    """A row a variant and ratio; the measured flops_ratio stands in its name."""
    names: list[str] = []
    curves = []
    for colour, is_trained in enumerate((False, True)):
        dots, spreads = [], []
        for wanted in sorted(cells.values("flops_ratio", model=model, is_trained=is_trained), reverse=True):
            for name in _names(cells, model, is_trained):
                own = runs(cells, model, name, wanted, is_trained)
                mean = percent(own)
                if mean is not None:
                    dots.append((mean, float(len(names))))
                    spreads.append(100 * (spread(own) if len(own) > 1 else margin(own[0])))
                    names.append(f"{name} ({mean_ratio(own):.2f})")
        label = "fine-tuned" if is_trained else "training-free"
        if dots:
            curves.append(Curve(label, dots, spreads, colour, is_joined=False))
    level = percent(runs(cells, model, DENSE, 1.0, False))
    title = f"{model}; in brackets multiply-adds / dense"
    return Panel(title, measured(cells.models[model]), "", curves, names, level=level)
