"""Intervals that stay where the quantity can be, and differences that are tested."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from experiments.measurement import difference, interval
from experiments.metrics import metric

INF = math.inf


def test_without_limits_it_is_students_interval() -> None:
    values = [3.0, 5.0, 4.2]
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert interval(values) == (pytest.approx(np.mean(values)), *map(pytest.approx, expected))


@pytest.mark.parametrize("bounds", [(0.0, INF), (-INF, 2e4), (0.0, 2e4), (0.99, INF)])
def test_far_from_limits_too(bounds: tuple[float, float]) -> None:
    values = [1e4, 1.01e4, 0.995e4]
    np.testing.assert_allclose(interval(values, bounds), interval(values), rtol=5e-4)


@pytest.mark.parametrize(
    ("values", "bounds"),
    [
        ([0.84, 0.99, 0.7], (0.0, 1.0)),
        ([0.5, 0.99], (0.0, 1.0)),
        ([1.0, 1.0, 0.999], (0.0, 1.0)),
        ([0.0, 0.0, 0.3], (0.0, 1.0)),
        ([0.8, 1.0, 2.1], (0.0, INF)),
        ([0.01, 40.0], (0.0, INF)),
        ([1.3, 1.5, 2.2], (0.99, INF)),
        ([-3.0, -0.1, -0.2], (-INF, 0.0)),
    ],
)
def test_it_holds_the_mean_and_stays_inside(values: list[float], bounds: tuple[float, float]) -> None:
    mean, low, high = map(float, interval(values, bounds))
    assert bounds[0] <= low < mean < high <= bounds[1]
    assert mean == pytest.approx(np.mean(values))


def test_a_limit_is_felt_alike_from_either_side() -> None:
    mean, low, high = interval([0.9, 0.95, 0.99], (0.0, 1.0))
    np.testing.assert_allclose(interval([0.1, 0.05, 0.01], (0.0, 1.0)), (1 - mean, 1 - high, 1 - low))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_equal_values_have_an_interval_of_no_width(value: float) -> None:
    assert interval([value] * 3, (0.0, 1.0)) == (pytest.approx(value), pytest.approx(value), pytest.approx(value))


def test_curves_and_single_seeds() -> None:
    mean, low, high = interval([[1.0, 2.0], [1.0, 3.0]], (0.0, INF))
    assert (mean.tolist(), low[0], high[0]) == ([1.0, 2.5], 1.0, 1.0)
    assert 0 < low[1] < 2.5 < high[1]
    assert np.isnan(interval([[1.0, 2.0]])[1]).all()
    assert np.isnan(interval([1.0, math.nan], (0.0, 1.0))).all(), "what is undefined once is undefined in the mean"


def test_split_rhat_keeps_to_its_range() -> None:
    bounds = metric("rhat").bounds
    _, low, high = interval([1.36, 1.62, 1.95], bounds)
    assert 1.0 < low < 1.62 < high
    _, low, high = interval([0.9996, 0.9999, 1.0001], bounds)
    assert bounds[0] < low < 1.0 < high < 1.01


def test_shared_seeds_are_paired() -> None:
    ours, theirs = {0: 6.5, 1: 5.4, 2: 7.0, 3: 9.0}, {2: 4.4, 1: 5.3, 0: 4.0}
    test = difference(ours, theirs)
    expected = stats.ttest_rel([6.5, 5.4, 7.0], [4.0, 5.3, 4.4])
    assert test is not None
    assert (test.p, test.low) == (pytest.approx(expected.pvalue), pytest.approx(expected.confidence_interval().low))
    assert (test.test, test.shown) == ("paired, 3 seeds", False)


def test_others_are_welchs() -> None:
    first, second = [6.5, 5.4, 7.0], [4.0, 5.3, 4.4, 4.1]
    test = difference(dict(enumerate(first)), {10 + seed: value for seed, value in enumerate(second)})
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert test is not None
    assert (test.p, test.high) == (pytest.approx(expected.pvalue), pytest.approx(expected.confidence_interval().high))
    assert (test.test, test.shown) == ("Welch, 3 and 4 seeds", expected.pvalue < 0.05)


def test_pairing_sees_what_seeds_share() -> None:
    base = {0: 10.0, 1: 20.0, 2: 30.0}
    better = {seed: value - 1.0 - 0.01 * seed for seed, value in base.items()}
    test = difference(better, base)
    assert test is not None
    assert test.shown
    assert test.high < 0


@pytest.mark.parametrize(("ours", "p"), [(1.0, 1.0), (0.9, 0.0)])
def test_where_nothing_is_random(ours: float, p: float) -> None:
    test = difference({0: ours, 1: ours}, {0: 1.0, 1: 1.0}, (0.0, 1.0))
    assert test is not None
    assert (test.p, test.low, test.high) == (p, pytest.approx(ours - 1.0), pytest.approx(ours - 1.0))


def test_a_difference_of_shares_is_one_at_most() -> None:
    test = difference({0: 0.9, 1: 0.1}, {0: 0.1, 1: 0.9}, (0.0, 1.0))
    assert test is not None
    assert (test.low, test.high) == (-1.0, 1.0)


def test_a_single_seed_is_not_tested() -> None:
    assert difference({0: 1.0}, {0: 2.0, 1: 3.0}) is None
    assert difference({0: 1.0, 1: 1.1}, {7: 2.0}) is None


def test_tests_are_wrong_as_often_as_they_say() -> None:
    """Under no difference p is uniform, and intervals of shares hold the truth about as often as they should."""
    random = np.random.default_rng(0)
    draws = random.normal(size=(2000, 2, 5))
    paired = [difference(dict(enumerate(a)), dict(enumerate(b))) for a, b in draws]
    assert np.mean([test.shown for test in paired if test]) == pytest.approx(0.05, abs=0.015)
    shares = random.beta(9.0, 1.0, size=(5, 4000))
    _, low, high = interval(shares, (0.0, 1.0))
    assert np.mean((low < 0.9) & (high > 0.9)) == pytest.approx(0.95, abs=0.03)
