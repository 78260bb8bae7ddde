"""Guidance: quality and agreement with the label over the weight, and one against the other."""

from __future__ import annotations

import re

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report import published, style
from experiments.report.figures.common import axis_label, image_grid
from experiments.report.study import MissingArray, Study

_SHOWN = ("0", "1.0", "3.0")


def draw(study: Study) -> dict[str, Figure]:
    """``curve`` and, where samples are at hand, ``samples``. Raises `MissingArray` when nothing is measured."""
    quality = _curve(study, "fd")
    agreement = _curve(study, "class_accuracy")
    agreement = agreement if not agreement.empty else _curve(study, "is")
    if quality.empty:
        raise MissingArray(f"{study.name}: nothing is measured yet")
    figure, (left, right) = style.figure(2, width=7.6, height=3.2)
    _over_weight(left, quality, axis_label("fd", quality["protocol"].iloc[0]))
    if study.scale == "paper":
        _published(left)
    if not agreement.empty:
        _trade_off(right, agreement, quality)
    drawn = {"curve": figure}
    panels = {}
    for weight in _SHOWN:
        if grids := list(study.arrays(f"cdrl-{weight}", "grid.npy").values()) if _has(study, weight) else []:
            panels[f"w = {weight}"] = grids[0]
    return {**drawn, "samples": image_grid(panels)} if panels else drawn


def _has(study: Study, weight: str) -> bool:
    return any(row["row"] == f"cdrl-{weight}" for row in study.rows)


def _curve(study: Study, metric: str) -> pd.DataFrame:
    """The cells of a metric with their weight, in its order."""
    cells = study.measured(metric)
    weights = [float(re.sub(r"^\w+-", "", row)) for row in cells["row"]]
    return cells.assign(weight=weights).sort_values("weight")


def _over_weight(axes: Axes, cells: pd.DataFrame, label: str) -> None:
    axes.plot(cells["weight"], cells["value"], color=style.colour("cdrl"), marker="o", label="measured")
    axes.fill_between(cells["weight"], cells["low"], cells["high"], color=style.colour("cdrl"), alpha=0.16, linewidth=0)
    axes.set_xlabel("Guidance weight w")
    axes.set_ylabel(label)
    axes.set_title("Quality over w")


def _published(axes: Axes) -> None:
    """The paper's curve beside the measured one."""
    numbers = [n for n in published.load() if n.metric == "FID" and n.model.startswith("CDRL, guidance w=")]
    points = sorted((float(n.model.rpartition("=")[2]), n.value) for n in numbers if n.value is not None)
    if points:
        axes.plot(*zip(*points, strict=True), color=style.SOFT, linestyle="--", marker="x", label="published")
        axes.legend()


def _trade_off(axes: Axes, agreement: pd.DataFrame, quality: pd.DataFrame) -> None:
    """The curve (agreement(w), quality(w)), its weights written beside it."""
    joined = agreement.merge(quality, on="weight", suffixes=("_x", "_y"))
    axes.plot(joined["value_x"], joined["value_y"], color=style.colour("cdrl"), marker="o")
    for _, point in joined.iterrows():
        if point["weight"] in (0.0, 0.5, 1.0, 2.0, 3.0):
            axes.annotate(
                f"{point['weight']:g}", (point["value_x"], point["value_y"]), xytext=(5, 4),
                textcoords="offset points", fontsize=7.5, color=style.SOFT,
            )  # fmt: skip
    metric, protocol = agreement["metric"].iloc[0], agreement["protocol"].iloc[0]
    axes.set_xlabel(axis_label(metric, protocol))
    axes.set_ylabel(axis_label("fd", quality["protocol"].iloc[0]))
    axes.set_title("Trade-off, w beside the points")
