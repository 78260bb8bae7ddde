"""Sample quality at another number of Langevin steps, with the step-size multiplier chosen by a small search.

The search scores each multiplier m on few samples of a seed of its own and takes the best by the protocol's first
metric; what is reported comes from fresh samples of the run's seed. A shorter chain wants wider steps: K steps diffuse
as far as m·s·√K.

Settings: ``steps``, K; ``multipliers``; ``search_samples``; ``samples`` and all else as in
`experiments.evaluate.samples`. Written to ``search.npz``: ``multipliers``, ``values``, ``chosen``; and what `samples`
writes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cdrl import randomness
from experiments.evaluate import Diverged, Health, OnProgress, TrainedRun, samples
from experiments.measurement import Measurement
from experiments.metrics import Scorer

SCORES = SHARED = True
_SEARCH_SHARE = 0.5


def evaluate(run: TrainedRun, settings: dict[str, Any], out: Path, progress: OnProgress) -> list[Measurement]:
    """See the module's docstring."""
    # Search; without a step there is nothing to search.
    multipliers = settings["multipliers"] if settings["steps"] else []
    values: dict[float, float] = {}
    for number, multiplier in enumerate(multipliers):
        share = _SEARCH_SHARE * number / len(multipliers)
        progress(share, f"K = {settings['steps']}: trying m = {multiplier}, {number + 1} of {len(multipliers)}")
        value = score(run, {**settings, "step_multiplier": multiplier})
        values[multiplier] = run.group.gathered(value)[0]  # all processes choose the same
    chosen = min(values, key=lambda multiplier: values[multiplier]) if values else 1.0
    if run.group.first:
        np.savez(out / "search.npz", multipliers=list(values), values=list(values.values()), chosen=chosen)

    # Measure.
    def later(done: float, text: str) -> None:
        progress(_SEARCH_SHARE + (1 - _SEARCH_SHARE) * done, text)

    scored = samples.evaluate(run, {**settings, "step_multiplier": chosen}, out, later)
    search = Measurement(
        metric="step_multiplier", protocol="search", value=float(chosen), samples=settings["search_samples"],
        steps=settings["steps"],
    )  # fmt: skip
    return [*scored, search]


def score(run: TrainedRun, settings: dict[str, Any]) -> float:
    """The protocol's first metric, lower is better, on the search's own samples; infinite where a chain ran away."""
    apart = replace(run, seed=randomness.key(run.seed, "search"), health=Health())
    scorer = Scorer(run.protocol.headline, run.train, run.cache, run.device)
    try:
        for batches in samples.drawn(apart, settings["search_samples"], settings, scorer):
            for batch in batches:
                scorer.add(batch.extracted)
    except Diverged:
        return np.inf
    value = scorer.result()[run.protocol.metrics[0]]
    return value if np.isfinite(value) else np.inf
