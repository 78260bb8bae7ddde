"""Sample quality: the score of each method with its seeds, the score against budget and seconds, and samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.metrics import metric
from experiments.report import style
from experiments.report.figures.common import Figures, bars_with_intervals, curve_with_intervals, image_grid
from experiments.report.study import MissingArray, Study

_REFERENCES = {"real": "real, held out", "noise": "noise"}


def draw(study: Study) -> Figures:
    """``score``, ``budget``, ``seconds``, ``samples`` where at hand. Raises `MissingArray` without a measurement."""
    _first(study)
    return Figures({one.__name__: partial(one, study) for one in (score, budget, seconds, samples)})


def score(study: Study) -> Figure | None:
    """The first metric of every row: bars with intervals, a dot per seed, floor and ceiling as lines."""
    name, protocol = _first(study)
    cells = study.measured(name, protocol)
    methods = cells[~cells["method"].isin(list(_REFERENCES))]
    if methods.empty:
        return None
    figure, axes = style.figure(width=4.8, height=0.9 + 0.42 * len(methods))
    style.logarithmic(axes, "x")
    measured = dict(zip(cells["method"][::-1], cells["value"][::-1], strict=True))  # of several the first
    # An unbiased distance of real images may be below zero, where a logarithmic axis has no place for it.
    references = {label: measured[row] for row, label in _REFERENCES.items() if measured.get(row, 0) > 0}
    bars_with_intervals(
        axes, list(methods["label"]), methods["value"], methods["low"], methods["high"],
        methods=list(methods["method"]), dots=[study.seed_values(cell) for _, cell in methods.iterrows()],
        xlabel=metric(name).axis(protocol), references=references,
    )  # fmt: skip
    shown = [*references.values(), *methods["value"][methods["value"] > 0]]
    if shown:
        axes.set_xlim(left=max(0.6 * min(shown), 1e-6), right=1.6 * max(shown))
    return figure


def budget(study: Study) -> Figure | None:
    """The score along training against energy-gradient evaluations × images, with bands over seeds."""
    return _along(study, "Training budget: energy-gradient evaluations × images", lambda row, spent: spent)


def seconds(study: Study) -> Figure | None:
    """The same against the seconds that training took, in the mean over seeds; an iteration takes as long as any."""
    taken = study.cells.groupby("row")["train_seconds"].first()
    device = study.cells["device"].iloc[0]
    return _along(study, f"Training seconds ({device})", lambda row, spent: spent / spent[-1] * float(taken[row]))


def _along(study: Study, xlabel: str, where: Callable[[str, NDArray[Any]], NDArray[Any]]) -> Figure | None:
    """The score along training; ``where`` places a row's milestones, given what was spent at each."""
    name, protocol = _first(study)
    figure, axes = style.figure(width=4.8, height=3.0)
    for row in study.rows:
        if curves := study.arrays(row["row"], "curve.npz"):
            length = min(len(curve["value"]) for curve in curves)
            values = np.stack([curve["value"][:length] for curve in curves])
            x = where(row["row"], curves[0]["grad_evals"][:length])
            limits = metric(name).bounds
            curve_with_intervals(axes, x, values, limits, label=row["label"], method=row["method"])
    if not axes.lines:
        return None
    style.logarithmic(axes, "x", "y")
    axes.set(xlabel=xlabel, ylabel=metric(name).axis(protocol))
    for floor in study.measured(name, protocol).query("method == 'real' and value > 0")["value"]:
        axes.axhline(floor, color=style.SOFT, linestyle=(0, (4, 3)), linewidth=1.0, label=_REFERENCES["real"])
    axes.legend()
    return figure


def samples(study: Study) -> Figure | None:
    """Grids of the first seed that has one; real images first."""
    rows = sorted(study.rows, key=lambda row: (row["method"] == "noise", row["method"] != "real"))
    panels = {row["label"]: grid for row in rows for grid in study.arrays(row["row"], "grid.npy")[:1]}
    return image_grid(panels, columns=8, rows=8, across=3 if len(panels) > 4 else 4) if panels else None


def _first(study: Study) -> tuple[str, str]:
    """The first cell that has a value says which metric and protocol the figures show."""
    measured = study.cells[study.cells["value"].notna()]
    if measured.empty:
        raise MissingArray(f"{study.name}: nothing is measured yet")
    return str(measured["metric"].iloc[0]), str(measured["protocol"].iloc[0])
