"""Langevin steps: quality over the number of steps a level, and the step-size multiplier that the search chose."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from experiments.report import style
from experiments.report.figures.common import axis_label
from experiments.report.study import MissingArray, Study


def draw(study: Study) -> dict[str, Figure]:
    """``steps``. Raises `MissingArray` when nothing is measured."""
    quality, multiplier = over_steps(study, "fd"), over_steps(study, "step_multiplier")
    if quality.empty:
        raise MissingArray(f"{study.name}: nothing is measured yet")
    multiplier = multiplier[multiplier["steps"] > 0]  # without a step there is nothing to search
    figure, (left, right) = style.figure(2, width=7.4, height=3.1)
    for axes, cells in ((left, quality), (right, multiplier)):
        for method, group in cells.groupby("method", sort=False):
            colour = style.colour(str(method))
            label = str(group["label"].iloc[0]).partition(",")[0]
            axes.plot(group["steps"], group["value"], color=colour, marker=style.marker(str(method)), label=label)
            axes.fill_between(group["steps"], group["low"], group["high"], color=colour, alpha=0.16, linewidth=0)
        axes.set_xscale("symlog", linthresh=1)
        ticks = sorted(set(cells["steps"]))
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlabel("Langevin steps a level, K")
    style.logarithmic(left, "y")
    left.set_ylabel(axis_label("fd", quality["protocol"].iloc[0]))
    left.legend()
    right.set_ylabel("Step-size multiplier m, searched")
    return {"steps": figure}


def over_steps(study: Study, metric: str) -> pd.DataFrame:
    """The cells of a metric with their K (the end of the row's id), in its order."""
    cells = study.measured(metric)
    steps = [int(row.rpartition("_")[2]) for row in cells["row"]]
    return cells.assign(steps=steps).sort_values(["method", "steps"])
