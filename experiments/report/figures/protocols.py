"""Two protocols on the same runs: each run as a point, and the rank correlation between them."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from experiments.metrics import metric
from experiments.report import style
from experiments.report.study import MissingArray, Study

_METRICS = ("kid", "fd")


def draw(study: Study) -> dict[str, Figure]:
    """``agreement``. Raises `MissingArray` where no run is measured under two protocols."""
    figure, panels = style.figure(len(_METRICS), width=3.6 * len(_METRICS), height=3.4)
    for axes, name in zip(panels, _METRICS, strict=True):
        points = paired(study, name)
        for method, group in points.groupby("method", sort=False):
            axes.plot(
                group["first"], group["second"], style.marker(str(method)), color=style.colour(str(method)),
                label=study.method_label(str(method)),
            )  # fmt: skip
        rank, count = float(points["first"].corr(points["second"], method="spearman")), len(points)
        axes.set_title(f"Rank correlation {rank:.2f} of {count} runs")
        axes.set(xlabel=metric(name).axis(points["x"].iloc[0]), ylabel=metric(name).axis(points["y"].iloc[0]))
        style.logarithmic(axes, "x", "y")
    panels[0].legend(fontsize=7.5)
    return {"agreement": figure}


def paired(study: Study, name: str) -> pd.DataFrame:
    """A line for each run that has the metric under the study's first two protocols: ``method``, ``first`` and
    ``second`` value, protocols ``x`` and ``y``. Raises `MissingArray` where there is none."""
    cells = study.required(name)
    protocols = list(cells["protocol"].unique())[:2]
    lines = []
    for _, runs in cells.groupby("runs", sort=False):
        pair = [runs[runs["protocol"] == protocol] for protocol in protocols]
        if len(pair) == 2 and not any(one.empty for one in pair):
            first, second = (study.by_seed(one.iloc[0]) for one in pair)
            shared = [seed for seed in first if seed in second]
            method = runs["method"].iloc[0]
            lines += [(method, first[seed], second[seed], *protocols) for seed in shared]
    if not lines:
        raise MissingArray(f"{study.name}: no run is measured under two protocols yet")
    return pd.DataFrame(lines, columns=["method", "first", "second", "x", "y"])
