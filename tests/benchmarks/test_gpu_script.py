"""The GPU script's logic, rehearsed in seconds: nothing here depends on how fast the machine is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cdrl import langevin
from cdrl.errors import UserError
from cdrl.learner import Learner
from experiments import data
from tests.benchmarks import cases
from tests.benchmarks.gpu import __main__ as script
from tests.benchmarks.gpu import budget, search, speed, suite, travel
from tests.benchmarks.gpu.parts import Deadline, OutOfTime, Parts
from tests.benchmarks.gpu.session import METHODS, Session, planned

CPU = torch.device("cpu")
Ask = Callable[..., Session]


@pytest.fixture
def session(tmp_path: Path) -> Ask:
    """A rehearsal in a folder of its own."""

    def make(seconds: float = 100.0, **changes: Any) -> Session:
        given = {"out": tmp_path, "device": CPU, "engine": "eager", "tiny": True, "deadline": Deadline(seconds)}
        return Session(**{**given, **changes})

    return make


class TestParts:
    def test_a_finished_part_is_read_and_not_done_again(self, tmp_path: Path) -> None:
        parts = Parts(tmp_path, Deadline(100.0))
        assert parts.do("one", lambda: {"value": 1}) == {"value": 1}
        assert parts.do("one", lambda: {"value": 2}) == {"value": 1}

    def test_after_the_deadline_none_starts_but_finished_ones_are_read(self, tmp_path: Path) -> None:
        now = [0.0]
        parts = Parts(tmp_path, Deadline(10.0, lambda: now[0]))
        parts.do("one", lambda: 1)
        now[0] = 11.0
        assert parts.do("one", lambda: 2) == 1
        with pytest.raises(OutOfTime):
            parts.do("two", lambda: 2)

    def test_one_under_way_is_stopped_and_left_for_the_next_call(self, tmp_path: Path) -> None:
        def endless() -> None:
            while True:
                pass

        with pytest.raises(OutOfTime):
            Parts(tmp_path, Deadline(0.1)).attempt("one", endless)
        assert Parts(tmp_path, Deadline(100.0)).attempt("one", lambda: "done") == "done"

    def test_one_that_fails_does_not_take_the_others_along(self, tmp_path: Path) -> None:
        def fails() -> None:
            raise ValueError("no such kernel")

        parts = Parts(tmp_path, Deadline(100.0))
        assert parts.attempt("one", fails) == [{"error": "ValueError: no such kernel"}]
        with pytest.raises(ValueError, match="no such kernel"):
            parts.do("two", fails)


class TestSpeed:
    def test_replayed_chains_equal_the_plain_reference(self) -> None:
        (found,) = speed.parity(speed.TINY, "replayed", CPU)
        parts = ["chain", "energy", "initializer"]
        assert list(found) == [f"{part}_{number}" for number in range(2) for part in parts] + ["samples"]
        assert 0.0 <= found["chain_0"] < 1e-5
        assert max(found.values()) < 2e-3

    def test_a_wrong_chain_would_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        refine = langevin.refine
        monkeypatch.setattr(langevin, "refine", lambda chain: refine(chain._replace(streams=chain.streams.flip(0))))
        (found,) = speed.parity(speed.TINY, "replayed", CPU)
        assert min(found.values()) > 5e-3

    def test_an_energy_step_the_wrong_way_would_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        descend = Learner.descend
        monkeypatch.setattr(Learner, "descend", lambda self, loss, *rest: descend(self, -loss, *rest))
        (found,) = speed.parity(speed.TINY, "eager", CPU)
        assert min(found[name] for name in ("energy_0", "initializer_0", "chain_1", "samples")) > 1e-2

    def test_what_is_timed_walks_as_many_steps_as_it_says(self) -> None:
        assert speed.FULL.size.steps == 15
        method = cases.build(speed.TINY.size)
        assert method.training_cost == speed.TINY.size.steps + 2

    def test_times_of_two_devices_do_not_mix(self, tmp_path: Path) -> None:
        parts = Parts(tmp_path / "speed", Deadline(100.0))
        parts.do("ceiling", lambda: {"fp32": 1.0, "device": "another card"})
        with pytest.raises(UserError, match="another card"):
            speed.run(parts, CPU, tiny=True)

    def test_a_chain_has_a_line_for_each_batch_with_its_share_of_the_ceiling(self) -> None:
        ceiling = {"fp32": 1e12}
        lines = speed.chains(speed.TINY, "replayed", "fp32", CPU, ceiling)
        assert [line["batch"] for line in lines] == list(speed.TINY.batches)
        assert lines[1]["flops"] == 2 * lines[0]["flops"] > 0
        for line in lines:
            assert line["ceiling_share"] == pytest.approx(line["flops"] / line["seconds"] / 1e12)

    def test_every_engine_is_held_to_the_reference_and_timed(self) -> None:
        planned_parts = speed.plan(speed.TINY, CPU, {}, light=False)
        for kind in ("parity-replayed", "chain-replayed-bf16", "iteration-replayed-bf16", "sampling-replayed-tf32"):
            assert kind in planned_parts
        assert next(iter(planned_parts)).startswith("parity")

    def test_failed_parts_stand_in_the_table(self, tmp_path: Path) -> None:
        parts = Parts(tmp_path / "speed", Deadline(100.0))
        parts.do("chain-a", lambda: [{"batch": 1, "seconds": 2.0}, {"batch": 4, "seconds": 3.0}])
        parts.do("chain-b", lambda: [{"error": "RuntimeError: out of luck"}])
        table = speed.gather(parts.folder)
        assert list(table["part"]) == ["chain-a", "chain-a", "chain-b"]
        assert (tmp_path / "speed.csv").read_text().count("out of luck") == 1


class TestSearch:
    SPACE = {"width": (1, 2, 3, 4), "rate": (0.1, 0.2, 0.3)}  # noqa: RUF012
    """A space whose best point is known."""

    @staticmethod
    def score(method: str, settings: search.Settings, seconds: float) -> search.Result:
        value = abs(settings.get("width", 4) - 3) + abs(settings.get("rate", 0.3) - 0.2)
        return {"score": math.inf if settings.get("width") == 1 else value, "status": "finished"}

    def test_trials_are_the_scales_own_settings_and_distinct_draws(self) -> None:
        drawn = search.candidates(self.SPACE, 9)
        assert drawn[0] == {}
        assert len({json.dumps(trial) for trial in drawn}) == 9
        assert drawn == search.candidates(self.SPACE, 9)
        assert len(search.candidates(self.SPACE, 100)) == 13

    def test_the_best_wins_and_every_method_gets_the_same_seconds(self, tmp_path: Path) -> None:
        log, spent = search.Log(tmp_path / "search.csv"), dict.fromkeys(METHODS, 0.0)

        def attempt(method: str, settings: search.Settings, seconds: float) -> search.Result:
            spent[method] += seconds
            return self.score(method, settings, seconds)

        for method in METHODS:
            trials = search.candidates(self.SPACE, 13)
            assert search.halving(method, trials, 60.0, attempt, log) == {"width": 3, "rate": 0.2}
        assert list(spent.values()) == pytest.approx([60.0] * 3)
        assert search.rounds(13) == [13, 5, 2]
        assert len(log.read()) == 3 * sum(search.rounds(13))

    def test_a_half_finished_search_goes_on_without_repeating_a_trial(self, tmp_path: Path) -> None:
        log = search.Log(tmp_path / "search.csv")
        done: list[tuple[str, float]] = []

        def interrupted(method: str, settings: search.Settings, seconds: float) -> search.Result:
            if len(done) == 7:
                raise OutOfTime
            done.append((json.dumps(settings), seconds))
            return self.score(method, settings, seconds)

        trials = search.candidates(self.SPACE, 9)
        with pytest.raises(OutOfTime):
            search.halving("cdrl", trials, 60.0, interrupted, log)
        before = log.path.read_text()

        def resumed(method: str, settings: search.Settings, seconds: float) -> search.Result:
            assert (json.dumps(settings), seconds) not in done
            return self.score(method, settings, seconds)

        best = search.halving("cdrl", trials, 60.0, resumed, log)
        assert log.path.read_text().startswith(before)
        assert best == search.halving("cdrl", trials, 60.0, self.score, search.Log(tmp_path / "other.csv"))
        assert log.path.read_text() == (tmp_path / "other.csv").read_text()

    def test_without_a_finite_score_it_says_so(self, tmp_path: Path) -> None:
        def diverges(method: str, settings: search.Settings, seconds: float) -> search.Result:
            return {"score": math.nan, "status": "diverged"}

        with pytest.raises(RuntimeError, match="every trial of drl failed"):
            search.halving("drl", [{}], 1.0, diverges, search.Log(tmp_path / "search.csv"))

    @pytest.mark.parametrize("method", METHODS)
    def test_every_point_of_the_spaces_is_a_configuration(self, method: str, session: Ask) -> None:
        for space in (search.SPACES, search.TINY_SPACES):
            for place in range(max(len(values) for values in space[method].values())):
                trial = {key: values[min(place, len(values) - 1)] for key, values in space[method].items()}
                config = session().run_config(method, *search.overrides(method, trial))["method"]
                assert config["energy"]["width"] == trial["energy.width"]
                assert config["batch_size"] == trial["batch_size"]
                if "chain" in trial:
                    assert (config["chain"]["steps"], config["chain"]["step_variance"]) == trial["chain"]


class TestBudget:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("iterations", [1, 7, 12_345])
    def test_iterations_come_back_from_the_budget(self, method: str, iterations: int, session: Ask) -> None:
        config = session().run_config(method)
        cost = {"cdrl": 2 + 2, "drl": 2 + 2, "short_run": 2 + 2}[method]
        spent = budget.budget_for(iterations, cost, config["method"]["batch_size"])
        assert budget.planned_iterations({**config, "budget": spent}, 0) == iterations

    def test_seconds_become_whole_iterations(self) -> None:
        assert budget.iterations_in(10.0, 0.3) == 33
        assert budget.iterations_in(0.1, 0.3) == 1

    def test_a_measured_pace_becomes_a_budget(self, session: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
        """Digits in place of CIFAR-10: the pace is given, the method and its data are real."""
        overrides = ["experiment=table1", "scale=nano"]
        config = next(row.evaluations[0].run.config for row in planned(overrides).rows if row.id == "drl")
        monkeypatch.setattr(budget, "iteration_seconds", lambda prepared, probe: 0.25)
        found = budget.measure(config, 10.0, 1.0, data.load("digits", "train"), "eager", CPU)
        batch = config["method"]["batch_size"]
        assert (found["iterations"], found["images_per_second"]) == (40, 4.0 * batch)
        assert found["budget"] == 40 * batch * (config["method"]["chain"]["steps"] + 2)

    def test_the_pace_is_taken_from_real_iterations_in_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = next(row.evaluations[0].run.config for row in planned(["scale=nano"]).rows if row.id == "cdrl")
        prepared = budget.prepare(config, data.load("digits", "train"), 10, "eager", CPU)
        seen: list[int] = []
        monkeypatch.setattr(prepared.method, "train_step", lambda x, label, number: seen.append(number))
        assert budget.iteration_seconds(prepared, at_least=1e9, most=4) > 0.0
        assert seen == list(range(budget.WARM_UP + 4))


class TestSuite:
    @pytest.fixture
    def measured(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Budgets without a clock: a number that tells methods apart, and what was asked for."""
        asked: list[str] = []

        def measure(config: dict[str, Any], seconds: float, *rest: object) -> dict[str, Any]:
            method = config["method"]
            asked.append(method["kind"] + ("-conditional" if method["conditional"] else ""))
            return {"budget": round(1000 * seconds) + len(asked)}

        monkeypatch.setattr(budget, "measure", measure)
        monkeypatch.setattr(Session, "training", None)
        return asked

    def test_all_experiments_look_at_the_runs_of_table_1(self, session: Ask, measured: list[str]) -> None:
        ours = session(tiny=False, deadline=Deadline(100.0))
        runs = {name: self.runs(ours, name) for name in suite.EXPERIMENTS}
        for name in ("inpaint", "langevin_steps"):
            assert runs[name] <= runs["table1"]
            assert runs[name]
        assert not runs["guidance"] & runs["table1"]
        assert measured == ["cooperative", "cooperative", "short_run", "cooperative-conditional"]

    def test_a_budget_is_measured_once_also_over_calls(self, session: Ask, measured: list[str]) -> None:
        first = suite.command(session(), "table1", 200.0)
        assert suite.command(session(), "table1", 200.0) == first
        assert len(measured) == 3
        suite.command(session(), "table1", 100.0)
        assert len(measured) == 6

    def test_runs_have_the_measured_budgets(self, session: Ask, measured: list[str]) -> None:
        plan = planned(suite.command(session(), "table1", 2.0))
        budgets = {row.id: row.evaluations[0].run.config["budget"] for row in plan.rows}
        assert budgets == {"cdrl": 2001, "drl": 2002, "short_run": 2003, "noise": 1}

    def test_what_the_search_chose_is_what_is_trained(self, session: Ask, measured: list[str]) -> None:
        before = self.runs(session(), "table1")
        session().chosen_file.write_text(json.dumps({"cdrl": {"energy.width": 12, "chain": [3, 1e-3]}, "drl": {}}))
        plan = planned(suite.command(session(), "table1", 2.0))
        method = plan.rows[0].evaluations[0].run.config["method"]
        assert (method["energy"]["width"], method["chain"]["steps"]) == (12, 3)
        assert len(self.runs(session(), "table1") & before) == 2

    def test_training_leaves_the_looking_for_later(self, session: Ask, measured: list[str]) -> None:
        plan = planned(suite.command(session(), "langevin_steps", 2.0))
        jobs = suite.TrainingOnly.of(plan).missing()
        assert [job.evaluations for job in jobs] == [(), ()]
        assert all(job.evaluations for job in plan.missing())
        status = jobs[0].run.folder / "status.json"
        status.parent.mkdir(parents=True)
        status.write_text('{"status": "finished"}')
        assert [job.run for job in suite.TrainingOnly.of(plan).missing()] == [jobs[1].run]

    @pytest.mark.parametrize("name", [*suite.EXPERIMENTS, *suite.EXTRA])
    @pytest.mark.parametrize("tiny", [True, False])
    def test_every_command_composes(self, name: str, tiny: bool, session: Ask, measured: list[str]) -> None:
        plan = planned(suite.command(session(tiny=tiny), name, 2.0))
        assert plan.rows
        assert plan.results == (session().out / "results" if tiny else Path("results")) / name / "mini"

    @staticmethod
    def runs(session: Session, name: str) -> set[Path]:
        plan = planned(suite.command(session, name, 2.0))
        kinds = ("cooperative", "short_run")
        runs = (evaluation.run for row in plan.rows for evaluation in row.evaluations)
        return {run.folder for run in runs if run.config["method"]["kind"] in kinds}


