"""Speed-up: quality against what a sample costs, and whether CDRL beats DRL in half the time."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from experiments.metrics import metric
from experiments.report import style
from experiments.report.study import Study

_COSTS = {"grad_evals": "Energy-gradient evaluations per sample", "milliseconds": "Milliseconds per sample"}


def draw(study: Study) -> dict[str, Figure]:
    """``cost``, with the verdict as its title. Raises `MissingArray` when nothing is measured."""
    cells = study.required("fd").sort_values(["method", "steps"])
    cells = cells.assign(milliseconds=1000 * cells["sample_seconds"] / cells["samples"])
    figure, panels = style.figure(2, width=7.4, height=3.4, sharey=True)
    for axes, (cost, label) in zip(panels, _COSTS.items(), strict=True):
        for method, group in cells.groupby("method", sort=False):
            errors = [group["value"] - group["low"], group["high"] - group["value"]]
            axes.errorbar(
                group[cost], group["value"], yerr=errors, color=style.colour(str(method)),
                marker=style.marker(str(method)), label=study.method_label(str(method)),
            )  # fmt: skip
            for _, point in group.iterrows():
                axes.annotate(
                    f"K={point['steps']:g}", (point[cost], point["value"]), xytext=(4, 4), textcoords="offset points",
                    fontsize=7, color=style.SOFT,
                )  # fmt: skip
        axes.set_xlabel(label)
        style.logarithmic(axes, "y")
    panels[0].set_ylabel(metric("fd").axis(cells["protocol"].iloc[0]))
    panels[0].legend()
    figure.suptitle(verdict(cells), fontsize=8.5)
    return {"cost": figure}


def verdict(cells: pd.DataFrame) -> str:
    """The claim on these cells: does CDRL at K ≤ 15 beat DRL at K = 30, in at most half the time per sample?

    Args:
        cells: with ``method``, ``steps``, ``value``, ``milliseconds``, and intervals ``low`` and ``high`` (may be NaN).
    """
    drl = cells[(cells["method"] == "drl") & (cells["steps"] == 30)]
    cdrl = cells[(cells["method"] == "cdrl") & (cells["steps"].isin([15, 8]))]
    if drl.empty or cdrl.empty:
        return "Half the time: DRL at K = 30 or CDRL at K = 15 is not measured yet"
    other = drl.iloc[0]
    fast = cdrl[cdrl["milliseconds"] <= 0.5 * other["milliseconds"]]
    best = (cdrl if fast.empty else fast).sort_values("value").iloc[0]
    facts = (
        f"CDRL, K = {best['steps']:g}: {best['value']:.3g} at {best['milliseconds']:.2g} ms; "
        f"DRL, K = 30: {other['value']:.3g} at {other['milliseconds']:.2g} ms"
    )
    if fast.empty:
        outcome = "no, CDRL needs more than half of DRL's time"
    elif not best["value"] < other["value"]:
        outcome = "no, worse"
    elif math.isnan(best["high"]) or math.isnan(other["low"]):
        outcome = "better; one seed, no interval"
    else:
        outcome = "yes" if best["high"] < other["low"] else "better, within the intervals"
    return f"Half the time: {outcome} ({facts})"
