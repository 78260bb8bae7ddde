"""With and without initializer on the same chain: quality, and how many runs diverged, over the length of the chain."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from experiments.metrics import metric
from experiments.report import style
from experiments.report.figures.common import curve_of_cells
from experiments.report.study import Study

SERIES = {"with": ("with initializer", "cdrl"), "without": ("without", "drl")}
"""Of rows of the manifest: what they are called, and whose colour they have."""
STEPS, UPDATES = (3, 5, 8, 15), (3000, 1500)
_LINES = ("-", (0, (4, 2)))
"""One for each number of updates."""


def rows(series: str, updates: int) -> list[str]:
    """The rows of one line, by K."""
    return [f"{series}_{steps}-{updates}" for steps in STEPS]


def draw(study: Study) -> dict[str, Figure]:
    """``chain``. Raises `MissingArray` when nothing is measured."""
    name = study.cells["metric"].iloc[0]
    protocol = study.required(name)["protocol"].iloc[0]
    cells = study.cells[study.cells["metric"] == name].set_index("row")
    figure, (quality, divergence) = style.figure(2, width=7.6, height=3.3)
    for series, (title, method) in SERIES.items():
        for updates, line in zip(UPDATES, _LINES, strict=True):
            group = cells.loc[[row for row in rows(series, updates) if row in cells.index]]
            if group.empty:
                continue
            look = {"label": f"{title}, {updates:,} updates", "linestyle": line}
            curve_of_cells(quality, group[group["value"].notna()], "chain_steps", method=method, **look)
            look |= {"color": style.colour(method), "marker": style.marker(method)}
            divergence.plot(group["chain_steps"], group["diverged"].map(_share), **look)
    quality.set(ylabel=metric(name).axis(protocol))
    divergence.set(ylabel="Share of runs that diverged", ylim=(-0.05, 1.05))
    for axes in (quality, divergence):
        axes.set(xlabel="Langevin steps a level, K", xticks=STEPS)
    style.logarithmic(quality, "y")
    figure.legend(*divergence.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=7.5)
    return {"chain": figure}


def _share(diverged: str) -> float:
    """``"1 of 3"`` as a number; NaN where nothing has ended."""
    some, _, count = diverged.partition(" of ")
    return float(some) / float(count) if count else math.nan
