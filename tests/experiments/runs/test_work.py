"""Work on a folder: idempotent, resumable, and always told apart: done, interrupted, a mistake, a crash."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdrl.errors import UserError
from experiments.plan import Job
from experiments.runs.folder import RunFolder
from experiments.runs.trained import training_cost
from experiments.runs.work import Ended, Order, attempt, work

MakeJob = Callable[..., Job]


def on(run: RunFolder, **changes: Any) -> Order:
    """An order for a run on the CPU, in which nothing is evaluated."""
    return Order(run.path, **{"evaluations": (), "device": "cpu", "commit": "abc", **changes})


def test_work_trains_once_and_then_has_nothing_to_do(
    job: MakeJob, tmp_path: Path, fingerprint: Callable[[Path], str]
) -> None:
    run = job().run
    assert work(on(run)) == "done"
    status = run.finished()
    spent = round(13 * 32 * training_cost(run.settings))
    assert (status.commit, status.iterations, status.grad_evals) == ("abc", 13, spent)
    assert [line["iteration"] for line in run.metrics.lines()] == list(range(1, 14))
    assert [path.name for path in run.milestones()] == ["00000006"]
    bits, written = fingerprint(run.path), (run.path / "status.json").stat().st_mtime_ns
    assert work(on(run)) == "done"
    assert (fingerprint(run.path), (run.path / "status.json").stat().st_mtime_ns) == (bits, written)


def test_interrupted_work_goes_on_to_the_same_bits(
    job: MakeJob, tmp_path: Path, fingerprint: Callable[[Path], str]
) -> None:
    whole, parts = job(runs="whole").run, job(runs="parts").run
    work(on(whole))
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    assert work(on(parts), stop) == "interrupted"
    assert parts.state == "started"
    assert work(on(parts)) == "done"
    assert fingerprint(parts.path) == fingerprint(whole.path)
    strip = [{key: value for key, value in line.items() if key != "seconds"} for line in whole.metrics.lines()]
    assert [{key: value for key, value in line.items() if key != "seconds"} for line in parts.metrics.lines()] == strip


def test_a_folder_can_be_asked_to_stop(job: MakeJob) -> None:
    run = job(budget=300_000).run

    def ask_when_training() -> bool:
        if (run.path / "metrics.jsonl").exists():
            run.ask_to_stop()
        return False

    assert work(on(run), ask_when_training) == "interrupted"
    assert run.state == "started"


def test_work_ends_after_its_seconds(job: MakeJob) -> None:
    run = job(budget=3_000_000).run
    assert work(on(run, deadline=time.time() + 1.0)) == "interrupted"
    assert run.status() is None


def test_a_budget_in_seconds_becomes_a_length_once(job: MakeJob) -> None:
    run = job("cdrl", "{seconds: 1}").run  # type: ignore[arg-type]
    assert work(on(run)) == "done"
    length = run.length()
    assert length is not None
    assert length["iterations"] == run.finished().iterations >= 1
    assert length["iterations"] == max(1, int(1 / length["iteration_seconds"]))


def test_a_mistake_and_a_crash_are_kept_in_the_folder(job: MakeJob, tmp_path: Path) -> None:
    made = job()
    mistake = attempt(on(made.run, device="cuda:99"))
    assert mistake.outcome == "mistake"
    assert "device=cpu" in mistake.message
    failure = made.run.failure()
    assert failure is not None
    assert (failure.message, failure.mistake) == (mistake.message, True)

    (made.run.path / "metrics.jsonl").mkdir()
    crash = attempt(on(made.run))
    assert crash.outcome == "crash"
    assert "IsADirectoryError" in crash.message
    assert "Traceback" in (made.run.path / "error.log").read_text()

    (made.run.path / "metrics.jsonl").rmdir()
    assert attempt(on(made.run)) == Ended("done")
    assert made.run.failure() is None


def test_other_images_are_refused(job: MakeJob, tmp_path: Path) -> None:
    run = job().run
    work(on(run))
    facts = json.loads((run.path / "data.json").read_text())
    (run.path / "data.json").write_text(json.dumps({**facts, "pixels": "other"}))
    with pytest.raises(UserError, match=r"not those that .* was trained on"):
        work(on(run))


def test_what_is_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        work(Order(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no run folder"):
        work(Order(tmp_path))
