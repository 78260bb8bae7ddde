"""Split-R̂ and effective sample size against cases with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.metrics.mixing import effective_sample_size, split_rhat


def autoregression(coefficient: float, chains: int, draws: int) -> np.ndarray:
    random = np.random.RandomState(0)
    rows = [random.standard_normal(chains)]
    for _ in range(draws - 1):
        rows.append(coefficient * rows[-1] + np.sqrt(1 - coefficient**2) * random.standard_normal(chains))
    return np.stack(rows, axis=1)


def test_independent_draws() -> None:
    traces = np.random.RandomState(0).standard_normal((4, 2000))
    assert split_rhat(traces) == pytest.approx(1.0, abs=2e-3)
    assert effective_sample_size(traces) == pytest.approx(8000, rel=0.1)


@pytest.mark.parametrize("coefficient", [0.5, 0.9, -0.4])
def test_effective_size_of_an_autoregression(coefficient: float) -> None:
    traces = autoregression(coefficient, 4, 20_000)
    expected = traces.size * (1 - coefficient) / (1 + coefficient)
    assert effective_sample_size(traces) == pytest.approx(expected, rel=0.12)


def test_chains_that_disagree() -> None:
    traces = np.random.RandomState(0).standard_normal((4, 1000)) + np.arange(4)[:, None]
    assert split_rhat(traces) > 1.1
    assert effective_sample_size(traces) < 20


def test_one_chain_that_drifts() -> None:
    traces = np.random.RandomState(0).standard_normal((1, 1000)) + np.linspace(0, 4, 1000)
    assert split_rhat(traces) > 1.1


def test_split_rhat_by_hand() -> None:
    traces = np.array([[0.0, 2.0, 4.0, 8.0]])  # halves: means 1 and 6, variances 2 and 8
    assert split_rhat(traces) == pytest.approx(np.sqrt(0.5 + 12.5 / 5))
