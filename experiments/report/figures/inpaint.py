"""Inpainting: masked images, completions and the truth for each mask; and the errors in the hole."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cdrl.pictures import tile
from experiments.report import style
from experiments.report.figures.common import Figures, effect_plot, show
from experiments.report.study import Study

_MEASURED = {
    "hole_mse": "Squared error in the hole, mean ↓",
    "hole_mse_best": "Squared error, best completion ↓",
    "agreement": "Classifier agrees with truth ↑",
    "diversity": "Difference between completions (RMS)",
}
_HOLE = np.array([86, 180, 233], np.uint8)


def draw(study: Study) -> Figures:
    """``errors``, and ``completions-<mask>`` where arrays are at hand. Raises `MissingArray` without a measurement."""
    row, masks = study.rows[0]["row"], study.required("hole_mse")["mask"].unique()
    at_hand = [mask for mask in masks if study.kept(row, f"inpaint-{mask}.npz")]

    def of_mask(mask: str) -> Figure:
        return completions(study.arrays(row, f"inpaint-{mask}.npz")[0])

    drawn = {f"completions-{mask}": partial(of_mask, mask) for mask in at_hand}
    return Figures({"errors": partial(errors, study), **drawn})


def errors(study: Study) -> Figure:
    """Each metric of every method and mask, with intervals."""
    measured = {name: cells for name in _MEASURED if not (cells := study.measured(name)).empty}
    rows = max(len(cells) for cells in measured.values())
    width, height = 2.2 * len(measured) + 1.2, 1.0 + 0.24 * rows
    figure, axes = style.figure(len(measured), width=width, height=height, squeeze=False, sharey=True)
    for place, (name, cells) in zip(axes[0], measured.items(), strict=True):
        effect_plot(
            place, list(cells["name"]), cells["value"], cells["low"], cells["high"], methods=list(cells["method"]),
            xlabel=_MEASURED[name],
        )  # fmt: skip
        place.xaxis.label.set_fontsize(7.5)
    return figure


def completions(kept: dict[str, Any], rows: int = 8) -> Figure:
    """A row per image: what is known (the hole tinted), completions, the truth."""
    truth, mask, drawn = kept["truth"][:rows], kept["mask"][:rows], kept["completions"][:rows]
    n, times, height, width, _ = drawn.shape
    truth, drawn = (np.broadcast_to(images, (*images.shape[:-1], 3)) for images in (truth, drawn))  # grey as colour
    masked = np.where(mask, truth, _HOLE).astype(np.uint8)
    strips = np.concatenate([masked[:, None], drawn, truth[:, None]], axis=1)
    picture = tile(strips.reshape(n * (times + 2), height, width, 3), times + 2)
    figure, axes = style.figure(width=0.5 * (times + 2), height=0.5 * n + 0.3)
    show(axes, picture, "known · completions · truth")
    return figure
