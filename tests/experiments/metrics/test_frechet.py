"""Moments and the Fréchet distance against closed forms, NumPy and clean-fid."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.metrics import Moments, frechet_distance


def _features(n: int, dim: int, seed: int, offset: float = 0.0) -> Tensor:
    """Correlated rows with unequal variances."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator) * torch.logspace(0, -2, dim)
    return torch.randn(n, dim, generator=generator) @ mixing + offset


def _moments(features: Tensor) -> Moments:
    moments = Moments(features.shape[1])
    moments.update(features)
    return moments


def _distance(a: Moments, b: Moments) -> float:
    return frechet_distance(a.mean, a.cov, b.mean, b.cov)


@pytest.mark.parametrize("batch", [1, 7, 64, 500])
def test_streamed_moments_are_those_of_the_whole(batch: int) -> None:
    features = _features(500, 12, seed=0, offset=1e4)
    moments = Moments(12)
    for rows in features.split(batch):
        moments.update(rows)
    whole = features.double().numpy()
    np.testing.assert_allclose(moments.mean, whole.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.cov, np.cov(whole, rowvar=False), rtol=1e-8, atol=1e-12)
    assert moments.count == 500


def test_merged_moments_are_those_of_the_whole() -> None:
    features = _features(300, 5, seed=1)
    merged = Moments(5)
    for part in (features[:40], features[40:40], features[40:]):
        merged.merge(_moments(part))
    np.testing.assert_allclose(merged.cov, np.cov(features.double().numpy(), rowvar=False), rtol=1e-10)
    assert merged.count == 300


def test_restored_moments_go_on() -> None:
    features = _features(300, 5, seed=1)
    first = _moments(features[:100])
    again = Moments.restore(first.count, first.mean, first.cov)
    again.update(features[100:])
    np.testing.assert_allclose(again.cov, _moments(features).cov, rtol=1e-10)


def test_one_row_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least two"):
        _ = _moments(torch.zeros(1, 3)).cov


def test_distance_between_commuting_gaussians() -> None:
    """Σ (m₁ − m₂)² + (s₁ − s₂)² for covariances with the same axes."""
    axes = torch.linalg.qr(_features(6, 6, seed=2).double())[0]
    s1, s2 = torch.arange(1.0, 7.0).double(), torch.tensor([2.0, 0.5, 3.0, 1.0, 9.0, 4.0]).double()
    m1, m2 = torch.zeros(6).double(), torch.arange(6).double()
    cov1, cov2 = (axes @ torch.diag(s**2) @ axes.T for s in (s1, s2))
    expected = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    assert frechet_distance(m1, cov1, m2, cov2) == pytest.approx(expected.item(), rel=1e-12)


def test_distance_equals_clean_fids() -> None:
    fid = pytest.importorskip("cleanfid.fid")
    a, b = (_moments(_features(4000, 64, seed, 0.05 * seed)) for seed in (3, 4))
    args = [value.numpy() for value in (a.mean, a.cov, b.mean, b.cov)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            theirs = fid.frechet_distance(*args)
    except TypeError:
        pytest.skip("this SciPy's sqrtm no longer takes clean-fid's arguments")
    assert _distance(a, b) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("counts", [(10, 200), (200, 10), (10, 12)])
def test_fewer_rows_than_dimensions(counts: tuple[int, int]) -> None:
    """tr (C₁ C₂)^½ is the nuclear norm of A₁ A₂ᵀ with Cᵢ = Aᵢᵀ Aᵢ, whatever the ranks."""
    rows = [_features(n, 40, seed=seed).double() for seed, n in enumerate(counts, start=5)]
    a, b = (_moments(part) for part in rows)
    roots = [(part - part.mean(dim=0)) / (len(part) - 1) ** 0.5 for part in rows]
    cross = torch.linalg.matrix_norm(roots[0] @ roots[1].T, "nuc")
    expected = (a.mean - b.mean).square().sum() + sum(root.square().sum() for root in roots) - 2 * cross
    assert _distance(a, b) == pytest.approx(expected.item(), rel=1e-6)


def test_distance_to_itself_is_zero() -> None:
    moments = _moments(_features(20, 64, seed=7))
    assert 0 <= _distance(moments, moments) < 1e-6 * moments.cov.trace().item()


def test_features_that_are_not_finite_are_refused() -> None:
    good, bad = _moments(torch.eye(3)), _moments(torch.tensor([[0.0, 0, 0], [1, float("nan"), 2]]))
    with pytest.raises(ValueError, match="not finite"):
        _distance(good, bad)
