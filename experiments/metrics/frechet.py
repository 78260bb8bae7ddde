"""Fréchet distance between Gaussians fitted to features, from moments streamed in float64.

For N(m₁, C₁) and N(m₂, C₂) (Dowson and Landau, 1982; Heusel et al., 2017, eq. 6):

    d² = |m₁ − m₂|² + tr C₁ + tr C₂ − 2 tr (C₁^½ C₂ C₁^½)^½.

With C₁ = U diag(w) Uᵀ the last trace is the sum of the square roots of the eigenvalues of the symmetric matrix
diag(w)^½ Uᵀ C₂ U diag(w)^½: two symmetric eigenproblems, no root of a non-symmetric product, and nothing to perturb
when there are fewer samples than dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Mean and covariance of rows that arrive in batches (Chan, Golub and LeVeque, 1983).

    Each batch is centred on its own mean before its scatter is added, so a large common offset costs no digits.

    Args:
        dim: length d of a row.
        device: where the float64 sums live.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    @classmethod
    def restore(cls, count: int, mean: Tensor, cov: Tensor) -> Moments:
        """The moments that had this ``count``, ``mean`` (d,) and ``cov`` (d, d)."""
        moments = cls(len(mean), mean.device)
        moments.count = count
        moments._mean = mean.double()
        moments._scatter = cov.double() * (count - 1)
        return moments

    @property
    def mean(self) -> Tensor:
        """(d,) float64."""
        return self._mean

    @property
    def cov(self) -> Tensor:
        """(d, d) float64, the unbiased estimate (divided by count − 1).

        Raises:
            ValueError: with fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two rows, not {self.count}")
        return self._scatter / (self.count - 1)

    def update(self, features: Tensor) -> None:
        """Add the rows of ``features`` (n, d)."""
        if len(features) == 0:
            return
        rows = features.to(self._mean.device, torch.float64)
        mean = rows.mean(dim=0)
        centred = rows - mean
        self._absorb(len(rows), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Add all rows of ``other``, as if they had been given to `update` here."""
        device = self._mean.device
        if other.count:
            self._absorb(other.count, other._mean.to(device), other._scatter.to(device))

    def _absorb(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        shift = mean - self._mean
        self._scatter = self._scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self._mean = self._mean + shift * (count / total)
        self.count = total


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """d² of the module's docstring, at least 0.

    Args:
        mean1, mean2: (d,).
        cov1, cov2: (d, d), symmetric and positive semi-definite up to rounding; any rank.

    Raises:
        ValueError: if a moment is not finite.
    """
    mean1, cov1, mean2, cov2 = (value.to(cov1.device, torch.float64) for value in (mean1, cov1, mean2, cov2))
    if not all(bool(value.isfinite().all()) for value in (mean1, cov1, mean2, cov2)):
        raise ValueError("moments of the features are not finite")

    def roots(eigenvalues: Tensor) -> Tensor:
        """Square roots; eigenvalues within rounding of zero (either sign) count as zero."""
        floor = eigenvalues.abs().max() * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
        return eigenvalues.where(eigenvalues > floor, 0.0).sqrt()

    weights, vectors = torch.linalg.eigh(cov1)
    half = vectors * roots(weights)
    cross = roots(torch.linalg.eigvalsh(half.T @ cov2 @ half)).sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return max(distance.item(), 0.0)
