"""What a panel and a dashboard are, and the PromQL that panels share."""

from __future__ import annotations

from dataclasses import dataclass

ALL = 'model=~"$model",task=~"$task"'  # what the variables at the top have chosen
RATE = "$__rate_interval"
MODEL = "{{model}} {{task}}"  # a legend


@dataclass(frozen=True)
class Panel:
    """One panel; `queries` are pairs of PromQL and legend."""

    title: str
    description: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 12
    is_stacked: bool = False
    top: float | None = None


@dataclass(frozen=True)
class Dashboard:
    """One dashboard; a text among the panels begins a row with that title."""

    uid: str
    title: str
    description: str
    panels: tuple[Panel | str, ...]


def rate(metric: str, by: str, more: str = "") -> str:
    """A rate by labels, of what the variables have chosen; `more` are matchers that begin with a comma."""
    return f"sum by ({by}) (rate({metric}{{{ALL}{more}}}[{RATE}]))"


def mean(metric: str, by: str = "model, task") -> str:
    """The mean of a histogram's observations."""
    return f"{rate(metric + '_sum', by)} / {rate(metric + '_count', by)}"


def quantile(share: float, metric: str, by: str = "", more: str = "") -> str:
    """A quantile of a histogram, over everything or `by` labels."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(metric + '_bucket', labels, more)})"


def quantiles(metric: str, *shares: float, more: str = "") -> tuple[tuple[str, str], ...]:
    """Queries and legends of several quantiles of one histogram."""
    return tuple((quantile(share, metric, more=more), f"p{100 * share:g}") for share in shares)


def ratio(kind: str) -> str:
    """Operations of a kind / dense ones."""

    def flops(one: str) -> str:
        return rate("madtp_flops_total", "model, task", f',kind="{one}"')

    return f"{flops(kind)} / {flops('dense')}"


def or_0(query: str) -> str:
    """A query with 0 where it finds nothing: a series that begins with its first count, or needs a GPU."""
    return f"{query} or vector(0)"


def lost(kind: str, of: str) -> str:
    """1 - kind / of over the time shown, of all models together."""

    def flops(one: str) -> str:
        return f'sum(increase(madtp_flops_total{{{ALL},kind="{one}"}}[$__range]))'

    return f"1 - {flops(kind)} / {flops(of)}"
