"""Guidance: quality and agreement with the label over the weight, and one against the other."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import published
from experiments.metrics import metric
from experiments.report import style
from experiments.report.figures.common import curve_with_band, image_grid
from experiments.report.study import Study

_SHOWN = (0.0, 1.0, 3.0)
_NAMED = (0.0, 0.5, 1.0, 2.0, 3.0)
"""Weights with samples, and weights written beside the trade-off."""


def draw(study: Study) -> dict[str, Figure]:
    """``curve`` and, where samples are at hand, ``samples``. Raises `MissingArray` when nothing is measured."""
    quality = study.required("fd").sort_values("weight")
    agreement = study.measured("class_accuracy")
    agreement = agreement if not agreement.empty else study.measured("is")
    figure, (left, right) = style.figure(2, width=7.6, height=3.2)
    _over_weight(left, quality, study.scale == "paper")
    if not agreement.empty:
        _trade_off(right, agreement.sort_values("weight"), quality)
    drawn = {"curve": figure}
    panels = {}
    for weight, row in zip(quality["weight"], quality["row"], strict=True):
        if weight in _SHOWN and (grids := study.arrays(row, "grid.npy")):
            panels[f"w = {weight:g}"] = grids[0]
    return {**drawn, "samples": image_grid(panels)} if panels else drawn


def _over_weight(axes: Axes, cells: pd.DataFrame, with_published: bool) -> None:
    """Quality over the weight, beside the paper's curve."""
    bounds = cells["value"], cells["low"], cells["high"]
    curve_with_band(axes, cells["weight"], *bounds, label="measured", method="cdrl")
    numbers = [n for n in published.load() if (n.model, n.metric) == ("CDRL", "FID")] if with_published else []
    points = sorted((n.weight, n.value) for n in numbers if n.weight is not None and n.value is not None)
    if points:
        axes.plot(*zip(*points, strict=True), color=style.SOFT, linestyle="--", marker="x", label="published")
        axes.legend()
    axes.set_xlabel("Guidance weight w")
    axes.set_ylabel(metric("fd").axis(cells["protocol"].iloc[0]))
    axes.set_title("Quality over w")


def _trade_off(axes: Axes, agreement: pd.DataFrame, quality: pd.DataFrame) -> None:
    """The curve (agreement(w), quality(w)), its weights written beside it."""
    joined = agreement.merge(quality, on="weight", suffixes=("_x", "_y"))
    axes.plot(joined["value_x"], joined["value_y"], color=style.colour("cdrl"), marker="o")
    for _, point in joined[joined["weight"].isin(_NAMED)].iterrows():
        axes.annotate(
            f"{point['weight']:g}", (point["value_x"], point["value_y"]), xytext=(5, 4), textcoords="offset points",
            fontsize=7.5, color=style.SOFT,
        )  # fmt: skip
    axes.set_xlabel(metric(agreement["metric"].iloc[0]).axis(agreement["protocol"].iloc[0]))
    axes.set_ylabel(metric("fd").axis(quality["protocol"].iloc[0]))
    axes.set_title("Trade-off, w beside the points")
