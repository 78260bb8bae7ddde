"""Speed-up: quality against what a sample costs, and in what share of DRL's time CDRL's samples are better."""

from __future__ import annotations

import textwrap

import pandas as pd
from matplotlib.figure import Figure

from experiments.metrics import metric
from experiments.report import style
from experiments.report.study import Study
from experiments.report.tables import difference_text, significant

_COSTS = {"grad_evals": "Cost per sample, in energy gradients", "milliseconds": "Milliseconds per sample"}


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
    figure.suptitle(textwrap.fill(verdict(study, cells), 90), fontsize=8.5)
    return {"cost": figure}


def verdict(study: Study, cells: pd.DataFrame) -> str:
    """The claim on these cells: how little time a sample of CDRL may take and still be better than DRL's best?

    DRL's best is that of all its numbers of steps, whatever it was trained with. CDRL's is the cheapest that a test
    over seeds finds better; without one, the best in at most the same time.

    Args:
        study: that the cells are of.
        cells: of one metric and protocol, where lower is better, with ``milliseconds`` per sample.
    """
    drl, cdrl = (cells[cells["method"] == method] for method in ("drl", "cdrl"))
    if drl.empty or cdrl.empty:
        return "DRL or CDRL is not measured yet"
    other = drl.sort_values("value").iloc[0]
    cheaper = cdrl[cdrl["milliseconds"] <= other["milliseconds"]].sort_values("milliseconds")
    if cheaper.empty:
        return f"Every CDRL takes longer than {_fact('DRL', other)}"
    tests = [study.difference(cell, other) for _, cell in cheaper.iterrows()]
    better = [place for place, test in enumerate(tests) if test and test.shown and test.value < 0]
    place = better[0] if better else int(cheaper["value"].argmin())
    chosen, test = cheaper.iloc[place], tests[place]
    share = chosen["milliseconds"] / other["milliseconds"]
    outcome = f"better in {share:.0%} of the time" if better else "not shown to be better"
    proof = f"difference {difference_text(test)}" if test else "one seed, no test"
    return f"{_fact('CDRL', chosen)}; DRL's best, {_fact('', other)}: {outcome} ({proof})"


def _fact(name: str, cell: pd.Series) -> str:
    """As in "CDRL, K = 3: 12.2 in 2.5 ms"."""
    score, milliseconds = significant(cell["value"], 3), significant(cell["milliseconds"], 2)
    return f"{name and name + ', '}K = {cell['steps']:g}: {score} in {milliseconds} ms"
