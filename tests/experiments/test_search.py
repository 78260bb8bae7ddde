"""The recorded search: the best wins, all methods get the same effort, and nothing that is on record is tried again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cdrl.cli import UNFINISHED, main
from cdrl.errors import UserError
from experiments import configuration, search
from experiments.measurement import Measurement
from experiments.plan import Job, Plan, make_plan
from experiments.runs.folder import Result, Status

SPACE: dict[str, list[Any]] = {
    "energy.width": [8, 12, 16, 20],
    "chain": [
        {"steps": 2, "step_variance": 1e-2},
        {"steps": 3, "step_variance": 5e-3},
        {"steps": 4, "step_variance": 3e-3},
    ],
}
"""Its best point is known to `distance`: width 16, three steps. Width 8 diverges, width 20 does not fit."""
Outcome = Callable[[Job], "float | str"]


def distance(job: Job) -> float | str:
    method = job.settings.method
    if method["energy"]["width"] in (8, 20):
        return {8: "diverged", 20: "crash"}[method["energy"]["width"]]
    return 1.0 + abs(method["energy"]["width"] - 16) + abs(method["chain"]["steps"] - 3)


class Trainings:
    """In place of the engines: every trial ends at once, with the score that a function says."""

    def __init__(self, outcome: Outcome = distance, most: float = math.inf, metric: str = "fd") -> None:
        self.outcome, self.most, self.metric = outcome, most, metric
        self.jobs: list[Job] = []

    def __call__(self, plans: Sequence[Plan], complete: object) -> bool:
        crashes = 0
        for job in plans[0].missing():
            if len(self.jobs) >= self.most:
                return False
            self.jobs.append(job)
            job.want()
            outcome = self.outcome(job)
            if outcome == "crash":
                job.run.fail("OutOfMemoryError: no memory", mistake=False)
                crashes += 1
                continue
            status = "diverged" if outcome == "diverged" else "finished"
            job.run.finish(
                Status(status=status, iterations=7, seconds=0.5, grad_evals=70, commit="c", device="d", reason="energy")
            )
            if status == "finished":
                assert isinstance(outcome, float)
                measured = Measurement(metric=self.metric, protocol="fd-digits", value=outcome, samples=1000)
                (evaluation,) = job.evaluations
                evaluation.folder.keep(Result(measurements=(measured,), seconds=0.1, commit="c", device="d"))
        if crashes:
            raise UserError(f"a run stopped unexpectedly ({crashes} runs failed)")
        return True


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str] | None]:
    """Searches `SPACE` without training anything; ``trainings`` says what happens instead."""
    monkeypatch.setattr(search, "space", lambda method, scale: SPACE)

    def run(trainings: Trainings, *overrides: str, method: str = "cdrl", **options: Any) -> list[str] | None:
        monkeypatch.setattr(search, "carry_out", trainings)
        places = [f"runs={tmp_path / 'runs'}", f"results={tmp_path / 'results'}"]
        return search.search(method, [*places, *overrides], **{"trials": 13, "budget": 13_000_000, **options})

    return run


def log(tmp_path: Path, method: str = "cdrl") -> list[dict[str, str]]:
    return list(search.read_log(tmp_path / "results" / "search" / "nano" / f"{method}.csv").values())


def test_the_best_wins_and_every_trial_is_a_line(searched: Callable[..., Any], tmp_path: Path) -> None:
    trainings = Trainings()
    best = ["methods.cdrl.energy.width=16", "methods.cdrl.chain.steps=3", "methods.cdrl.chain.step_variance=0.005"]
    assert searched(trainings) == best
    lines = log(tmp_path)
    assert [int(line["round"]) for line in lines] == [1] * 13 + [2] * 5 + [3] * 2
    assert lines[0]["settings"] == "{}"
    statuses = [line["status"] for line in lines[:13]]
    assert statuses.count("diverged: energy") == statuses.count("OutOfMemoryError: no memory") == 3
    winner = [
        line for line in lines if json.loads(line["settings"]) == {"energy.width": 16, "chain": SPACE["chain"][1]}
    ]
    assert [line["score"] for line in winner] == ["1"] * 3
    assert {winner[0][name] for name in ("commit", "device")} == {"c", "d"}
    # Trials are ordinary runs of a seed that no table uses.
    assert {job.settings.seed for job in trainings.jobs} == {search.SEED}
    assert {evaluation.settings["kind"] for job in trainings.jobs for evaluation in job.evaluations} == {"samples"}


@pytest.mark.parametrize("budget", [13_000_000, {"seconds": 60.0}])
def test_every_method_spends_the_same(budget: Any, searched: Callable[..., Any]) -> None:
    for method in ("cdrl", "drl"):
        trainings = Trainings(lambda job: 1.0 + job.settings.recipe.chain.steps)  # type: ignore[attr-defined]
        assert searched(trainings, method=method, budget=budget)
        budgets = [job.settings.budget for job in trainings.jobs]
        spent = [one["seconds"] if isinstance(one, dict) else one for one in budgets]
        whole = budget["seconds"] if isinstance(budget, dict) else budget
        assert sum(spent) == pytest.approx(whole, rel=1e-3)
        assert spent[0] < spent[13] < spent[18]  # those that go on train for longer


def test_a_half_finished_search_goes_on_and_repeats_nothing(searched: Callable[..., Any], tmp_path: Path) -> None:
    first, second = Trainings(most=15), Trainings()
    assert searched(first) is None
    before = log(tmp_path)
    assert len(before) == 15
    best = searched(second)
    assert len(second.jobs) == 5
    assert log(tmp_path)[:15] == before
    assert best is not None
    assert best[0].endswith("width=16")
    again = Trainings()
    assert searched(again) == best
    assert not again.jobs
    assert len(log(tmp_path)) == 20


def test_a_mistake_is_no_outcome_of_a_trial(searched: Callable[..., Any], tmp_path: Path) -> None:
    def mistaken(plans: Sequence[Plan], complete: object) -> bool:
        plans[0].jobs()[0].run.want(plans[0].jobs()[0].settings)
        plans[0].jobs()[0].run.fail("no data", mistake=True)
        raise UserError("no data")

    with pytest.raises(UserError, match="no data"):
        searched(mistaken)
    assert not log(tmp_path)


def test_without_a_score_there_is_no_winner(searched: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"every trial of cdrl failed in round 1; see .*cdrl\.csv"):
        searched(Trainings(lambda job: "diverged"))


def test_higher_is_better_for_some_metrics(searched: Callable[..., Any]) -> None:
    trainings = Trainings(lambda job: 1 / (1 + abs(job.settings.method["energy"]["width"] - 12.0)), metric="precision")
    best = searched(trainings, "metrics.metrics=[precision,fd]")
    assert best[0] == "methods.cdrl.energy.width=12"


def test_candidates_are_the_scales_own_settings_and_distinct_draws() -> None:
    drawn = search.candidates(SPACE, 9)
    assert drawn[0] == {}
    assert len({json.dumps(trial) for trial in drawn}) == 9
    assert drawn == search.candidates(SPACE, 9)
    assert len(search.candidates(SPACE, 100)) == 13
    assert search.rounds(9) == [9, 3]
    assert search.rounds(1) == [1]


@pytest.mark.parametrize("method", configuration.choices("search"))
@pytest.mark.parametrize("scale", ["nano", "micro", "mini"])
def test_every_value_of_the_spaces_is_a_setting_that_fits(method: str, scale: str) -> None:
    space = search.space(method, scale)
    rows, trials = [], []
    for place in range(max(map(len, space.values()))):
        trials.append({key: values[min(place, len(values) - 1)] for key, values in space.items()})
        train = ", ".join(line.removeprefix(f"methods.{method}.") for line in search.as_overrides(method, trials[-1]))
        rows.append(f"+experiment.rows.trial{place}={{method: {method}, evaluate: {{kind: samples}}}}")
        rows += [f"+experiment.rows.trial{place}.train.{line}" for line in train.split(", ")]
    plan = make_plan(configuration.resolve([f"scale={scale}", *rows]))
    for row, trial in zip(plan.rows[-len(trials) :], trials, strict=True):
        settings = row.evaluations[0].run_settings
        assert settings.recipe.batch_size == trial["batch_size"]
        if "chain" in trial:
            chain = settings.method["chain"]
            assert {"steps": chain["steps"], "step_variance": chain["step_variance"]} == trial["chain"]


@pytest.mark.parametrize(("method", "scale"), [("nothing", "nano"), ("cdrl", "paper")])
def test_a_missing_space_is_one_line(method: str, scale: str) -> None:
    with pytest.raises(UserError, match="no search space for"):
        search.search(method, [f"scale={scale}"])


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, Any] = {}
    results: list[list[str] | None] = [["methods.drl.batch_size=16"], None]

    def answer(method: str, overrides: Sequence[str], **options: Any) -> list[str] | None:
        asked.update(method=method, overrides=overrides, **options)
        return results.pop(0)

    monkeypatch.setattr(search, "search", answer)
    assert main(["search", "drl", "--trials", "5", "scale=mini", "--cost", "1000", "launcher.seconds=520"]) == 0
    assert capsys.readouterr().out == "methods.drl.batch_size=16\n"
    assert asked == {
        "method": "drl", "overrides": ["scale=mini", "launcher.seconds=520"], "trials": 5, "budget": 1000,
        "samples": 1000,
    }  # fmt: skip
    assert main(["search", "drl"]) == UNFINISHED
    assert asked["budget"] == {"seconds": 90.0}


@pytest.mark.slow
def test_a_tiny_search_is_done_by_the_suites_own_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "space", lambda method, scale: {"optimisation.learning_rate": [1e-3, 2e-3]})
    arguments = [
        "search", "short_run", "--trials", "2", "--cost", "2000", "--samples", "20", "methods.short_run.steps=2",
        "metrics.reference_samples=40", "device=cpu", "launcher.workers=1", f"runs={tmp_path}/runs",
        f"results={tmp_path}/results",
    ]  # fmt: skip
    assert main(arguments) == 0
    first = log(tmp_path, "short_run")
    assert [line["settings"] for line in first] == [
        "{}",
        '{"optimisation.learning_rate": 0.002}',
    ]  # 1e-3 is the scale's
    assert [line["status"] for line in first] == ["finished"] * 2
    assert all(float(line["score"]) > 0 and int(line["iterations"]) > 0 for line in first)
    # The same command reads what it knows.
    printed = capsys.readouterr().out.splitlines()[-1]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == printed
    assert log(tmp_path, "short_run") == first
