"""Work on a folder: idempotent, resumable, and always told apart: done, interrupted, a mistake, a crash."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch

from cdrl.errors import UserError
from experiments.evaluate import Diverged
from experiments.files import write_text
from experiments.measurement import Measurement
from experiments.plan import Job
from experiments.runs import work as work_module
from experiments.runs.folder import Result, RunFolder
from experiments.runs.trained import training_cost
from experiments.runs.work import Ended, Order, attempt, work

MakeJob = Callable[..., Job]
NUMBER = Measurement(metric="fd", protocol="m", value=3.0, samples=2)


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


@pytest.fixture
def looked_at(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Ended, list[Result | None]]]:
    """Works on a run with two evaluations, the first of which does as it is told; how that ended, and both results."""
    run = job().run
    settings = [{"kind": "ood", "number": number, "metrics": {"name": "m", "extractor": "digits", "samples": 2}}
                for number in range(2)]  # fmt: skip
    folders = [run.evaluation(one) for one in settings]
    for folder, one in zip(folders, settings, strict=True):
        folder.want(one)

    def look(act: Callable[[], list[Measurement]], **changes: Any) -> tuple[Ended, list[Result | None]]:
        def evaluate(trained: object, settings: dict[str, Any], out: Path, progress: object) -> list[Measurement]:
            return act() if settings["number"] == 0 else [NUMBER]

        monkeypatch.setattr("experiments.runs.work.evaluator", lambda kind: evaluate)
        ended = attempt(on(run, evaluations=tuple(folder.name for folder in folders), **changes))
        return ended, [folder.result() for folder in folders]

    return look


def _raise(error: BaseException) -> Callable[[], list[Measurement]]:
    def act() -> list[Measurement]:
        raise error

    return act


def test_an_evaluation_that_fails_or_diverges_is_an_outcome_and_the_others_go_on(looked_at: Any) -> None:
    ended, (first, second) = looked_at(_raise(RuntimeError("overflow\nand more")))
    assert ended == Ended("done")
    assert (first.outcome, first.reason, first.mistake) == ("failed", "RuntimeError: overflow", False)
    assert (second.outcome, second.measurements) == ("done", (NUMBER,))
    ended, (again, _) = looked_at(lambda: [NUMBER])
    assert again == first, "the same code fails in the same way"
    ended, (again, _) = looked_at(_raise(UserError("no such mask; name another")), commit="def")
    assert (again.outcome, again.reason, again.mistake) == ("failed", "no such mask; name another", True)
    ended, (again, _) = looked_at(lambda: [NUMBER, NUMBER], commit="def")
    assert "two numbers of one evaluation" in again.reason
    ended, (again, _) = looked_at(lambda: [replace(NUMBER, value=float("nan"))], commit="def")
    assert (again.outcome, again.reason, again.measurements) == ("diverged", "fd is not finite", ())


def test_a_diverged_evaluation_stays_so(looked_at: Any) -> None:
    _, (first, _) = looked_at(_raise(Diverged("3 of the first 4 samples are not finite")))
    assert (first.outcome, first.reason) == ("diverged", "3 of the first 4 samples are not finite")
    assert looked_at(lambda: [NUMBER], commit="def")[1][0] == first


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError(), torch.OutOfMemoryError()])
def test_what_lies_in_the_machine_is_no_outcome_of_an_evaluation(looked_at: Any, error: Exception) -> None:
    ended, results = looked_at(_raise(error))
    outcome = "mistake" if isinstance(error, OSError) else "crash"  # a full disk is for the user to mend
    assert (ended.outcome, results) == (outcome, [None, None])
    ended, (first, second) = looked_at(lambda: [NUMBER])
    assert (ended, first.outcome, second.outcome) == (Ended("done"), "done", "done")


def test_a_full_disk_is_no_outcome_of_an_evaluation(looked_at: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def act() -> list[Measurement]:
        write_text(tmp_path / "file" / "array", "text")
        return [NUMBER]

    ended, results = looked_at(act)
    assert (ended.outcome, results) == ("mistake", [None, None])


def test_other_images_are_refused(job: MakeJob, tmp_path: Path) -> None:
    run = job().run
    work(on(run))
    facts = json.loads((run.path / "data.json").read_text())
    (run.path / "data.json").write_text(json.dumps({**facts, "pixels": "0" * 64}))
    with pytest.raises(UserError, match=r"not those that .* was trained on"):
        work(on(run))


def test_what_is_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        work(Order(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no run folder"):
        work(Order(tmp_path))
