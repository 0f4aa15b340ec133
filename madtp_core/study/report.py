"""Studies of several models as one table and one plot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from madtp_core.errors import ConfigError
from madtp_core.study.drawing import COLOURS, new_figure
from madtp_core.study.figures import table
from madtp_core.study.study import CHEAP, FIFO, PACKED, TRUTH, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Orders of batching in the plot, from what is simplest to what is best; the table has all of them.
_PLOTTED: Final = (
    FIFO,
    f"sorted by {CHEAP}",
    "sorted by block 1",
    "regrouped after block 1",
    "regrouped after block 2",
    f"sorted by {TRUTH}",
    PACKED,
)
_COSTS: Final = ("needed_over_kept", "needed_over_kept_simulated", "keep_efficiency", "flops_ratio")


def write_report(studies: Sequence[Study], directory: Path) -> list[Path]:
    """Write difficulty.md and difficulty.png into a directory; returns both.

    Raises ConfigError without a study, or without matplotlib.
    """
    if not studies:
        raise ConfigError("there is no study to report")
    directory.mkdir(parents=True, exist_ok=True)
    text, plot = directory / "difficulty.md", directory / "difficulty.png"
    text.write_text(tables(studies))
    _plot(studies, plot)
    return [text, plot]


def tables(studies: Sequence[Study]) -> str:
    """Markdown: needs, correlations, orders of batching, and what was really run."""
    sizes = sorted({size for study in studies for size in study.batches})
    parts = [
        "How much requests need (tokens needed / tokens of a dense run, alone)",
        _table(studies, ["mean", "sd", "p10", "p50", "p90"], lambda study, name: f"{study.needs[name]:.3f}"),
        "Rank correlation with a request's need, on held-out requests (95 % interval)",
        _table(studies, _names(study.correlations for study in studies), _correlation),
        "Rank correlation of single figures",
        _table(studies, _names(study.features for study in studies), _feature),
    ]
    for size in sizes:
        parts += [
            f"Tokens needed / tokens kept in batches of {size}, from needs alone",
            _table(studies, _names(study.batches[size] for study in studies), _order(size)),
            f"As really run, batches of {size}: needed alone / kept (simulated), flops_ratio, accuracy",
            _table(studies, _names(study.really_run[size] for study in studies), _run(size)),
        ]
    headings = (f"**{text}**" if row % 2 == 0 else text for row, text in enumerate(parts))
    return "\n\n".join(headings) + "\n"


def _names(parts: Iterable[Mapping[str, object]]) -> list[str]:
    """Every name that a study has, in the order in which they first appear."""
    return list(dict.fromkeys(name for part in parts for name in part))


def _table(studies: Sequence[Study], names: Sequence[str], cell: Callable[[Study, str], str]) -> str:
    """A row a name, a column a study."""
    head = ["", *(str(study.about["model"]) for study in studies)]
    rows = [[name, *(cell(study, name) for study in studies)] for name in names]
    return table(head, rows)


def _correlation(study: Study, name: str) -> str:
    found = study.correlations.get(name)
    return "" if found is None else f"{found.spearman:.2f} ({found.low:.2f}..{found.high:.2f})"


def _feature(study: Study, name: str) -> str:
    return f"{study.features[name]:+.2f}" if name in study.features else ""


def _order(size: int) -> Callable[[Study, str], str]:
    def cell(study: Study, name: str) -> str:
        mean, spread = study.batches[size].get(name, (None, None))
        return "" if mean is None else f"{mean:.3f} ± {spread:.3f}"

    return cell


def _run(size: int) -> Callable[[Study, str], str]:
    def cell(study: Study, name: str) -> str:
        found = study.really_run[size][name]
        scores = [value for key, value in found.items() if key not in _COSTS]
        score = f", {scores[0]:.3f}" if scores else ""
        simulated = f"({found['needed_over_kept_simulated']:.3f})"
        return f"{found['needed_over_kept']:.3f} {simulated}, {found['flops_ratio']:.3f}{score}"

    return cell


def _plot(studies: Sequence[Study], path: Path) -> None:
    sizes = sorted({size for study in studies for size in study.batches})
    figure = new_figure(6.0 * (1 + len(sizes)), 5.2)
    axes: list[Axes] = list(figure.subplots(1, 1 + len(sizes), squeeze=False)[0])
    names = _names(study.correlations for study in studies)
    _bars(axes[0], studies, names, _bounds, "Rank correlation with need")
    for size, place in zip(sizes, axes[1:], strict=True):
        title = f"Needed / kept, batches of {size}"
        _bars(place, studies, _PLOTTED, _ratio(size), title)
    axes[0].legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)


def _ratio(size: int) -> Callable[[Study, str], tuple[float, float]]:
    return lambda study, name: study.batches[size][name]


def _bounds(study: Study, name: str) -> tuple[float, float]:
    """Height and half the interval's width; nothing where a model has no such predictor."""
    found = study.correlations.get(name)
    return (0.0, 0.0) if found is None else (found.spearman, (found.high - found.low) / 2)


def _bars(
    axes: Axes,
    studies: Sequence[Study],
    names: Sequence[str],
    value: Callable[[Study, str], tuple[float, float]],
    title: str,
) -> None:
    """A group of horizontal bars a name, a bar a study, its spread as a whisker."""
    thickness = 0.8 / len(studies)
    for number, study in enumerate(studies):
        pairs = [value(study, name) for name in names]
        places = [row + (number - (len(studies) - 1) / 2) * thickness for row in range(len(names))]
        axes.barh(
            places,
            [mean for mean, _ in pairs],
            thickness,
            xerr=[spread for _, spread in pairs],
            color=COLOURS[number % len(COLOURS)],
            error_kw={"linewidth": 0.8},
            label=str(study.about["model"]),
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.grid(axis="x", linewidth=0.4)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=10)
