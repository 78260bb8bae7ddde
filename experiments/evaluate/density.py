"""The energy itself against the truth: log-densities on a grid, at every level, for data whose density is known.

The energy of the transition t → t − 1 is the log-density of ``y = scale_t x_{t−1}`` up to a factor and a constant, so
in the coordinates of x_{t−1} (the change of variables adds 2 ln scale_t, a constant)

    log p̂(x) = f(scale_t x; λ_{t−1}) / s_t² − log Z_t,      Z_t = Σ_cells exp(f / s_t²) · area

with Z_t summed on the grid: log-densities are in nats, and so are their differences to the truth
``p_{t−1} = law of α_{t−1} x_0 + σ_{t−1} ε``:

    kl                    Σ_cells p (log p − log p̂) · area
    log_likelihood        mean of log p̂ (nearest cell) over held-out points noised to the level
    true_log_likelihood   the same of p
    sample_log_density    mean of log p_0 over samples

Level 0 is smoother than the data. The variant "unsmoothed" measures the same against the law of x_0 itself, with level
0 read at x_0 = x/α_0: log p̂(x_0) = log p̂(x) + 2 ln α_0. Its held-out points are clean, its divergence contains that of
level 0's noise, and where the data have no density a sample counts as −10 nats (as does any below that).

Settings: ``grid`` (cells per side), ``samples``, ``batch``. Written to ``density.npz``: ``half`` (levels), ``learned``
and ``truth`` (levels, grid, grid; rows are the second coordinate), ``samples``, ``data`` (n, 2).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp

from cdrl import randomness
from cdrl.errors import UserError
from cdrl.model import Model
from cdrl.noise import NoiseSchedule
from cdrl.sampler import Sampler
from experiments.data import PointSet
from experiments.data.sets.toy import Density, density
from experiments.evaluate import OnProgress, TrainedRun
from experiments.measurement import Measurement

_REACH = 4.0
"""Noise standard deviations that the grid reaches beyond the data's square."""
_FLOOR = -10.0
"""Nats: the least that a sample counts under the unsmoothed truth, which may be no density at all."""
Array = NDArray[np.float64]


class Grid(NamedTuple):
    """Centres of the cells of a square [−half, half]², ``(cells², 2)``, first coordinate fastest."""

    half: float
    cells: int

    @property
    def centres(self) -> Array:
        axis = (np.arange(self.cells) + 0.5) * (2 * self.half / self.cells) - self.half
        return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)

    @property
    def log_area(self) -> float:
        """Of one cell."""
        return 2 * math.log(2 * self.half / self.cells)

    def cell(self, x: Array) -> NDArray[np.int64]:
        """The cell of each of the points ``(n, 2)``; points outside go to the border."""
        index = np.floor((x + self.half) * (self.cells / (2 * self.half))).astype(np.int64).clip(0, self.cells - 1)
        return index[:, 0] + self.cells * index[:, 1]


def evaluate(run: TrainedRun, settings: dict[str, Any], out: Path, progress: OnProgress) -> list[Measurement]:
    """See the module's docstring."""
    if not isinstance(run.test, PointSet):
        raise UserError(f"the density of {run.test.name} is not known; choose a set of points, such as data=rings")
    known, sampler, measurements = density(run.train.name), run.sampler(), []
    unsmoothed: dict[str, float] = {}
    schedule, points = sampler.schedule, run.test.points[: settings["samples"]].astype(np.float64)

    def measured(metric: str, level: int, value: float, samples: int = len(points), variant: str = "") -> Measurement:
        return Measurement(metric=metric, protocol="grid", level=level, value=value, samples=samples, variant=variant)

    def truth(level: int, x: Array) -> Array:
        return known.log_density(x, float(schedule.alpha[level]), float(schedule.sigma[level]))

    # Every level on a grid of its own.
    arrays: dict[str, Any] = {"half": [], "learned": [], "truth": []}
    for level in range(schedule.levels):
        grid = level_grid(schedule, level, settings["grid"])
        estimate, exact = learned_log_density(sampler, level, grid), truth(level, grid.centres)
        stream = randomness.key(run.seed, "density/noise", level)
        noise = randomness.normal(stream, torch.arange(len(points)), (2,)).double().numpy()
        cell = grid.cell(float(schedule.alpha[level]) * points + float(schedule.sigma[level]) * noise)
        measurements += [
            measured("kl", level, divergence(estimate, exact)),
            measured("log_likelihood", level, float(estimate[cell].mean())),
            measured("true_log_likelihood", level, float(exact[cell].mean())),
        ]
        arrays["half"].append(grid.half)
        arrays["learned"].append(estimate.reshape(grid.cells, grid.cells))
        arrays["truth"].append(exact.reshape(grid.cells, grid.cells))
        if level == 0:
            unsmoothed = clean(known, float(schedule.alpha[0]), estimate, grid, points)
        progress((level + 1) / (schedule.levels + 1), f"level {level}")

    # Samples under the truth.
    batches = run.healthy(sampler.batches(settings["samples"], run.seed, None, settings["batch"]))
    samples = torch.cat(list(batches)).flatten(1).cpu().numpy().astype(np.float64)
    np.savez_compressed(out / "density.npz", samples=samples, data=points, **arrays)
    unsmoothed["sample_log_density"] = float(np.maximum(known.log_density(samples), _FLOOR).mean())
    return [
        *measurements,
        measured("sample_log_density", 0, float(np.mean(truth(0, samples))), len(samples)),
        *(measured(metric, 0, value, variant="unsmoothed") for metric, value in unsmoothed.items()),
    ]


def clean(known: Density, alpha: float, estimate: Array, grid: Grid, points: Array) -> dict[str, float]:
    """Level 0 against the law of x_0 itself.

    Args:
        known: that law.
        alpha: α_0.
        estimate: log p̂ of level 0 on its ``grid``.
        points: held out, without noise, ``(n, 2)``.
    """
    return {
        "kl": divergence(estimate, known.log_density(grid.centres, alpha)),  # the same for x_0 and for α_0 x_0
        "log_likelihood": float(estimate[grid.cell(alpha * points)].mean()) + 2 * math.log(alpha),
        "true_log_likelihood": float(known.log_density(points).mean()),
    }


def level_grid(schedule: NoiseSchedule, level: int, cells: int) -> Grid:
    """A grid that holds all but a negligible part of the noised data in [−1, 1]²."""
    return Grid(float(schedule.alpha[level] + _REACH * schedule.sigma[level]), cells)


@torch.no_grad()
def learned_log_density(sampler: Sampler, level: int, grid: Grid) -> Array:
    """The normalised log p̂ at the grid's centres in the coordinates of ``x_level``, nats, ``(cells²,)``."""
    x = torch.from_numpy(grid.centres).float().to(sampler.device)
    y = sampler.schedule.scale[level + 1] * x[:, :, None, None]
    values = Model(sampler).log_density(y, level + 1).double().cpu().numpy()
    return values - logsumexp(values) - grid.log_area


def divergence(estimate: Array, exact: Array) -> float:
    """KL(truth ‖ estimate) in nats from log-densities in equal cells, both normalised over the cells."""
    exact, estimate = exact - logsumexp(exact), estimate - logsumexp(estimate)
    held = np.exp(exact) > 0
    return float(np.sum(np.exp(exact[held]) * (exact[held] - estimate[held])))
