"""Mean and 95 % confidence interval over seeds."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


def interval(values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean and 95 % Student-t interval over the first axis, ``(seeds, *)`` → three ``(*)``; NaN bounds for one seed."""
    array = np.asarray(values, dtype=np.float64)
    mean = array.mean(axis=0)
    if len(array) < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = stats.t.ppf(0.975, len(array) - 1) * array.std(axis=0, ddof=1) / math.sqrt(len(array))
    return mean, mean - half, mean + half
