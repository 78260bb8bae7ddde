"""Stage "search": settings for the time there is, by successive halving; every trial is a line of ``search.csv``.

Each method gets the same number of training seconds. They are shared evenly by the rounds, and in a round by the trials
that are left; the better third goes on, with a run of its own that is longer (its learning rate decays over that
length). The first trial is what the scale's file says, the others are drawn from `SPACES` with a fixed seed. A trial's
score is the protocol's first metric on few samples of a seed that no table uses.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Settings = dict[str, Any]
Result = dict[str, Any]
Attempt = Callable[[str, Settings, float], Result]
"""(method, settings, training seconds) → at least "score", infinite where there is none."""
KEEP = 3
"""One trial in so many goes on to the next round."""
COLUMNS = (
    "method", "round", "settings", "seconds", "score", "status", "trained_seconds", "iterations", "budget",
    "images_per_second", "peak_bytes", "wall_seconds", "device", "commit",
)  # fmt: skip

_ENERGY = {"energy.width": (48, 64, 96, 128), "energy.blocks": (1, 2, 3)}
SPACES: dict[str, dict[str, Sequence[Any]]] = {
    "cdrl": {
        **_ENERGY,
        "batch_size": (64, 128, 256),
        "optimisation.learning_rate": (2e-4, 5e-4, 1e-3),
        "initializer_optimisation.learning_rate": (1e-4, 2e-4, 5e-4),
        "chain": ((5, 1.2e-3), (8, 8e-4), (15, 4e-4)),
    },
    "drl": {
        **_ENERGY,
        "batch_size": (64, 128, 256),
        "optimisation.learning_rate": (1e-4, 3e-4, 1e-3),
        "chain": ((10, 6e-4), (15, 4e-4), (30, 2e-4)),
    },
    "short_run": {
        **_ENERGY,
        "batch_size": (64, 128, 256),
        "optimisation.learning_rate": (1e-4, 3e-4, 1e-3),
        "steps": (30, 60, 100),
    },
}
"""What is searched; "chain" is K and b² together, since K steps diffuse as far as b·√K. The first trial is no draw."""
TINY_SPACES: dict[str, dict[str, Sequence[Any]]] = {
    "cdrl": {"energy.width": (8, 12), "chain": ((1, 8e-4), (2, 4e-4)), "batch_size": (2, 4)},
    "drl": {"energy.width": (8, 12), "chain": ((1, 8e-4), (2, 4e-4)), "batch_size": (2, 4)},
    "short_run": {"energy.width": (8, 12), "steps": (1, 2), "batch_size": (2, 4)},
}


def candidates(space: Mapping[str, Sequence[Any]], count: int, seed: int = 0) -> list[Settings]:
    """The scale's own settings (nothing changed), then distinct draws from ``space``; fewer if it is smaller."""
    everything = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    drawn = random.Random(seed).sample(everything, min(count - 1, len(everything)))
    return [{}, *drawn]


def overrides(method: str, settings: Settings) -> list[str]:
    """A trial as the suite's own overrides."""
    lines = []
    for key, value in settings.items():
        if key == "chain":
            lines += [f"methods.{method}.chain.steps={value[0]}", f"methods.{method}.chain.step_variance={value[1]}"]
        else:
            lines.append(f"methods.{method}.{key}={value}")
    return lines


def rounds(count: int) -> list[int]:
    """How many trials each round has."""
    sizes = [count]
    while sizes[-1] > KEEP:
        sizes.append(math.ceil(sizes[-1] / KEEP))
    return sizes


@dataclass(frozen=True)
class Log:
    """``search.csv``: trials are appended as they end, and one that stands there is not tried again."""

    path: Path

    def read(self) -> list[dict[str, str]]:
        """The lines, values as text."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def find(self, method: str, number: int, settings: Settings, seconds: float) -> dict[str, str] | None:
        """The line of a trial."""
        wanted = (method, str(number), json.dumps(settings), f"{seconds:.6g}")
        for line in self.read():
            if (line["method"], line["round"], line["settings"], line["seconds"]) == wanted:
                return line
        return None

    def append(self, method: str, number: int, settings: Settings, seconds: float, result: Result) -> None:
        """Write down a trial."""
        facts = {"method": method, "round": number, "settings": json.dumps(settings), "seconds": f"{seconds:.6g}"}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow({**result, **facts})


def halving(method: str, trials: list[Settings], seconds: float, attempt: Attempt, log: Log) -> Settings:
    """The best settings for a method, with ``seconds`` of training in all; trials in ``log`` are not repeated.

    Raises:
        RuntimeError: no trial of some round has a finite score.
    """
    alive, sizes = trials, rounds(len(trials))
    for number, size in enumerate(sizes):
        alive = alive[:size]
        share = seconds / len(sizes) / size
        scored = [(_score(method, number, trial, share, attempt, log), place) for place, trial in enumerate(alive)]
        best = sorted(pair for pair in scored if math.isfinite(pair[0]))
        if not best:
            raise RuntimeError(f"every trial of {method} failed in round {number}; see {log.path}")
        alive = [alive[place] for _, place in best]
    return alive[0]


def _score(method: str, number: int, trial: Settings, seconds: float, attempt: Attempt, log: Log) -> float:
    known = log.find(method, number, trial, seconds)
    if known is None:
        result = attempt(method, trial, seconds)
        log.append(method, number, trial, seconds, result)
        print(f"{method}, round {number}, {json.dumps(trial)}: {result['score']:.4g}", flush=True)
        return float(result["score"])
    return float(known["score"])
