"""Chains: diagnostics per level, the energy along long chains, and samples from longer and longer chains."""

from __future__ import annotations

from functools import partial

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.report import style
from experiments.report.figures.common import Figures, curves_of_cells, image_grid
from experiments.report.study import Study

_MEASURES = {
    "acceptance": "Acceptance of a Metropolis correction",
    "rhat": "Split-R̂, worst quantity",
    "ess": "Effective samples per 1,000 steps of a chain",
    "energy_drift": "Drift of log π (standard deviations)",
}
_SMOOTH = 20
MIXED = 1.01
"""Split-R̂ at or below which chains are said to mix (Vehtari et al. 2021)."""


def draw(study: Study) -> Figures:
    """``diagnostics``, ``energy`` and ``long-<row>``, each where at hand."""
    rows = [row["row"] for row in study.rows if study.kept(row["row"], "long.npz")]
    long = {f"long-{row}": partial(long_chains, study, row) for row in rows}
    return Figures({"diagnostics": partial(diagnostics, study), "energy": partial(energy, study), **long})


def long_chains(study: Study, row: str) -> Figure:
    """Samples of a row's first seed from longer and longer chains."""
    pictures = study.arrays(row, "long.npz")[0]
    panels = {f"{steps} steps per level": pictures[steps] for steps in sorted(pictures, key=int)}
    return image_grid(panels, columns=4, rows=4, across=4)


def diagnostics(study: Study) -> Figure | None:
    """Every measure against the level, with bands over seeds."""
    figure, axes = style.figure(2, 2, width=7.2, height=5.0)
    for place, (metric, name) in zip(axes.flat, _MEASURES.items(), strict=True):
        curves_of_cells(place, study.measured(metric), "level")
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
        place.set_xlabel("Level that the chain ends at")
        place.set_ylabel(name, fontsize=8)
        if metric == "rhat" and place.lines:
            place.axhline(MIXED, color=style.SOFT, linestyle=(0, (4, 3)), linewidth=1.0, label=f"R̂ = {MIXED}: they mix")
            place.legend()
    if not any(place.lines for place in axes.flat):
        return None
    axes[0, 0].legend()
    return figure


def energy(study: Study) -> Figure | None:
    """log π along 2,000 steps at the lowest and the middle level, relative to the end, one line per chain."""
    rows = [(row, arrays) for row in study.rows for arrays in study.arrays(row["row"], "chains.npz")[:1]]
    if not rows:
        return None
    figure, axes = style.figure(len(rows), 2, width=3.6 * len(rows), height=4.2, squeeze=False, sharex=True)
    for column, (row, arrays) in enumerate(rows):
        traces = arrays["log_density"]
        for line, level in enumerate((0, len(traces) // 2)):
            chains = traces[level].reshape(len(traces[level]), -1)
            chains = chains - chains[-len(chains) // 10 :].mean(axis=0)
            smooth = np.apply_along_axis(lambda x: np.convolve(x, np.ones(_SMOOTH) / _SMOOTH, "valid"), 0, chains)
            axes[line, column].plot(smooth, color=style.colour(row["method"]), alpha=0.4, linewidth=0.7)
            axes[line, column].set_title(f"{row['label']}, level {level}", fontsize=8.5)
            axes[line, column].set_ylabel("log π − its end (nats)", fontsize=8)
        axes[1, column].set_xlabel("Langevin step")
    return figure
