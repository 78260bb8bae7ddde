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
from experiments.evaluate import Measurement, Progress, TrainedRun, samples
from experiments.metrics import Scorer, to_pixels

_SEARCH_SHARE = 0.5


def evaluate(run: TrainedRun, settings: dict[str, Any], out: Path, progress: Progress) -> list[Measurement]:
    """See the module's docstring."""
    tried = _search(run, settings, progress)
    chosen = min(tried, key=lambda multiplier: tried[multiplier]) if tried else 1.0
    np.savez(out / "search.npz", multipliers=list(tried), values=list(tried.values()), chosen=chosen)
    scored = samples.evaluate(
        run,
        {**settings, "step_multiplier": chosen},
        out,
        lambda done, text: progress(_SEARCH_SHARE + (1 - _SEARCH_SHARE) * done, text),
    )
    search: Measurement = {
        "metric": "step_multiplier",
        "protocol": "search",
        "value": float(chosen),
        "samples": settings["search_samples"],
    }
    return [*scored, search]


def _search(run: TrainedRun, settings: dict[str, Any], progress: Progress) -> dict[float, float]:
    """The score of each multiplier; nothing to search without a step."""
    values: dict[float, float] = {}
    for number, multiplier in enumerate(settings["multipliers"] if settings["steps"] else []):
        progress(
            _SEARCH_SHARE * number / len(settings["multipliers"]), f"K = {settings['steps']}: trying m = {multiplier}"
        )
        values[multiplier] = _value(run, {**settings, "step_multiplier": multiplier})
    return values


def _value(run: TrainedRun, settings: dict[str, Any]) -> float:
    """The protocol's first metric, lower is better, on the search's own samples; infinite where a chain ran away.

    Running away ends in NaN, which 8 bits cannot hold: it is looked for before the images are rounded.
    """
    apart = replace(run, seed=randomness.key(run.seed, "search"))
    scorer = Scorer(run.protocol.headline, run.train, run.cache, run.device)
    for images in samples.batches(apart, settings["search_samples"], settings):
        if not images.isfinite().all():
            return np.inf
        scorer.update(to_pixels(images, run.protocol.rounding))
    value = scorer.result()[run.protocol.metrics[0]]
    return value if np.isfinite(value) else np.inf
