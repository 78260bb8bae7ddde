"""Out-of-distribution detection: AUROC for each other set, at the lowest level and at each level."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from experiments.report import style
from experiments.report.figures.common import Figures, curves_of_cells, image_grid
from experiments.report.study import Study


def draw(study: Study) -> Figures:
    """``auroc``; where arrays are at hand ``scores`` and ``sets``. Raises `MissingArray` without a measurement."""
    study.required("auroc")
    row, method = study.rows[0]["row"], study.rows[0]["method"]
    drawn: dict[str, Callable[[], Figure]] = {"auroc": lambda: over_levels(study)}
    if study.kept(row, "ood.npz"):
        drawn["scores"] = lambda: scores(study.arrays(row, "ood.npz")[0], method)
    if study.kept(row, "examples.npz"):
        drawn["sets"] = lambda: image_grid(study.arrays(row, "examples.npz")[0], columns=4, rows=4, across=5)
    return Figures(drawn)


def over_levels(study: Study) -> Figure:
    """One panel per set, one line per method: AUROC over the level that scores; dashed = chance."""
    cells = study.required("auroc").sort_values("level")
    sets = study.measured("auroc")["against"].unique()
    figure, axes = style.figure(len(sets), width=2.0 * len(sets) + 0.6, height=2.7, sharey=True, squeeze=False)
    for place, name in zip(axes[0], sets, strict=True):
        curves_of_cells(place, cells[cells["against"] == name], "level")
        place.axhline(0.5, color=style.SOFT, linestyle=(0, (4, 3)), linewidth=1.0)
        place.set(ylim=(0.0, 1.03), xlabel="Level", title=name)
    axes[0, 0].set_ylabel("AUROC (log-density) ↑")
    axes[0, 0].legend()
    return figure


def scores(kept: dict[str, np.ndarray], method: str) -> Figure:
    """The distribution of the lowest level's score for every set, as cumulative shares."""
    figure, axes = style.figure(width=5.4, height=3.0)
    for number, (name, by_level) in enumerate(kept.items()):
        values = np.sort(by_level[0])
        colour = style.colour(method) if name == "inside" else style.SPARE[number % len(style.SPARE)]
        label = "held out" if name == "inside" else name
        axes.plot(values, np.linspace(0, 1, len(values)), color=colour, label=label, linewidth=1 + (name == "inside"))
    axes.set(xlabel="f at the lowest level (log-density up to scale and constant)", ylabel="Share of images below")
    axes.legend()
    return figure
