"""Speed-up: quality against what a sample costs, and whether CDRL beats DRL in half the time."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from experiments.report import style
from experiments.report.figures.common import axis_label
from experiments.report.figures.langevin_steps import over_steps
from experiments.report.study import MissingArray, Study

_COSTS = {"grad_evals": "Energy-gradient evaluations a sample", "milliseconds": "Milliseconds a sample"}


def draw(study: Study) -> dict[str, Figure]:
    """``cost``, with the verdict as its title. Raises `MissingArray` when nothing is measured."""
    cells = over_steps(study, "fd")
    if cells.empty:
        raise MissingArray(f"{study.name}: nothing is measured yet")
    cells = cells.assign(milliseconds=1000 * cells["sample_seconds"] / cells["samples"])
    figure, panels = style.figure(2, width=7.4, height=3.4, sharey=True)
    for axes, (cost, label) in zip(panels, _COSTS.items(), strict=True):
        for method, group in cells.groupby("method", sort=False):
            colour = style.colour(str(method))
            errors = [group["value"] - group["low"], group["high"] - group["value"]]
            name = str(group["label"].iloc[0]).partition(",")[0]
            axes.errorbar(
                group[cost], group["value"], yerr=errors, color=colour, marker=style.marker(str(method)), label=name
            )
            for _, point in group.iterrows():
                axes.annotate(
                    f"K={point['steps']}", (point[cost], point["value"]), xytext=(4, 4), textcoords="offset points",
                    fontsize=7, color=style.SOFT,
                )  # fmt: skip
        axes.set_xlabel(label)
        style.logarithmic(axes, "y")
    panels[0].set_ylabel(axis_label("fd", cells["protocol"].iloc[0]))
    panels[0].legend()
    figure.suptitle(verdict(cells), fontsize=8.5)
    return {"cost": figure}


def verdict(cells: pd.DataFrame) -> str:
    """The claim on these cells: does CDRL at K ≤ 15 beat DRL at K = 30, in at most half the time a sample?

    Args:
        cells: with ``method``, ``steps``, ``value``, ``milliseconds``, and intervals ``low`` and ``high`` (may be NaN).
    """
    drl = cells[(cells["method"] == "drl") & (cells["steps"] == 30)]
    cdrl = cells[(cells["method"] == "cdrl") & (cells["steps"].isin([15, 8]))]
    if drl.empty or cdrl.empty:
        return "Half the time: DRL at K = 30 or CDRL at K = 15 is not measured yet"
    other = drl.iloc[0]
    fast = cdrl[cdrl["milliseconds"] <= 0.5 * other["milliseconds"]]
    one = (cdrl if fast.empty else fast).sort_values("value").iloc[0]
    facts = (
        f"CDRL, K = {one['steps']}: {one['value']:.3g} at {one['milliseconds']:.2g} ms; "
        f"DRL, K = 30: {other['value']:.3g} at {other['milliseconds']:.2g} ms"
    )
    if fast.empty:
        return f"Half the time: no, CDRL needs more than half of DRL's time ({facts})"
    return f"Half the time: {_outcome(one, other)} ({facts})"


def _outcome(one: pd.Series, other: pd.Series) -> str:
    """What the values and their intervals say of ``one`` being lower than ``other``."""
    if not one["value"] < other["value"]:
        return "no, worse"
    if math.isnan(one["high"]) or math.isnan(other["low"]):
        return "better; one seed, no interval"
    return "yes" if one["high"] < other["low"] else "better, within the intervals"
