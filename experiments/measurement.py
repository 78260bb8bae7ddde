"""One measured number with everything it is about, in columns of its own: nothing is ever encoded in a name.

Also the columns of cells.csv, in which numbers of several seeds become one, and the interval over them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

ABOUT = ("level", "steps", "weight", "against", "mask", "image_size", "variant")
"""Columns that tell apart the numbers of one row and metric."""
COLUMNS = (
    "experiment", "scale", "row", "dataset", "metric", "protocol", *ABOUT, "value", "low", "high", "seeds", "samples",
    "published", "published_status", "verdict", "grad_evals", "train_seconds", "sample_seconds", "device", "commit",
    "runs", "label", "method", "budget", "note",
)  # fmt: skip
"""Of cells.csv."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A number that an evaluation measured on one run.

    Attributes:
        metric: its name, one of `experiments.metrics.METRICS` for a title and a direction.
        protocol: how it was measured; two protocols never share a column.
        value: the number; NaN where it is undefined.
        samples: how many images (or draws, or points) it rests on.
        dataset: the data set it is about; empty for the run's own.
        level: the noise level, 0 … T − 1.
        steps: K, Langevin steps per level.
        weight: of guidance, or of a concept.
        against: the data set it is compared with.
        mask: the pixels that were known.
        image_size: height and width in pixels.
        variant: what else sets it apart, in a word or two.
        grad_evals: energy-gradient evaluations per sample.
        seconds: that sampling took.
    """

    metric: str
    protocol: str
    value: float
    samples: int
    dataset: str = ""
    level: int | None = None
    steps: int | None = None
    weight: float | None = None
    against: str = ""
    mask: str = ""
    image_size: int | None = None
    variant: str = ""
    grad_evals: float | None = None
    seconds: float | None = None

    def about(self) -> dict[str, Any]:
        """The columns `ABOUT`."""
        return {name: getattr(self, name) for name in ABOUT}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Measurement:
        """The inverse of `to_json`. Raises `TypeError` for a record with other fields."""
        return cls(**record)

    def to_json(self) -> dict[str, Any]:
        """Only the fields that say something."""
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}


def interval(values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean and 95 % Student-t interval over the first axis, ``(seeds, *)`` → three ``(*)``; NaN bounds for one seed."""
    from scipy import stats  # where it is needed: what reads measurements starts without it

    array = np.asarray(values, dtype=np.float64)
    mean = array.mean(axis=0)
    if len(array) < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = stats.t.ppf(0.975, len(array) - 1) * array.std(axis=0, ddof=1) / math.sqrt(len(array))
    return mean, mean - half, mean + half
