"""Langevin steps: quality over the number of steps per level, and the step-size multiplier that the search chose."""

from __future__ import annotations

from matplotlib.figure import Figure

from experiments.metrics import metric
from experiments.report import style
from experiments.report.figures.common import curves_of_cells
from experiments.report.study import Study


def draw(study: Study) -> dict[str, Figure]:
    """``steps``. Raises `MissingArray` when nothing is measured."""
    quality = study.required("fd").sort_values(["method", "steps"])
    multiplier = study.measured("step_multiplier").sort_values(["method", "steps"])
    figure, (left, right) = style.figure(2, width=7.4, height=3.1)
    # Without a step there is nothing to search.
    for axes, cells in ((left, quality), (right, multiplier[multiplier["steps"] > 0])):
        curves_of_cells(axes, cells.assign(label=cells["method"].map(study.method_label)), "steps")
        axes.set_xscale("symlog", linthresh=1)
        ticks = sorted(set(cells["steps"]))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlabel("Langevin steps per level, K")
    style.logarithmic(left, "y")
    left.set_ylabel(metric("fd").axis(quality["protocol"].iloc[0]))
    left.legend()
    right.set_ylabel("Step-size multiplier m, searched")
    return {"steps": figure}
