"""Parts of figures: bars, curves with bands, effect plots, image grids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from cdrl.pictures import tile
from experiments.report import style
from experiments.statistics import interval


def curve_with_intervals(axes: Axes, x: ArrayLike, values: ArrayLike, **look: Any) -> None:
    """A mean curve with its 95 % band; ``values`` is ``(seeds, n)``, all else as in `curve_with_band`."""
    curve_with_band(axes, x, *interval(values), **look)


def curve_with_band(
    axes: Axes,
    x: ArrayLike,
    mean: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    label: str,
    method: str,
    colour: str | None = None,
    positive: bool = False,
    **line: Any,
) -> None:
    """A curve with a band.

    Args:
        x, mean, low, high: ``(n,)``; without finite bounds (a single seed) there is no band.
        method: gives colour and marker, unless ``colour`` says otherwise.
        positive: cut the band off at a tenth of the mean: for logarithmic axes.
    """
    chosen = colour or style.colour(method)
    floor = np.maximum(low, 0.1 * np.asarray(mean)) if positive else np.asarray(low)
    axes.plot(x, mean, **{"color": chosen, "marker": style.marker(method), "label": label, **line})
    if np.isfinite(floor).any():
        axes.fill_between(np.asarray(x), floor, high, color=chosen, alpha=0.16, linewidth=0)


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
    where = np.arange(len(labels))
    mean = np.asarray(values, dtype=float)
    linear = axes.get_xscale() == "linear"
    if linear:
        axes.barh(where, mean, height=0.62, color=[style.colour(method) for method in methods], alpha=0.28)
    _ranges(axes, mean, lows, highs, methods, size=0 if linear else 7)
    for y, several in enumerate(dots or ()):
        jitter = np.linspace(-0.14, 0.14, len(several)) if len(several) != 1 else np.zeros(1)
        axes.plot(several, y + jitter, "o", color=style.colour(methods[y]), markersize=3.6, alpha=0.9)
    for name, value in (references or {}).items():
        axes.axvline(value, color=style.SOFT, linestyle=(0, (4, 3)), linewidth=1.0)
        axes.annotate(
            name, (value, 1.0), xycoords=("data", "axes fraction"), xytext=(3, 2), textcoords="offset points",
            fontsize=7.5, color=style.SOFT, annotation_clip=False,
        )  # fmt: skip
    _categories(axes, labels, xlabel)


def effect_plot(
    axes: Axes,
    labels: Sequence[str],
    effects: ArrayLike,
    lows: ArrayLike,
    highs: ArrayLike,
    *,
    methods: Sequence[str],
    reference: float = 0.0,
    xlabel: str = "",
) -> None:
    """Effect sizes with 95 % intervals as a forest plot: a point per row, first on top, and the line of no effect."""
    axes.axvline(reference, color=style.SOFT, linewidth=1.0)
    _ranges(axes, np.asarray(effects, dtype=float), lows, highs, methods, size=6)
    _categories(axes, labels, xlabel)


def image_grid(panels: Mapping[str, ArrayLike], *, columns: int = 8, rows: int = 8, across: int = 4) -> Figure:
    """Grids of images side by side.

    Args:
        panels: title → uint8 ``(n, H, W, C)``, C 1 or 3.
        columns, rows: images of each grid.
        across: grids beside one another before a new line begins.
    """
    lines = -(-len(panels) // across)
    width = 1.9 * min(across, len(panels))
    cell = width / min(across, len(panels))
    figure, axes = style.figure(
        min(across, len(panels)), lines, width=width, height=lines * (cell * rows / columns + 0.3), squeeze=False
    )
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


def _ranges(
    axes: Axes, mean: NDArray[np.float64], lows: ArrayLike, highs: ArrayLike, methods: Iterable[str], size: float
) -> None:
    for y, (value, low, high, method) in enumerate(
        zip(mean, np.asarray(lows), np.asarray(highs), methods, strict=True)
    ):
        colour = style.colour(method)
        if np.isfinite([low, high]).all():
            axes.plot([low, high], [y, y], color=colour, linewidth=2.0, solid_capstyle="butt")
        if size:
            axes.plot([value], [y], style.marker(method), color=colour, markersize=size)


def _categories(axes: Axes, labels: Sequence[str], xlabel: str) -> None:
    axes.set_yticks(np.arange(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(xlabel)
