"""Comparisons of samples with a reference set.

    Fréchet distance   Dowson and Landau (1982); Heusel et al., "GANs trained by a two time-scale update rule" (2017)
    kernel distance    Bińkowski et al., "Demystifying MMD GANs" (2018)
    precision, recall  Kynkäänniemi et al., "Improved precision and recall metric" (2019)
    Inception Score    Salimans et al., "Improved techniques for training GANs" (2016)
    AUROC              how well a score separates two sets

A new metric is a function and one line of the list at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from experiments.metrics.registry import Metric, register

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
NEIGHBOURS = 3
SPLITS = 10
_NONE = torch.empty(0)
_BLOCK = 2000  # rows of the distance matrix held at a time


class Moments:
    """Mean and covariance of rows that arrive in batches (Chan, Golub and LeVeque, 1983).

    Each batch is centred on its own mean before its scatter is added, so a large common offset costs no digits.

    Args:
        dim: length d of a row.
        device: where the float64 sums live.

    Attributes:
        count: of the rows so far.
        mean: (d,) float64.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    @classmethod
    def restore(cls, count: int, mean: Tensor, cov: Tensor) -> Moments:
        """The moments that had this ``count``, ``mean`` (d,) and ``cov`` (d, d)."""
        moments = cls(len(mean), mean.device)
        moments.count, moments.mean, moments._scatter = count, mean.double(), cov.double() * (count - 1)
        return moments

    @property
    def cov(self) -> Tensor:
        """(d, d) float64, the unbiased estimate (divided by count − 1).

        Raises `ValueError` with fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two rows, not {self.count}")
        return self._scatter / (self.count - 1)

    def update(self, features: Tensor) -> None:
        """Add the rows of ``features`` (n, d)."""
        if len(features) == 0:
            return
        rows = features.to(self.mean.device, torch.float64)
        mean = rows.mean(dim=0)
        centred = rows - mean
        self._absorb(len(rows), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Add all rows of ``other``, as if they had been given to `update` here."""
        device = self.mean.device
        if other.count:
            self._absorb(other.count, other.mean.to(device), other._scatter.to(device))

    def _absorb(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        shift = mean - self.mean
        self._scatter = self._scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total


@dataclass(frozen=True)
class Comparison:
    """Samples beside a reference set, as far as a protocol's metrics need them.

    Attributes:
        moments, reference: of the features.
        features, reference_features: (n, d) and (m, d); empty unless a metric needs features.
        probabilities: (n, C); empty unless a metric needs them.
        predictions, labels: classes (n,), decided and asked for; empty unless a metric needs labels.
        kid_subset_size: as in the protocol.
    """

    moments: Moments
    reference: Moments
    features: Tensor = _NONE
    reference_features: Tensor = _NONE
    probabilities: Tensor = _NONE
    predictions: Tensor = _NONE
    labels: Tensor = _NONE
    kid_subset_size: int = KID_SUBSET_SIZE

    @cached_property
    def precision_recall(self) -> tuple[float, float]:
        """Both at once: they share their distances."""
        return precision_recall(self.features, self.reference_features)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Squared distance between Gaussians fitted to features, at least 0 (Heusel et al., eq. 6):

        d² = |m₁ − m₂|² + tr C₁ + tr C₂ − 2 tr (C₁^½ C₂ C₁^½)^½.

    With C₁ = U diag(w) Uᵀ the last trace is the sum of the square roots of the eigenvalues of the symmetric matrix
    diag(w)^½ Uᵀ C₂ U diag(w)^½: two symmetric eigenproblems, no root of a non-symmetric product, and nothing to perturb
    when there are fewer samples than dimensions.

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


def kernel_distance(
    samples: Tensor, reference: Tensor, subsets: int = KID_SUBSETS, subset_size: int = KID_SUBSET_SIZE, seed: int = 0
) -> float:
    """The unbiased squared MMD with the kernel (x·y / d + 1)³, averaged over random subsets, in float64.

    Zero on average, so possibly negative, when both sets have one distribution. Computed by torch-fidelity.

    Args:
        samples, reference: features (n, d) and (m, d).
        subset_size: rows drawn from each side for a subset, without replacement; at most min(n, m) are.

    Raises:
        ValueError: with fewer than two rows on a side.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(subset_size, len(samples), len(reference))
    if size < 2:
        raise ValueError(f"a kernel distance needs at least two rows per side, not {size}")
    settings = {"kid_subsets": subsets, "kid_subset_size": size, "rng_seed": seed, "verbose": False}
    return float(kid_features_to_metric(samples.double(), reference.double(), **settings)[KEY_METRIC_KID_MEAN])


def precision_recall(
    samples: Tensor, reference: Tensor, neighbours: int = NEIGHBOURS, seed: int = 0
) -> tuple[float, float]:
    """Shares of samples on the reference's manifold (precision), and of reference points on the samples' (recall).

    A manifold is the union of balls that reach each point's k-th nearest neighbour. As in the paper, both sides have
    equally many points. Distances are computed by torch-fidelity, in blocks.

    Args:
        samples, reference: features (n, d) and (m, d); of the larger set a random min(n, m) are used.
        neighbours: k; fewer when a set has no more than k points.

    Raises:
        ValueError: with fewer than two rows on a side.
    """
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    size = min(len(samples), len(reference))
    if size < 2:
        raise ValueError(f"precision and recall need at least two rows per side, not {size}")

    def subset(rows: Tensor) -> Tensor:
        if len(rows) > size:
            chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:size]
            rows = rows[chosen.to(rows.device)]
        return rows.to(samples.device)

    sides = subset(samples), subset(reference)
    precision, recall = calculate_precision_recall_part(*sides, min(neighbours, size - 1), _BLOCK)
    return float(precision), float(recall)


def inception_score(probabilities: Tensor, splits: int = SPLITS, seed: int = 0) -> float:
    """exp E_x KL(p(c | x) ‖ p(c)), how sure and how varied a classifier's verdicts are: the mean over equal parts.

    Args:
        probabilities: (n, C), rows sum to 1.
        splits: number of parts.
        seed: of the shuffle before splitting, without which samples drawn class by class would score far too low.
    """

    def entropy(rows: Tensor) -> Tensor:
        return -torch.special.xlogy(rows, rows).sum(dim=-1)

    order = torch.randperm(len(probabilities), generator=torch.Generator().manual_seed(seed))
    parts = probabilities[order.to(probabilities.device)].double().tensor_split(min(splits, len(probabilities)))
    return float(torch.stack([(entropy(part.mean(dim=0)) - entropy(part).mean()).exp() for part in parts]).mean())


def auroc(inside: ArrayLike, outside: ArrayLike) -> float:
    """Chance that a random inside point scores above a random outside point (ties count one half).

    Args:
        inside: (n,) scores, such as log densities, of in-distribution images.
        outside: (m,) scores of the other images.
    """
    from sklearn.metrics import roc_auc_score

    scores = [np.asarray(inside, dtype=np.float64), np.asarray(outside, dtype=np.float64)]
    return float(roc_auc_score(np.repeat([1, 0], [len(side) for side in scores]), np.concatenate(scores)))


_RATE, _POSITIVE = (0.0, 1.0), (0.0, math.inf)
_LEGACY = frozenset({"fid-legacy-pytorch", "fid-legacy-tensorflow"})
"""Protocols of published numbers: 50,000 samples on 8 bits against the training set, in the weights of that time."""

register(
    Metric(
        "fd", "Fréchet distance", "lower", _POSITIVE, "moments",
        lambda c: frechet_distance(c.moments.mean, c.moments.cov, c.reference.mean, c.reference.cov), "FID", _LEGACY,
    ),
    Metric(
        "kid", "KID", "lower", needs="features",
        compute=lambda c: kernel_distance(c.features, c.reference_features, subset_size=c.kid_subset_size),
    ),
    Metric("precision", "Precision", "higher", _RATE, "features", lambda c: c.precision_recall[0]),
    Metric("recall", "Recall", "higher", _RATE, "features", lambda c: c.precision_recall[1]),
    Metric(
        "is", "Inception score", "higher", (1.0, math.inf), "probabilities",
        lambda c: inception_score(c.probabilities), "Inception Score", _LEGACY,
    ),
    Metric(
        "class_accuracy", "Class accuracy", "higher", _RATE, "labels",
        lambda c: float((c.predictions == c.labels).double().mean()),
    ),
)  # fmt: skip
