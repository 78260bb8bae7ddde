"""Guidance: quality and agreement with the label over the weight, and one against the other."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from experiments import published
from experiments.metrics import metric
from experiments.report import style
from experiments.report.figures.common import Figures, curve_of_cells, image_grid
from experiments.report.study import Study

_SHOWN = (0.0, 1.0, 3.0)
_NAMED = (0.0, 0.5, 1.0, 2.0, 3.0)
"""Weights with samples, and weights written beside the trade-off."""


def draw(study: Study) -> Figures:
    """``curve`` and, where samples are at hand, ``samples``. Raises `MissingArray` when nothing is measured."""
    quality = study.required("fd").dropna(subset="weight").sort_values("weight")
    rows = {
        f"w = {weight:g}": row
        for weight, row in zip(quality["weight"], quality["row"], strict=True)
        if weight in _SHOWN
    }
    shown = {title: row for title, row in rows.items() if study.kept(row, "grid.npy")}
    drawn: dict[str, Callable[[], Figure]] = {"curve": lambda: curve(study, quality)}
    if shown:
        drawn["samples"] = lambda: image_grid({title: study.arrays(row, "grid.npy")[0] for title, row in shown.items()})
    return Figures(drawn)


def curve(study: Study, quality: pd.DataFrame) -> Figure:
    """Quality over the weight, and against agreement with the label."""
    axis = metric("fd").axis(quality["protocol"].iloc[0])
    figure, (left, right) = style.figure(2, width=7.6, height=3.2)

    # Quality over the weight, beside the paper's curve.
    curve_of_cells(left, quality, "weight", label="measured", method="cdrl")
    numbers = [n for n in published.load() if (n.model, n.metric) == ("CDRL", "FID")] if study.scale == "paper" else []
    theirs = sorted((n.weight, n.value) for n in numbers if n.weight is not None and n.value is not None)
    if theirs:
        left.plot(*zip(*theirs, strict=True), color=style.SOFT, linestyle="--", marker="x", label="published")
        left.legend()
    left.set(xlabel="Guidance weight w", ylabel=axis, title="Quality over w")

    # The curve (agreement(w), quality(w)), its weights written beside it, and the classifier's accuracy on real images.
    agreement = study.measured("class_accuracy")
    agreement = agreement if not agreement.empty else study.measured("is")
    if not agreement.empty:
        first, real = agreement.iloc[0], agreement[agreement["weight"].isna()]["value"]
        points = agreement.dropna(subset="weight").sort_values("weight")
        joined = points.merge(quality, on="weight", suffixes=("_x", "_y"))
        right.plot(joined["value_x"], joined["value_y"], color=style.colour("cdrl"), marker="o")
        for _, point in joined[joined["weight"].isin(_NAMED)].iterrows():
            right.annotate(
                f"{point['weight']:g}", (point["value_x"], point["value_y"]), xytext=(5, 4),
                textcoords="offset points", fontsize=7.5, color=style.SOFT,
            )  # fmt: skip
        for share in real:
            right.axvline(share, color=style.SOFT, linestyle=":", label="real images")
            right.legend()
        xlabel = metric(first["metric"]).axis(first["protocol"])
        right.set(xlabel=xlabel, ylabel=axis, title="Trade-off, w beside the points")
    return figure
