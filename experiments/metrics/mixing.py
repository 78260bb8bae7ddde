"""Do chains mix? Split-R̂ and effective sample size of scalar traces (Gelman et al. 2013; Vehtari et al. 2021).

Traces are float arrays ``(chains, draws)`` of one scalar quantity along chains that share a target.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def split_rhat(traces: Array) -> float:
    """Potential scale reduction of the chains' halves; 1 when they agree. NaN for constant traces.

    ``R̂ = √(((n − 1)/n W + B/n)/W)`` with W the mean variance within, and B/n the variance between, half-chains.
    """
    halves = _halves(traces)
    n = halves.shape[1]
    within = halves.var(axis=1, ddof=1).mean()
    if within == 0:
        return float("nan")
    return float(np.sqrt((n - 1) / n + halves.mean(axis=1).var(ddof=1) / within))


def effective_sample_size(traces: Array) -> float:
    """Number of independent draws that would pin the mean down as well, at most chains · draws · log10(chains · draws).

    Autocorrelations from within and between the half-chains, summed up to Geyer's initial monotone sequence.
    """
    halves = _halves(traces)
    m, n = halves.shape
    # The biased autocovariance at lags 0 … n − 1, by FFT.
    spectrum = np.fft.rfft(halves - halves.mean(axis=1, keepdims=True), 2 * n, axis=1)
    covariance = np.mean(np.fft.irfft(spectrum * spectrum.conj(), 2 * n, axis=1)[:, :n] / n, axis=0)
    within = covariance[0] * n / (n - 1)
    total = covariance[0] + halves.mean(axis=1).var(ddof=1)
    if total == 0:
        return float("nan")
    correlation = 1 - (within - covariance * n / (n - 1)) / total
    correlation[0] = 1.0
    pairs = correlation[: n - n % 2].reshape(-1, 2).sum(axis=1)
    ends = np.flatnonzero(pairs <= 0)
    pairs = np.minimum.accumulate(pairs[: ends[0] if len(ends) else None])
    time = max(-1.0 + 2.0 * float(pairs.sum()), 1.0 / np.log10(m * n))
    return m * n / time


def _halves(traces: Array) -> Array:
    half = traces.shape[1] // 2
    return np.concatenate((traces[:, :half], traces[:, -half:])).astype(np.float64)
