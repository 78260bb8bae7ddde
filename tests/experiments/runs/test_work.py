"""Work on a folder: idempotent, resumable, and always told apart: done, interrupted, a mistake, a crash."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cdrl.errors import UserError
from experiments.plan import Job
from experiments.runs.work import Ended, Order, attempt, work

MakeJob = Callable[..., Job]


def order(job: Job, tmp_path: Path) -> Order:
    return Order(folder=str(job.run.path), evaluations=(), device="cpu", cache=str(tmp_path / "cache"), commit="abc")


def test_work_trains_once_and_then_has_nothing_to_do(
    job: MakeJob, tmp_path: Path, fingerprint: Callable[[Path], str]
) -> None:
    run = job().run
    assert work(run.path, device="cpu", made_by="abc") == "done"
    status = run.finished()
    assert (status.commit, status.iterations, status.grad_evals) == ("abc", 13, 13 * 32 * 7)
    assert [line["iteration"] for line in run.metrics.lines()] == list(range(1, 14))
    assert [path.name for path in run.milestones()] == ["00000006"]
    bits, written = fingerprint(run.path), (run.path / "status.json").stat().st_mtime_ns
    assert work(run.path, device="cpu") == "done"
    assert (fingerprint(run.path), (run.path / "status.json").stat().st_mtime_ns) == (bits, written)


def test_interrupted_work_goes_on_to_the_same_bits(
    job: MakeJob, tmp_path: Path, fingerprint: Callable[[Path], str]
) -> None:
    whole, parts = job(runs="whole").run, job(runs="parts").run
    work(whole.path, device="cpu")
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    assert work(parts.path, device="cpu", stop=stop) == "interrupted"
    assert parts.state == "started"
    assert work(parts.path, device="cpu") == "done"
    assert fingerprint(parts.path) == fingerprint(whole.path)
    strip = [{key: value for key, value in line.items() if key != "seconds"} for line in whole.metrics.lines()]
    assert [{key: value for key, value in line.items() if key != "seconds"} for line in parts.metrics.lines()] == strip


def test_a_folder_can_be_asked_to_stop(job: MakeJob) -> None:
    run = job(budget=300_000).run

    def ask_when_training() -> bool:
        if (run.path / "metrics.jsonl").exists():
            run.ask_to_stop()
        return False

    assert work(run.path, device="cpu", stop=ask_when_training) == "interrupted"
    assert run.state == "started"


def test_work_ends_after_its_seconds(job: MakeJob) -> None:
    run = job(budget=3_000_000).run
    assert work(run.path, device="cpu", seconds=1.0) == "interrupted"
    assert run.status() is None


def test_a_budget_in_seconds_becomes_a_length_once(job: MakeJob) -> None:
    run = job("cdrl", "{seconds: 1}").run  # type: ignore[arg-type]
    assert work(run.path, device="cpu") == "done"
    length = run.length()
    assert length is not None
    assert length["iterations"] == run.finished().iterations >= 1
    assert length["iterations"] == max(1, int(1 / length["iteration_seconds"]))


def test_a_mistake_and_a_crash_are_kept_in_the_folder(job: MakeJob, tmp_path: Path) -> None:
    made = job()
    mistake = attempt(Order(folder=str(made.run.path), evaluations=(), device="cuda:99"))
    assert mistake.outcome == "mistake"
    assert "device=cpu" in mistake.message
    failure = made.run.failure()
    assert failure is not None
    assert (failure.message, failure.mistake) == (mistake.message, True)

    (made.run.path / "metrics.jsonl").mkdir()
    crash = attempt(order(made, tmp_path))
    assert crash.outcome == "crash"
    assert "IsADirectoryError" in crash.message
    assert "Traceback" in (made.run.path / "error.log").read_text()

    (made.run.path / "metrics.jsonl").rmdir()
    assert attempt(order(made, tmp_path)) == Ended("done")
    assert made.run.failure() is None


def test_other_images_are_refused(job: MakeJob, tmp_path: Path) -> None:
    run = job().run
    work(run.path, device="cpu")
    facts = json.loads((run.path / "data.json").read_text())
    (run.path / "data.json").write_text(json.dumps({**facts, "pixels": "other"}))
    with pytest.raises(UserError, match=r"not those that .* was trained on"):
        work(run.path, device="cpu")


def test_what_is_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        work(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no run folder"):
        work(tmp_path)
