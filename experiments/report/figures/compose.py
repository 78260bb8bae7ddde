"""Composition: how often all concepts are there, over the weight and for each combination; what samples look like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cdrl.pictures import tile
from experiments.report import style
from experiments.report.figures.common import Figures, curve_of_cells, show
from experiments.report.study import Study

_SERIES = {
    "all_concepts": ("all concepts", "#0072B2", "o"),
    "all_concepts_rare": ("all concepts, rare combinations", "#D55E00", "s"),
    "one_without_other": ("one concept without the other", "#009E73", "^"),
}


def draw(study: Study) -> Figures:
    """``success``; with arrays at hand ``combinations``, ``samples``. Raises `MissingArray` without a measurement."""
    cells = study.required("all_concepts")
    drawn: dict[str, Callable[[], Figure]] = {"success": lambda: success(study)}
    best = str(cells["row"].iloc[int(np.argmax(cells["value"]))])
    if study.kept(best, "compose.npz"):
        drawn["combinations"] = lambda: combinations(study.arrays(best, "compose.npz"))
        drawn["samples"] = lambda: samples(study.arrays(best, "compose.npz")[0])
    return Figures(drawn)


def success(study: Study) -> Figure:
    """The rate at which what was asked for is there, over the weight; at w = 0 nothing is asked for."""
    figure, axes = style.figure(width=5.4, height=3.2)
    for metric, (label, colour, marker) in _SERIES.items():
        cells = study.measured(metric).sort_values("weight")
        if not cells.empty:
            curve_of_cells(axes, cells, "weight", label=label, method="cdrl", color=colour, marker=marker)
    protocol = study.measured("all_concepts")["protocol"].iloc[0]
    axes.set(xlabel="Weight w of every concept (0: unconditional)", ylabel=f"Success rate ({protocol}) ↑", ylim=(0, 1))
    axes.legend()
    return figure


def combinations(kept: list[dict[str, Any]]) -> Figure:
    """For two kinds: the share of training images beside the mean success of every combination."""
    names, values = kept[0]["names"], kept[0]["combinations"]
    joint = np.mean([arrays["joint"] for arrays in kept], axis=0)
    figure, (left, right) = style.figure(2, width=6.4, height=0.5 + 0.28 * (values[:, 0].max() + 1))
    _heat_map(left, names, values, 100 * kept[0]["share"], "Training images, %")
    _heat_map(right, names, values, 100 * joint, "Samples that show both, %")
    return figure


def samples(kept: dict[str, Any], each: int = 3) -> Figure:
    """The first samples of every combination: a row per value of the first kind, a block per value of the last."""
    values, images, names = kept["combinations"], kept["images"], kept["names"]
    blocks = np.unique(values[:, -1])
    figure, axes = style.figure(len(blocks), width=1.7 * len(blocks), height=4.6, squeeze=False)
    for place, block in zip(axes.flat, blocks, strict=True):
        rows = values[:, -1] == block
        shown = images[rows][:, :each]
        show(place, tile(shown.reshape(-1, *shown.shape[2:]), each), str(names[rows][0, -1]))
    return figure


def _heat_map(axes: Axes, names: Any, values: Any, numbers: Any, title: str) -> None:
    """Numbers as a heat map, first kind down, last kind across (kinds between are averaged over)."""
    grid = np.zeros((values[:, 0].max() + 1, values[:, -1].max() + 1))
    counts = np.zeros_like(grid)
    np.add.at(grid, (values[:, 0], values[:, -1]), numbers)
    np.add.at(counts, (values[:, 0], values[:, -1]), 1)
    grid /= counts
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=max(1e-9, 2 * grid.max()), aspect="auto")
    for (row, column), number in np.ndenumerate(grid):
        axes.text(column, row, f"{number:.1f}", ha="center", va="center", fontsize=7.5, color=style.INK)
    axes.set_yticks(range(len(grid)), [names[values[:, 0] == row][0, 0] for row in range(len(grid))])
    axes.set_xticks(range(grid.shape[1]), [names[values[:, -1] == column][0, -1] for column in range(grid.shape[1])])
    axes.grid(False)
    axes.set_title(title)
