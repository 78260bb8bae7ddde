"""Ablations: what each switch changes, paired by seed, and the score of every setting."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.measurement import difference
from experiments.metrics import metric
from experiments.report import style
from experiments.report.figures.common import Figures, bars_with_intervals, curve_of_cells, effect_plot
from experiments.report.study import MissingArray, Study

SWITCHES = ("schedule", "shared", "initializer")


def draw(study: Study) -> Figures:
    """``scores``; where at hand ``effects``, ``gradients``, ``initializer``. Raises `MissingArray` without a score."""
    cells = study.required("fd")
    protocol = str(cells["protocol"].iloc[0])
    return Figures(
        {
            "scores": lambda: scores(study, cells, protocol),
            "effects": lambda: effects(study, protocol),
            "gradients": lambda: gradients(study),
            "initializer": lambda: initializer(study),
        }
    )


def scores(study: Study, cells: pd.DataFrame, protocol: str) -> Figure:
    """The score of every setting, with a dot for each seed."""
    figure, axes = style.figure(width=6.6, height=0.8 + 0.34 * len(cells))
    style.logarithmic(axes, "x")
    from_drl = {"none", *SWITCHES}  # bars have the colour of the method that a setting departs from
    bars_with_intervals(
        axes, _labels(cells), cells["value"], cells["low"], cells["high"],
        methods=["drl" if row in from_drl else "cdrl" for row in cells["row"]],
        dots=[study.seed_values(cell) for _, cell in cells.iterrows()], xlabel=metric("fd").axis(protocol),
    )  # fmt: skip
    axes.set_xlim(left=0.6 * cells["value"].min(), right=1.6 * cells["value"].max())
    return figure


def effects(study: Study, protocol: str) -> Figure | None:
    """Each comparison as the mean difference of ln FD between settings of equal seed; left of zero is better.

    A row of which a run diverged is compared with none. Where rows differ in their chain's K too, the label says so.
    """
    cells = study.measured("fd", protocol)
    by_seed = {str(cell["row"]): study.by_seed(cell) for _, cell in cells.iterrows()}
    steps = dict(zip(cells["row"], cells["chain_steps"], strict=True))
    logs = {
        row: {seed: math.log(value) for seed, value in values.items()}
        for row, values in by_seed.items()
        if len(values) == len(study.seeds(row))
    }
    pairs = {label: rows for label, rows in comparisons().items() if set(rows) <= set(logs)}
    tests = {label: difference(logs[after], logs[before]) for label, (before, after) in pairs.items()}
    shown = {label: test for label, test in tests.items() if test}
    if not shown:
        return None
    figure, axes = style.figure(width=6.6, height=0.8 + 0.28 * len(shown))
    methods = ["drl" if pairs[label][0] == "none" else "cdrl" for label in shown]
    bounds = zip(*((test.value, test.low, test.high) for test in shown.values()), strict=True)
    xlabel = f"Change of ln FD ({protocol}), paired by seed\n← better"
    labels = []
    for label in shown:
        before, after = (steps[row] for row in pairs[label])
        labels.append(f"{label}, K {before:g} → {after:g}" if before != after and before > 0 and after > 0 else label)
    effect_plot(axes, labels, *bounds, methods=methods, xlabel=xlabel)
    return figure


def _labels(cells: pd.DataFrame) -> list[str]:
    """Each row's label, with its K and its updates where these differ between rows."""
    columns = {"chain_steps": "K = {:g}", "updates": "{:,.0f} updates"}
    told = {name: text for name, text in columns.items() if cells[name].nunique() > 1}
    facts = [[text.format(cell[name]) for name, text in told.items() if cell[name] > 0] for _, cell in cells.iterrows()]
    return [", ".join([label, *more]) for label, more in zip(cells["label"], facts, strict=True)]


def comparisons() -> dict[str, tuple[str, str]]:
    """Label → the row before and after: every switch on from DRL, off from CDRL; the initializer and the chain apart;
    and the sampling switches."""
    all_but = {off: [switch for switch in SWITCHES if switch != off] for off in SWITCHES}
    pairs = {f"DRL + {switch}": ("none", switch) for switch in SWITCHES}
    pairs |= {f"DRL + {' + '.join(left)}": ("none", "_".join(left)) for left in all_but.values()}
    pairs |= {"DRL + all (CDRL)": ("none", "cdrl")}
    pairs |= {f"CDRL − {off}": ("cdrl", "_".join(left)) for off, left in all_but.items()}
    pairs |= {
        "CDRL, DRL's chain": ("cdrl", "long_chain"),
        "CDRL, DRL's chain at equal iterations": ("cdrl", "long_chain_iterations"),
        "CDRL − initializer, both with CDRL's chain": ("cdrl", "short_chain"),
        "CDRL − initializer, both with DRL's chain": ("long_chain", "schedule_shared"),
        "the same at CDRL's iterations": ("long_chain_iterations", "schedule_shared_iterations"),
        "CDRL, initializer target: mean": ("cdrl", "target_mean"),
        "CDRL, chains in bfloat16": ("cdrl", "bf16"),
        "CDRL, last denoise: as released": ("cdrl", "denoise_official"),
        "CDRL, last denoise: none": ("cdrl", "denoise_none"),
        "CDRL, spectral norm under EMA: live": ("cdrl", "spectral_live"),
    }
    return pairs


def gradients(study: Study) -> Figure | None:
    """How much shared noise changes the variance of the energy's gradient: per level, along training."""
    cells = study.measured("variance_ratio")
    if cells.empty:
        return None
    cells = cells.assign(trained=cells["trained"].fillna(1.0))
    figure, axes = style.figure(width=5.0, height=3.0)
    for level, chosen in cells.groupby("level"):
        shade = style.matplotlib.colormaps["viridis"](level / max(1, cells["level"].max()))
        curve_of_cells(axes, chosen, "trained", label=f"level {level:g}", method="cdrl", color=shade)
    axes.axhline(1.0, color=style.INK, linewidth=0.8, linestyle=":")
    axes.set(xlabel="Share of training", ylabel="Variance of the gradient,\nshared / independent noise")
    axes.legend(fontsize=7)
    return figure


def initializer(study: Study) -> Figure | None:
    """CDRL's distance to the data before and after refinement, and the move between, per level over training.

    Of the first seed. All are noisy draws, so the distances level off where two draws of one posterior would.
    """
    try:
        log = study.metrics("cdrl", study.seeds("cdrl")[0])
    except (MissingArray, IndexError):
        return None
    titles = {
        "proposal_error": "Proposal to data (RMS)",
        "refined_error": "Refined to data (RMS)",
        "displacement": "Moved by the chain (RMS)",
    }
    if not titles.keys() <= set(log.columns):
        return None
    figure, panels = style.figure(3, width=9.6, height=3.0, sharex=True)
    for axes, (meter, title) in zip(panels, titles.items(), strict=True):
        values = np.array([[np.nan if v is None else v for v in row] for row in log[meter]], dtype=float)
        for level in range(1, values.shape[1]):
            shade = style.matplotlib.colormaps["viridis"](level / values.shape[1])
            axes.plot(log["iteration"], values[:, level], color=shade, label=f"level {level}")
        axes.set(title=title, xlabel="Iteration")
        style.logarithmic(axes, "y")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return figure
