"""Points of the plane as images of one pixel with two channels, so that the networks take them with kernel 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl import randomness
from cdrl.errors import UserError
from experiments.data.images import ImageSet


@dataclass(frozen=True, eq=False)
class PointSet(ImageSet):
    """Points: ``images`` are float32 ``(n, 1, 1, 2)``, already what the networks see; the rest as in `ImageSet`."""

    def __post_init__(self) -> None:
        if self.images.dtype != np.float32 or self.images.shape[1:] != (1, 1, 2):
            raise ValueError(f"points must be float32 (n, 1, 1, 2), not {self.images.dtype} {self.images.shape}")

    @property
    def points(self) -> NDArray[np.float32]:
        """``(n, 2)``."""
        return np.asarray(self.images, np.float32).reshape(-1, 2)


class PointBatches:
    """Training batches of points: a pure function of (seed, iteration), drawn with replacement.

    Args:
        points: what to train on.
        batch_size: points in one batch.
        seed: decides which points.
        device: where batches are made.
    """

    def __init__(self, points: PointSet, batch_size: int, seed: int, device: torch.device | str = "cpu") -> None:
        if batch_size < 1:
            raise UserError(f"batch size {batch_size} is not positive; give at least 1")
        self.batch_size, self.seed = batch_size, seed
        self._points = torch.from_numpy(points.points.copy())[:, :, None, None].to(device)

    def batch(self, iteration: int, first: int = 0, count: int | None = None) -> tuple[Tensor, None]:
        """Points float32 ``(B, 2, 1, 1)`` of one iteration, or ``count`` of them from row ``first`` on; no labels."""
        start = iteration * self.batch_size + first
        count = self.batch_size - first if count is None else count
        positions = torch.arange(start, start + count, device=self._points.device)
        rows = randomness.integers(randomness.key(self.seed, "data/points"), positions, len(self._points))
        return self._points[rows], None
