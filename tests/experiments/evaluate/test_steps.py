"""The search for a step size takes the best of what it tried, on samples of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.evaluate import samples, steps
from experiments.measurement import Measurement
from tests.experiments.evaluate.conftest import Runs, quiet

SETTINGS = {"steps": 3, "multipliers": [1.0, 1.5, 2.0], "search_samples": 8, "samples": 16}


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings that reach `samples.evaluate`, with a search whose best multiplier is 1.5."""
    calls: list[dict[str, Any]] = []

    def evaluate(run: Any, settings: dict[str, Any], *others: Any) -> list[Measurement]:
        calls.append(settings)
        return [Measurement(metric="fd", protocol="fd-digits", value=1.0, samples=settings["samples"])]

    monkeypatch.setattr(samples, "evaluate", evaluate)
    monkeypatch.setattr(steps, "score", lambda run, settings: abs(settings["step_multiplier"] - 1.5))
    return calls


def test_best_multiplier_is_scored(make_run: Runs, tmp_path: Path, scored: list[dict[str, Any]]) -> None:
    *_, search = steps.evaluate(make_run(), SETTINGS, tmp_path, quiet)
    assert scored == [{**SETTINGS, "step_multiplier": 1.5}]
    assert (search.metric, search.value, search.samples, search.steps) == ("step_multiplier", 1.5, 8, 3)
    kept = np.load(tmp_path / "search.npz")
    assert kept["values"].tolist() == [0.5, 0.0, 0.5]
    assert kept["chosen"] == 1.5


def test_no_step_needs_no_search(make_run: Runs, tmp_path: Path, scored: list[dict[str, Any]]) -> None:
    steps.evaluate(make_run(), {**SETTINGS, "steps": 0}, tmp_path, quiet)
    assert scored == [{**SETTINGS, "steps": 0, "step_multiplier": 1.0}]
    assert np.load(tmp_path / "search.npz")["values"].size == 0


def test_search_draws_from_another_seed(make_run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    class Stub:
        def __init__(self, *arguments: Any) -> None: ...

        def extract(self, pixels: Any) -> list[Any]:
            return []

        def add(self, extracted: Any) -> None: ...

        def result(self) -> dict[str, float]:
            return {"fd": float("nan")}

    def drawn(run: Any, n: int, settings: dict[str, Any], scorer: Any) -> list[list[Any]]:
        seeds.append(run.seed)
        return []

    monkeypatch.setattr(steps, "Scorer", Stub)
    monkeypatch.setattr(samples, "drawn", drawn)
    run = make_run()
    assert steps.score(run, SETTINGS) == np.inf
    assert seeds != [run.seed]


def test_a_chain_that_ran_away_scores_infinitely(make_run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub:
        def __init__(self, *arguments: Any) -> None: ...

        def extract(self, pixels: Any) -> list[Any]:
            return []

        def add(self, extracted: Any) -> None: ...

        def result(self) -> dict[str, float]:
            return {"fd": 1.0}

    monkeypatch.setattr(steps, "Scorer", Stub)
    settings = {**SETTINGS, "batch": 4}
    assert steps.score(make_run(), {**settings, "step_multiplier": 1.0}) == 1.0
    assert steps.score(make_run(), {**settings, "step_multiplier": 1e18}) == np.inf
