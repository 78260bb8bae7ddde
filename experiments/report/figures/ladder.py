"""The ladder: how far samples are from the data at each size of the images, relative to noise and to real images."""

from __future__ import annotations

import textwrap
from collections import Counter

import pandas as pd
from matplotlib.figure import Figure

from experiments.metrics import metric
from experiments.report import style
from experiments.report.figures.common import curve_of_cells, image_grid
from experiments.report.study import REFERENCES, MissingArray, Study
from experiments.report.tables import difference_text, significant

_METRICS = ("kid", "fd")


def draw(study: Study) -> dict[str, Figure | None]:
    """``distance``, with what was to be shown as its title; ``samples`` where at hand. Raises `MissingArray` without a
    measurement."""
    return {"distance": distance(study), "samples": samples(study)}


def distance(study: Study) -> Figure:
    """(distance − real's)/(noise's − real's) against the size, a line for each method and number of steps."""
    measured = {name: relative(study, name) for name in _METRICS}
    measured = {name: cells for name, cells in measured.items() if not cells.empty}
    if not measured:
        raise MissingArray(f"{study.name}: no size has real images, noise and a method measured yet")
    figure, panels = style.figure(len(measured), width=3.9 * len(measured), height=3.5, squeeze=False)
    for axes, (name, cells) in zip(panels[0], measured.items(), strict=True):
        drawn: set[str] = set()
        for (method, label), group in cells.groupby(["method", "series"], sort=False):
            # A method's second chain has its colour, and another line.
            look = {"linestyle": ":" if method in drawn else "-"}
            curve_of_cells(axes, group, "image_size", label=str(label), method=str(method), **look)
            drawn.add(str(method))
        sizes = sorted(cells["image_size"].unique())
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{size:g}×{size:g}" for size in sizes])
        axes.minorticks_off()
        style.logarithmic(axes, "y")
        axes.set(xlabel="Images", ylabel=f"{metric(name).title}, 0: real, 1: noise")
    panels[0][0].legend(fontsize=7.5)
    if text := verdict(study):
        figure.suptitle(textwrap.fill(text, 100), fontsize=8.5)
    return figure


def relative(study: Study, name: str) -> pd.DataFrame:
    """Cells of a metric as shares of the way from real images to noise at their size, by size, and in ``series`` the
    method with its number of steps where there are several; sizes without either are left out."""
    cells = study.measured(name)
    anchors = {method: cells[cells["method"] == method].set_index("image_size")["value"] for method in REFERENCES}
    cells = cells[~cells["method"].isin(REFERENCES)].sort_values("image_size", kind="stable")
    floor, ceiling = (cells["image_size"].map(anchors[method]) for method in REFERENCES)
    shares = {bound: (cells[bound] - floor) / (ceiling - floor) for bound in ("value", "low", "high")}
    several = cells.groupby("method")["chain_steps"].transform("nunique") > 1
    series = [
        study.method_label(method) + (f", K = {steps:g}" if named else "")
        for method, steps, named in zip(cells["method"], cells["chain_steps"], several, strict=True)
    ]
    return cells.assign(**shares, series=series)[shares["value"].notna()]


def verdict(study: Study) -> str:
    """The manifest's criterion on the cells: FD(short-run)/FD(CDRL) at every size, and the tests at the largest."""
    cells = study.measured("fd")
    ours = {cell["image_size"]: cell for _, cell in cells[cells["method"] == "cdrl"].iterrows()}
    ratios, tests = [], []
    for size, cdrl in sorted(ours.items()):
        rivals = cells[(cells["image_size"] == size) & cells["method"].isin(["short_run", "drl"])]
        for _, rival in rivals.iterrows():
            if rival["method"] == "short_run":
                ratios.append(f"{significant(rival['value'] / cdrl['value'], 3)} at {size:g}×{size:g}")
            if size == max(ours) and (test := study.difference(cdrl, rival)):
                tests.append(f"{cdrl['label']} − {rival['label']}: {difference_text(test)}")
    return "; ".join(([f"FD(short-run)/FD(CDRL) {', '.join(ratios)}"] if ratios else []) + tests)


def samples(study: Study) -> Figure | None:
    """Grids of the first seed that has one, a line for each size, real images first."""
    order = {method: place for place, method in enumerate(("real", "cdrl", "drl", "short_run", "ddpm", "noise"))}
    grids = [
        (grid.shape[1], order.get(row["method"], len(order)), row["label"], grid)
        for row in study.rows
        for grid in study.arrays(row["row"], "grid.npy")[:1]
    ]
    grids.sort(key=lambda one: one[:2])
    if not grids:
        return None
    across = max(Counter(size for size, *_ in grids).values())
    return image_grid({label: grid for *_, label, grid in grids}, columns=6, rows=6, across=across)
