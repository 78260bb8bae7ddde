"""Kernel distance, precision and recall, Inception Score and AUROC against plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.metrics.distances import auroc, inception_score, kernel_distance, precision_recall
from tests.reference import EXACT


def _rows(n: int, seed: int, dim: int = 8, shift: float = 0.0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + shift


def test_kernel_distance_of_whole_sets_is_the_unbiased_mmd() -> None:
    x, y = _rows(30, 0).double(), _rows(30, 1, shift=0.5).double()

    def mean_kernel(a: Tensor, b: Tensor, same: bool) -> float:
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (same and i == j)]
        return sum((a[i] @ b[j] / 8 + 1).item() ** 3 for i, j in pairs) / len(pairs)

    expected = mean_kernel(x, x, True) + mean_kernel(y, y, True) - 2 * mean_kernel(x, y, False)
    assert kernel_distance(x, y, subsets=1) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_of_one_distribution_averages_to_zero() -> None:
    values = np.array([kernel_distance(_rows(200, 2 * k), _rows(200, 2 * k + 1), subsets=1) for k in range(40)])
    assert abs(values.mean()) < 3 * values.std(ddof=1) / 40**0.5
    assert (values < 0).any()
    assert (values > 0).any()
    assert kernel_distance(_rows(200, 0), _rows(200, 1, shift=0.5)) > 10 * values.std()


def test_kernel_distance_depends_on_its_seed_alone() -> None:
    x, y = _rows(300, 0), _rows(400, 1)
    first = kernel_distance(x, y, subsets=5, subset_size=50)
    torch.manual_seed(99)
    np.random.seed(99)
    assert kernel_distance(x, y, subsets=5, subset_size=50) == first
    assert kernel_distance(x, y, subsets=5, subset_size=50, seed=1) != first


def _on_manifold(points: Tensor, support: Tensor, k: int) -> float:
    """Share of ``points`` no farther from some support point than its k-th neighbour is."""
    radii = [sorted((a - b).norm().item() for b in support)[k] for a in support]
    inside = [any((p - a).norm().item() <= r for a, r in zip(support, radii, strict=True)) for p in points]
    return sum(inside) / len(inside)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_by_brute_force(k: int) -> None:
    samples, real = _rows(40, 3, dim=3) * 0.7, _rows(40, 4, dim=3, shift=0.6)
    expected = (_on_manifold(samples, real, k), _on_manifold(real, samples, k))
    assert precision_recall(samples, real, neighbours=k) == pytest.approx(expected)
    assert expected[0] != expected[1]


def test_precision_falls_with_bad_samples_and_recall_with_missing_modes() -> None:
    real = torch.cat([_rows(100, 5), _rows(100, 6, shift=20)])
    one_mode = torch.cat([_rows(100, 7), _rows(100, 8)])
    precision, recall = precision_recall(one_mode, real)
    assert precision > 0.8
    assert recall < 0.55
    astray = torch.cat([real[:100] + 0.01, _rows(100, 9, shift=-50)])
    assert precision_recall(astray, real)[0] == pytest.approx(0.5)


def test_both_sides_count_equally_many() -> None:
    samples, real = _rows(50, 10), _rows(500, 11)
    chosen = torch.randperm(500, generator=torch.Generator().manual_seed(0))[:50]
    assert precision_recall(samples, real) == precision_recall(samples, real[chosen])


def test_inception_score_of_sure_and_unsure_verdicts() -> None:
    assert inception_score(torch.eye(10).repeat(50, 1), splits=1) == pytest.approx(10)
    assert inception_score(torch.full((100, 10), 0.1), splits=4) == pytest.approx(1)
    assert inception_score(torch.eye(10)[[3] * 100], splits=4) == pytest.approx(1)


def test_inception_score_equals_torch_fidelitys() -> None:
    theirs = pytest.importorskip("torch_fidelity.metric_isc").isc_features_to_metric
    logits = 3 * _rows(400, 12, dim=20).double()
    expected = theirs(logits, splits=1, shuffle=False)["inception_score_mean"]
    assert inception_score(logits.softmax(dim=1), splits=1) == pytest.approx(expected, rel=EXACT)


def test_inception_score_does_not_mind_samples_sorted_by_class() -> None:
    by_class = torch.eye(10).repeat_interleave(100, dim=0)
    assert inception_score(by_class) > 9


def test_auroc_counts_ordered_pairs() -> None:
    inside, outside = [3.0, 2.0, 2.0], [1.0, 2.0]
    wins = sum((a > b) + 0.5 * (a == b) for a in inside for b in outside)
    assert auroc(inside, outside) == pytest.approx(wins / 6)
