"""Parts of figures: bars, curves with bands, effect plots, image grids."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from cdrl.pictures import tile
from experiments.measurement import interval
from experiments.report import style


class Figures(Mapping[str, Figure | None]):
    """Figures by file name, each drawn when it is asked for: one that cannot be drawn leaves the others.

    Args:
        draw: functions without arguments by file name; None is a figure that there is nothing for.
    """

    def __init__(self, draw: Mapping[str, Callable[[], Figure | None]]) -> None:
        self._draw = draw

    def __getitem__(self, name: str) -> Figure | None:
        return self._draw[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._draw)

    def __len__(self) -> int:
        return len(self._draw)


def curves_of_cells(axes: Axes, cells: pd.DataFrame, column: str) -> None:
    """A metric over a column of its cells, with intervals: one curve per label and method."""
    for (label, method), group in cells.groupby(["label", "method"], sort=False):
        curve_of_cells(axes, group, column, label=str(label), method=str(method))


def curve_of_cells(axes: Axes, cells: pd.DataFrame, column: str, **look: Any) -> None:
    """The same for cells that are one curve; ``look`` as in `curve_with_band`."""
    curve_with_band(axes, cells[column], (cells["value"], cells["low"], cells["high"]), **look)


def curve_with_intervals(
    axes: Axes, x: ArrayLike, values: ArrayLike, limits: tuple[float, float] = (-math.inf, math.inf), **look: Any
) -> None:
    """A mean curve with its 95 % band; ``values`` is ``(seeds, n)``, ``limits`` are the range of what is measured, all
    else as in `curve_with_band`."""
    curve_with_band(axes, x, interval(values, limits), **look)


def curve_with_band(axes: Axes, x: ArrayLike, bounds: Sequence[ArrayLike], *, method: str, **line: Any) -> None:
    """A curve with a band.

    Args:
        x: ``(n,)``.
        bounds: mean, low, high, each ``(n,)``; without finite bounds (a single seed) there is no band.
        method: gives colour and marker, unless ``line``, as for ``Axes.plot``, says otherwise.
    """
    mean, low, high = (np.asarray(values) for values in bounds)
    line = {"color": style.colour(method), "marker": style.marker(method), **line}
    axes.plot(x, mean, **line)
    if np.isfinite(low).any():
        axes.fill_between(np.asarray(x), low, high, color=line["color"], alpha=0.16, linewidth=0)


def bars_with_intervals(
    axes: Axes,
    labels: Sequence[str],
    values: ArrayLike,
    lows: ArrayLike,
    highs: ArrayLike,
    *,
    methods: Sequence[str],
    dots: Sequence[Sequence[float]] | None = None,
    xlabel: str = "",
    references: Mapping[str, float] | None = None,
) -> None:
    """Horizontal bars, first on top, with 95 % intervals, one dot per seed, and labelled reference lines.

    On a logarithmic axis, where a bar has no beginning, a marker stands for it: set the scale before.

    Args:
        values, lows, highs: ``(n,)``; a NaN interval is left out.
        dots: for each bar the values of its seeds.
        references: label → position of a dashed line (the floor, the ceiling).
    """
    linear = axes.get_xscale() == "linear"
    if linear:
        colours = [style.colour(method) for method in methods]
        axes.barh(np.arange(len(labels)), np.asarray(values, dtype=float), height=0.62, color=colours, alpha=0.28)
    _points(axes, labels, (values, lows, highs), methods, size=0 if linear else 7, xlabel=xlabel)
    for y, several in enumerate(dots or ()):
        jitter = np.linspace(-0.14, 0.14, len(several)) if len(several) != 1 else np.zeros(1)
        axes.plot(several, y + jitter, "o", color=style.colour(methods[y]), markersize=3.6, alpha=0.9)
    for name, value in (references or {}).items():
        axes.axvline(value, color=style.SOFT, linestyle=(0, (4, 3)), linewidth=1.0)
        axes.annotate(
            name, (value, 1.0), xycoords=("data", "axes fraction"), xytext=(3, 2), textcoords="offset points",
            fontsize=7.5, color=style.SOFT, annotation_clip=False,
        )  # fmt: skip


def effect_plot(
    axes: Axes, labels: Sequence[str], *bounds: ArrayLike, methods: Sequence[str], xlabel: str = ""
) -> None:
    """Effect sizes as a forest plot: a point per row, first on top, and the line of no effect.

    Args:
        bounds: effects and the lows and highs of their 95 % intervals, each ``(n,)``.
    """
    axes.axvline(0.0, color=style.SOFT, linewidth=1.0)
    _points(axes, labels, bounds, methods, size=6, xlabel=xlabel)


def image_grid(panels: Mapping[str, ArrayLike], *, columns: int = 8, rows: int = 8, across: int = 4) -> Figure:
    """Grids of images side by side.

    Args:
        panels: title → uint8 ``(n, H, W, C)``, C 1 or 3.
        columns, rows: images of each grid.
        across: grids beside one another before a new line begins.
    """
    lines, across = -(-len(panels) // across), min(across, len(panels))
    height = lines * (1.9 * rows / columns + 0.3)
    figure, axes = style.figure(across, lines, width=1.9 * across, height=height, squeeze=False)
    for place in axes.flat:
        place.set_axis_off()
    for place, (title, images) in zip(axes.flat, panels.items(), strict=False):
        show(place, tile(np.asarray(images)[: rows * columns], columns), title)
    return figure


def show(axes: Axes, picture: NDArray[np.uint8], title: str = "") -> None:
    """One picture ``(H, W, C)``, its pixels as they are."""
    axes.set_axis_off()
    axes.imshow(np.squeeze(picture), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title, fontsize=8.5, fontweight="normal", loc="center")


def _points(
    axes: Axes, labels: Sequence[str], bounds: Sequence[ArrayLike], methods: Sequence[str], size: float, xlabel: str
) -> None:
    """A labelled line per row: its interval, and its value as a marker unless ``size`` is 0."""
    for y, (value, low, high) in enumerate(np.array(bounds, dtype=float).T):
        colour = style.colour(methods[y])
        if np.isfinite([low, high]).all():
            axes.plot([low, high], [y, y], color=colour, linewidth=2.0, solid_capstyle="butt")
        if size:
            axes.plot([value], [y], style.marker(methods[y]), color=colour, markersize=size)
    axes.set_yticks(np.arange(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(xlabel)
