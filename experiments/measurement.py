"""One measured number with everything it is about, in columns of its own: nothing is ever encoded in a name.

Also the columns of cells.csv, in which numbers of several seeds become one; the interval over them; and the test of a
difference, without which none is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import AfterValidator

from cdrl.errors import UserError
from experiments.files import Amount, AtLeastOne, Count, Line, Name, Number, Share, Value, checked

ABOUT = ("level", "steps", "weight", "against", "mask", "image_size", "variant", "trained")
"""Columns that tell apart the numbers of one row and metric."""
COLUMNS = (
    "experiment", "scale", "row", "dataset", "metric", "protocol", *ABOUT, "value", "low", "high", "seeds", "diverged",
    "rollbacks", "samples", "published", "published_status", "verdict", "updates", "train_cost", "grad_evals",
    "train_seconds", "sample_seconds", "chain_steps", "sampling_steps", "step_variance", "device", "commit", "runs",
    "values", "label", "method", "note",
)  # fmt: skip
"""Of cells.csv. ``values`` and ``rollbacks`` have a number for each of ``runs``, in their order; a value is NaN for one
that diverged."""
LEVEL = 0.05
"""Of every test; intervals hold 1 − `LEVEL`."""
_SLACK = {"rhat": 0.3}
"""How far out of its bounds a value may be other than by rounding: split R̂ of short chains, by chance."""
_ROUNDING = 1e-12
"""Of numbers this close to each other, relative to their size, none is larger."""


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
        trained: the share of the training's iterations after which it was measured; None for its end.
        grad_evals: energy-gradient evaluations per sample.
        seconds: that sampling took.
    """

    metric: Name
    protocol: Name
    value: Value
    samples: Count
    dataset: Line = ""
    level: Count | None = None
    steps: Count | None = None
    weight: Number | None = None
    against: Line = ""
    mask: Line = ""
    image_size: AtLeastOne | None = None
    variant: Line = ""
    trained: Share | None = None
    grad_evals: Amount | None = None
    seconds: Amount | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What it is a number of: two of one evaluation never share it."""
        return (self.dataset, self.metric, self.protocol, *self.about().values())

    def about(self) -> dict[str, Any]:
        """The columns `ABOUT`."""
        return {name: getattr(self, name) for name in ABOUT}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Measurement:
        """The inverse of `to_json`. Raises `UserError` for a record of other fields, or of a number that cannot be."""
        return checked(record, Possible, "a recorded measurement", "run the experiment again")

    def to_json(self) -> dict[str, Any]:
        """Only the fields that say something."""
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}


def by_key(measurements: Iterable[Measurement]) -> dict[tuple[Any, ...], Measurement]:
    """The measurements of one evaluation by `Measurement.key`. Raises `UserError` where two share one."""
    known: dict[tuple[Any, ...], Measurement] = {}
    for measurement in measurements:
        if measurement.key in known:
            about = " ".join(str(part) for part in measurement.key if part not in (None, ""))
            raise UserError(f"two numbers of one evaluation are called '{about}'; give what they are about other names")
        known[measurement.key] = measurement
    return known


def within(name: str, value: float) -> bool:
    """Whether a metric can have this value: NaN, where it is undefined, or finite and within its bounds, but for
    rounding."""
    from experiments.metrics import metric  # metrics read folders, which read measurements

    low, high = metric(name).bounds
    slack = _SLACK.get(name, 0.01)
    return math.isnan(value) or (math.isfinite(value) and low - slack <= value <= high + slack)


def _possible(measured: Measurement) -> Measurement:
    if not within(measured.metric, measured.value):
        raise ValueError(f"{measured.metric} cannot be {measured.value:g}")
    return measured


Possible = Annotated[Measurement, AfterValidator(_possible)]
"""A `Measurement` as files have it."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean difference of two rows, and whether it is one.

    Attributes:
        value: the mean difference.
        low, high: its 95 % interval.
        p: of "there is no difference", two-sided, in 0 … 1.
        test: "paired, 3 seeds" or "Welch, 3 and 5 seeds".
    """

    value: float
    low: float
    high: float
    p: float
    test: str

    @property
    def shown(self) -> bool:
        """Whether the test tells the rows apart."""
        return self.p < LEVEL


def interval(
    values: ArrayLike, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean and 95 % interval of the mean over the first axis, ``(seeds, *)`` → three ``(*)``; NaN for one seed.

    Student's t, for the mean m with standard error e on the scale g that has no limits:

        g(m) ± t · e · g'(m),  taken back,   g(x) = x, log(x − a), −log(b − x) or log(x − a)/(b − x)

    for a quantity without limits, above ``a``, below ``b``, or between (the delta method). So the interval never leaves
    the range and always holds the mean. Neither is true of its rivals: a clipped interval ends where no number can
    be or claims a limit to be reached, and one of transformed values is about another mean and has no value for a seed
    at the limit. Far from the limits it is the plain t-interval; equal values have an interval of no width.

    Args:
        values: finite, at least one seed.
        bounds: the smallest and the largest value possible; rounding may put a value outside, and moves them there.
    """
    from scipy import stats  # where it is needed: what reads measurements starts without it

    array = np.asarray(values, dtype=np.float64)
    mean = array.mean(axis=0)
    if len(array) < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = stats.t.ppf(1 - LEVEL / 2, len(array) - 1) * array.std(axis=0, ddof=1) / math.sqrt(len(array))
    half = np.where(np.ptp(array, axis=0) <= _ROUNDING * np.abs(mean), 0.0, half)

    # Distances to the limits become so many times larger or smaller: a factor of exp(h/r) on either side, where the
    # scale's derivative 1/r is that of log, or of logit.
    above = mean - np.minimum(bounds[0], array.min(axis=0))
    below = np.maximum(bounds[1], array.max(axis=0)) - mean
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if math.isinf(bounds[0]) and math.isinf(bounds[1]):
            low, high = mean - half, mean + half
        elif math.isinf(bounds[1]):
            factor = np.exp(half / above)
            low, high = mean - above + above / factor, mean - above + above * factor
        elif math.isinf(bounds[0]):
            factor = np.exp(half / below)
            low, high = mean + below - below * factor, mean + below - below / factor
        else:
            width = above + below
            factor = np.exp(half * width / (above * below))
            low = mean - above + width * above / (above + below * factor)
            high = mean + below - width * below / (below + above * factor)
    return mean, np.where(half > 0, low, mean), np.where(half > 0, high, mean)


def difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Difference | None:
    """Ours minus theirs, with a 95 % interval and a t-test: paired by seed where two or more seeds are shared, else
    Welch's. None where neither is possible: a single seed says nothing about a difference.

    Args:
        ours, theirs: seed → finite value.
        bounds: of the quantity; a difference is within their distance.
    """
    from scipy import stats

    shared = sorted(set(ours) & set(theirs))
    if len(shared) >= 2:
        changes = np.array([ours[seed] - theirs[seed] for seed in shared])
        size = max(abs(theirs[seed]) for seed in shared)
        value, error, freedom = float(changes.mean()), float(stats.sem(changes)), len(shared) - 1.0
        test = f"paired, {len(shared)} seeds"
    elif min(len(ours), len(theirs)) >= 2:
        first, second = np.array(list(ours.values())), np.array(list(theirs.values()))
        size = float(np.abs(second).max())
        parts = np.array([first.var(ddof=1) / len(first), second.var(ddof=1) / len(second)])
        value, error = float(first.mean() - second.mean()), math.sqrt(parts.sum())
        weights = parts**2 / np.array([len(first) - 1, len(second) - 1])
        freedom = float(parts.sum() ** 2 / weights.sum()) if error else 1.0
        test = f"Welch, {len(first)} and {len(second)} seeds"
    else:
        return None
    if error <= _ROUNDING * size:  # nothing random in either
        return Difference(value=value, low=value, high=value, p=float(abs(value) <= _ROUNDING * size), test=test)
    half, most = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * error, bounds[1] - bounds[0]
    p = 2 * float(stats.t.sf(abs(value) / error, freedom))
    return Difference(value=value, low=max(value - half, -most), high=min(value + half, most), p=p, test=test)
