"""Toy densities: the learned log-density beside the true one, level by level, and samples beside data."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.report import style
from experiments.report.study import Study

_DEPTH = 6.0
"""Nats below the truth's peak at which the colours end."""
_POINTS = 2000


def draw(study: Study) -> dict[str, Figure]:
    """``levels-<row>`` and ``samples-<row>`` for every row at hand, of its first seed."""
    figures = {}
    for row in study.rows:
        for arrays in study.arrays(row["row"], "density.npz")[:1]:
            seeds = len(study.seeds(row["row"]))
            label = row["label"] if seeds == 1 else f"{row['label']}, the first of {seeds} seeds"
            figures[f"levels-{row['row']}"] = levels(arrays, label)
            figures[f"samples-{row['row']}"] = samples(arrays, label)
    return figures


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
