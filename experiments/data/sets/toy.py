"""Densities of the plane that are known exactly, at every noise level: checkerboard, rings, spirals.

With x_0 ~ p, the density of ``x = α x_0 + σ ε`` is closed-form for both kinds:

    boxes       p uniform on squares [l_k, r_k]²:   mean_k Π_d (Φ((x_d − α l_kd)/σ) − Φ((x_d − α r_kd)/σ)) / (α r − α l)
    Gaussians   p = mean_k N(m_k, s² I):            mean_k N(x; α m_k, (α² s² + σ²) I)

All lie in [−1, 1]². The checkerboard is the paper's (Zhu et al. 2024, figure of the toy density), rings and spirals are
curves of a few hundred small Gaussians.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, logsumexp

from cdrl.errors import UserError
from experiments.data.images import PointSet
from experiments.data.registry import Place, data_set

Array = NDArray[np.float64]
_COUNTS, _SEEDS = {"train": 50_000, "test": 10_000}, {"train": 1, "test": 2}
_CHUNK = 4096  # points at a time, against a few hundred components each


class Density(ABC):
    """A density of the plane that can be drawn from and evaluated after adding noise."""

    @abstractmethod
    def draw(self, n: int, random: np.random.RandomState) -> Array:
        """``(n, 2)`` independent points."""

    @abstractmethod
    def _log(self, x: Array, alpha: float, sigma: float) -> Array:
        """`log_density` of a few points."""

    def log_density(self, x: Array, alpha: float = 1.0, sigma: float = 0.0) -> Array:
        """Log-density in nats ``(n,)`` of ``alpha · x_0 + sigma · ε`` at ``x`` ``(n, 2)``; −inf outside the support."""
        with np.errstate(divide="ignore"):
            return np.concatenate([self._log(x[i : i + _CHUNK], alpha, sigma) for i in range(0, len(x), _CHUNK)])


@dataclass(frozen=True)
class Boxes(Density):
    """Uniform on equal squares with lower left corners ``corners`` ``(k, 2)`` and sides ``side``."""

    corners: Array
    side: float

    def draw(self, n: int, random: np.random.RandomState) -> Array:
        return self.corners[random.randint(len(self.corners), size=n)] + self.side * random.random_sample((n, 2))

    def _log(self, x: Array, alpha: float, sigma: float) -> Array:
        low = x[:, None] - alpha * self.corners
        high = low - alpha * self.side
        if sigma > 0:
            # In the lower tail, where log_ndtr is accurate however far out: the difference is symmetric under a mirror.
            flip = np.where(low + high > 0, -1.0, 1.0)
            first, second = log_ndtr(flip * low / sigma), log_ndtr(flip * high / sigma)
            inside = np.maximum(first, second) + np.log(-np.expm1(-np.abs(first - second)))
        else:
            inside = np.log(((low >= 0) & (high < 0)).astype(np.float64))
        return logsumexp(inside.sum(axis=2), axis=1) - math.log(len(self.corners)) - 2 * math.log(alpha * self.side)


@dataclass(frozen=True)
class Gaussians(Density):
    """An equal mixture of round Gaussians with ``means`` ``(k, 2)`` and one standard deviation ``width``."""

    means: Array
    width: float

    def draw(self, n: int, random: np.random.RandomState) -> Array:
        return self.means[random.randint(len(self.means), size=n)] + self.width * random.standard_normal((n, 2))

    def _log(self, x: Array, alpha: float, sigma: float) -> Array:
        variance = (alpha * self.width) ** 2 + sigma**2
        square = np.square(x[:, None] - alpha * self.means).sum(axis=2)
        return logsumexp(-0.5 * square / variance, axis=1) - math.log(2 * math.pi * variance * len(self.means))


def checkerboard(half: float = 0.9, squares: int = 4) -> Boxes:
    """Every other one of ``squares``² squares that tile [−half, half]²."""
    side = 2 * half / squares
    corners = [(-half + side * i, -half + side * j) for i in range(squares) for j in range(squares) if (i + j) % 2 == 0]
    return Boxes(np.array(corners), side)


def rings(radii: tuple[float, ...] = (0.25, 0.53, 0.81), width: float = 0.04) -> Gaussians:
    """Concentric rings with equal density along their length."""
    counts = [round(200 * radius) for radius in radii]
    angles = [2 * math.pi * np.arange(count) / count for count in counts]
    circles = [r * np.stack((np.cos(a), np.sin(a)), axis=1) for r, a in zip(radii, angles, strict=True)]
    return Gaussians(np.concatenate(circles), width)


def spirals(arms: int = 2, turns: float = 1.25, radius: float = 0.85, width: float = 0.04) -> Gaussians:
    """Archimedean spirals from near the centre outwards, with equal density along their length."""
    share = np.sqrt(np.linspace(0.02, 1.0, 150))  # r ∝ angle: length grows with the square
    angles = 2 * math.pi * turns * share[None, :] + 2 * math.pi * np.arange(arms)[:, None] / arms
    means = radius * share[None, :, None] * np.stack((np.cos(angles), np.sin(angles)), axis=2)
    return Gaussians(means.reshape(-1, 2), width)


DENSITIES: dict[str, Callable[[], Density]] = {"checkerboard": checkerboard, "rings": rings, "spirals": spirals}


def density(name: str) -> Density:
    """The density that a data set was drawn from. Raises `UserError` for data whose density nobody knows."""
    if name not in DENSITIES:
        raise UserError(f"the density of '{name}' is not known; this needs one of {', '.join(DENSITIES)}")
    return DENSITIES[name]()


def _find(name: str, place: Place, split: str) -> PointSet:
    points = density(name).draw(_COUNTS[split], np.random.RandomState(_SEEDS[split]))
    images: Any = points.astype(np.float32)[:, None, None, :]
    return PointSet(images, None, name, split, f"drawn from the {name} density")


for _name in DENSITIES:
    data_set(_name, layout="nothing: the points are drawn", needed_for="experiment toy")(partial(_find, _name))
