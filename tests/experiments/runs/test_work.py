"""Work on a folder: idempotent, resumable, and always told apart: done, interrupted, a mistake, a crash."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from cdrl.errors import UserError
from experiments.plan import Job
from experiments.runs import work as work_module
from experiments.runs.folder import RunFolder
from experiments.runs.trained import training_cost
from experiments.runs.work import Ended, Order, attempt, work

MakeJob = Callable[..., Job]


def patience(times: int) -> Callable[[], bool]:
    """A wish to stop that is answered "no" so many times."""
    left = iter(range(times))
    return lambda: next(left, None) is None


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


def test_a_mistake_and_a_crash_are_kept_in_the_folder(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    made = job()
    mistake = attempt(on(made.run, device="cuda:99"))
    assert mistake.outcome == "mistake"
    assert "device=cpu" in mistake.message
    failure = made.run.failure()
    assert failure is not None
    assert (failure.message, failure.mistake) == (mistake.message, True)

    def broken(*_: object) -> None:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(work_module, "training_batches", broken)
        crash = attempt(on(made.run))
    assert crash == Ended("crash", "RuntimeError: out of luck")
    assert "Traceback" in (made.run.path / "error.log").read_text()
    assert attempt(on(made.run)) == Ended("done")
    assert made.run.failure() is None


def damage(run: RunFolder, stem: str) -> None:
    (path,) = run.path.glob(f"{stem}-*.safetensors")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("ended", [False, True])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    ended: bool, job: MakeJob, fingerprint: Callable[[Path], str]
) -> None:
    whole, run = job(runs="whole").run, job(runs="damaged").run
    work(on(whole))
    work(on(run), patience(10**6 if ended else 8))
    damage(run, "checkpoint")
    assert work(on(run)) == "done"
    assert fingerprint(run.path) == fingerprint(whole.path)
    assert [line["iteration"] for line in run.metrics.lines()] == list(range(1, 14))
    (note,) = run.notes()
    assert "checkpoint-" in note
    assert "is damaged: its content does not match its checksum; the run goes on from iteration" in note


def test_what_is_damaged_beyond_help_is_not_started_over(job: MakeJob) -> None:
    run = job().run
    work(on(run))
    for stem in ("checkpoint", "anchor"):
        damage(run, stem)
    before = {path.name: path.read_bytes() for path in run.path.glob("*.safetensors")}
    with pytest.raises(UserError, match=r"is damaged: .*; restore it from a copy, or delete"):
        work(on(run))
    assert {path.name: path.read_bytes() for path in run.path.glob("*.safetensors")} == before


def test_a_missing_checkpoint_beside_metrics_is_said(job: MakeJob, fingerprint: Callable[[Path], str]) -> None:
    run = job().run
    work(on(run))
    bits = fingerprint(run.path)
    for path in (*run.path.glob("checkpoint*"), *run.path.glob("anchor*"), run.path / "status.json"):
        path.unlink()
    assert work(on(run)) == "done"
    assert fingerprint(run.path) == bits
    assert run.notes() == ["no checkpoint beside metrics up to iteration 13: trained from the beginning"]


DIVERGING = "methods.cdrl.optimisation.learning_rate=1e12"


def test_a_run_that_diverges_is_rolled_back_given_up_and_taken_up_again(job: MakeJob) -> None:
    run = job("cdrl", 20_000, "runs", DIVERGING, "scale.rollbacks=1").run
    assert work(on(run)) == "done"
    status = run.status()
    assert status is not None
    assert (status.status, status.rollbacks) == ("diverged", 2)
    assert status.reason
    assert len(run.notes()) == 2
    assert "back to iteration" in run.notes()[0]
    record = json.loads((run.path / "trips" / "02.json").read_text())
    assert record["number"] == 2
    assert len(record["record"]) == min(record["iteration"], 256)

    assert work(on(run)) == "done"
    assert run.status() == status, "it stays given up"
    assert work(on(run, retry=True)) == "done"
    again = run.status()
    assert again is not None
    assert again.rollbacks > status.rollbacks
    assert "tried again at iteration" in run.notes()[2]


def test_a_killed_run_that_diverges_does_the_same(job: MakeJob, fingerprint: Callable[[Path], str]) -> None:
    """Stopped in the data, then in training, again and again."""
    whole, parts = (job("cdrl", 20_000, runs, DIVERGING).run for runs in ("whole", "parts"))
    work(on(whole))
    stops = list(takewhile(lambda times: work(on(parts), patience(times)) == "interrupted", range(4, 60, 2)))
    assert len(stops) >= 2
    assert fingerprint(parts.path) == fingerprint(whole.path)
    assert [path.read_bytes() for path in sorted((parts.path / "trips").iterdir())] == [
        path.read_bytes() for path in sorted((whole.path / "trips").iterdir())
    ]
    assert parts.notes() == [note.replace("/whole/", "/parts/") for note in whole.notes()]


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