class TestTravel:
    def test_parts_hold_every_file_once_and_no_more_than_they_may(self) -> None:
        files = [(size, Path(str(number))) for number, size in enumerate([5, 7, 3, 2, 9, 1])]
        groups = travel.parts(files, 10)
        assert sorted(path for group in groups for path in group) == [path for _, path in files]
        sizes = {path: size for size, path in files}
        assert all(sum(sizes[path] for path in group) <= 10 for group in groups)
        with pytest.raises(UserError, match="--part-mb"):
            travel.parts(files, 8)

    def test_merged_parts_are_the_folder_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = tmp_path / "source" / "cifar-10-batches-py"
        source.mkdir(parents=True)
        for number in range(4):
            (source / f"data_batch_{number}").write_bytes(bytes([number]) * 600)
        monkeypatch.setenv(travel.VARIABLE, str(source.parent))
        assert script.main(["pack", "--data", str(tmp_path / "parts"), "--part-mb", str(1300 / 2**20)]) == 0
        parts = sorted((tmp_path / "parts").iterdir())
        assert len(parts) == 2
        merged = {p.relative_to(part): p.read_bytes() for part in parts for p in part.rglob("data_*")}
        expected = {Path("cifar10", p.relative_to(source.parent)): p.read_bytes() for p in source.iterdir()}
        assert merged == expected


def test_out_of_time_has_an_exit_code_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["speed", "--device", "cpu", "--tiny", "--seconds", "0", "--out", str(tmp_path)]
    assert script.main(arguments) == script.UNFINISHED
    assert "the same command" in capsys.readouterr().err


def test_a_missing_package_is_named_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(script.PACKAGES, "no_such_module", "no-such-package")
    assert script.main(["score", "--device", "cpu", "--tiny"]) == 1
    assert "not installed: no-such-package; pip install" in capsys.readouterr().err


def test_sizes_of_a_rehearsal_are_small() -> None:
    assert speed.TINY.size.energy == cases.SIZES["nano"].energy
    assert max(speed.TINY.batches) <= 4
