"""Toy densities: the learned log-density beside the true one, level by level, and samples beside data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.report import style
from experiments.report.figures.common import Figures
from experiments.report.study import Study

_DEPTH = 6.0
"""Nats below the truth's peak at which the colours end."""
_POINTS = 2000


def draw(study: Study) -> Figures:
    """``levels-<row>`` and ``samples-<row>`` for every row at hand, of its first seed."""

    def of_first(one: Callable[[dict[str, NDArray[Any]], str], Figure], row: dict[str, Any]) -> Figure:
        seeds = len(study.seeds(row["row"]))
        label = row["label"] if seeds == 1 else f"{row['label']}, the first of {seeds} seeds"
        return one(study.arrays(row["row"], "density.npz")[0], label)

    at_hand = [row for row in study.rows if study.kept(row["row"], "density.npz")]
    return Figures(
        {f"{one.__name__}-{row['row']}": partial(of_first, one, row) for row in at_hand for one in (levels, samples)}
    )


def levels(arrays: dict[str, NDArray[Any]], label: str) -> Figure:
    """Log-densities in nats: truth above, learned below, one column per level, one colour scale per column."""
    count = len(arrays["half"])
    figure, axes = style.figure(count, 2, width=1.6 * count, height=3.7, squeeze=False)
    for level in range(count):
        half, peak = float(arrays["half"][level]), float(arrays["truth"][level].max())
        for place, name in zip(axes[:, level], ("truth", "learned"), strict=True):
            place.imshow(
                arrays[name][level], origin="lower", extent=(-half, half, -half, half), cmap="cividis",
                vmin=peak - _DEPTH, vmax=peak, interpolation="nearest",
            )  # fmt: skip
            _bare(place, f"level {level}" if name == "truth" else "")
            if level == 0:
                place.set_ylabel(name)
    figure.suptitle(f"{label}: log-density, the top {_DEPTH:g} nats", fontsize=9.5)
    return figure


def samples(arrays: dict[str, NDArray[Any]], label: str) -> Figure:
    """Held-out points, samples, and both densities at the lowest level."""
    half = float(arrays["half"][0])
    figure, axes = style.figure(4, width=7.6, height=2.2)
    for place, name in zip(axes[:2], ("data", "samples"), strict=True):
        points = arrays[name][:_POINTS]
        place.plot(points[:, 0], points[:, 1], ",", color=style.INK, rasterized=True)
        place.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
        _bare(place, name)
    top = float(np.exp(arrays["truth"][0]).max())
    for place, name in zip(axes[2:], ("truth", "learned"), strict=True):
        density, extent = np.exp(arrays[name][0]), (-half, half, -half, half)
        place.imshow(density, origin="lower", extent=extent, cmap="cividis", vmin=0, vmax=top)
        _bare(place, f"density, {name}")
    figure.suptitle(label, fontsize=9.5)
    return figure


def _bare(axes: Axes, title: str) -> None:
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8.5, fontweight="normal", loc="center")
