"""The run folder: identity, settings, state, lock, progress, results."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cdrl.errors import UserError
from experiments.files import write_json
from experiments.measurement import Measurement
from experiments.plan import Job
from experiments.runs.folder import MetricsLog, Result, RunFolder, RunSettings, Status, WorkFolder

STATUS = Status(status="finished", iterations=3, seconds=1.0, grad_evals=30, commit="abc", device="a CPU")
MakeJob = Callable[..., Job]


def test_settings_survive_the_folder(job: MakeJob) -> None:
    made = job()
    again = RunFolder.open(made.run.path)
    assert again.settings == made.settings
    assert again.settings.recipe == made.settings.recipe
    assert again.settings.folder(made.run.path.parents[3], "cdrl") == again


def test_a_folder_is_named_by_what_numbers_depend_on(job: MakeJob, tmp_path: Path) -> None:
    path = job().run.path
    assert job("cdrl", 3900, "runs", "methods.cdrl.label=Another").run.path == path
    assert job("cdrl", 3900, "runs", f"data.data_cache={tmp_path}").run.path == path
    assert job("cdrl", 3001).run.path != path
    assert job("cdrl", 3900, "runs", "scale.rollbacks=0").run.path != path
    assert job("cdrl", 3900, "runs", "methods.cdrl.chain.steps=2").run.path != path


def test_states(job: MakeJob) -> None:
    run = job().run
    assert RunFolder(run.path.parent / "seed9").state == "missing"
    assert run.state == "wanted"
    run.metrics.append({"iteration": 1})
    assert run.state == "started"
    with pytest.raises(UserError, match="no finished run"):
        run.finished()
    run.finish(STATUS)
    assert (run.state, run.finished()) == ("finished", STATUS)


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder; name one such as"):
        RunFolder.open(tmp_path)
    write_json(tmp_path / "config.json", {"seed": 0})
    with pytest.raises(UserError, match=r"is damaged \(data: Field required\); delete it"):
        _ = RunFolder.open(tmp_path).settings


def test_a_result_survives(job: MakeJob) -> None:
    evaluation = job().run.evaluation({"kind": "samples", "samples": 4})
    evaluation.want({"kind": "samples", "samples": 4})
    assert (evaluation.done, evaluation.result()) == (False, None)
    made = Measurement(metric="auroc", protocol="log-density", value=0.5, samples=4, level=0, against="svhn")
    kept = Result(measurements=(made,), seconds=2.0, commit="abc", device="a CPU")
    evaluation.keep(kept)
    assert (evaluation.done, evaluation.result()) == (True, kept)
    assert evaluation.settings == {"kind": "samples", "samples": 4}
    (evaluation.path / "result.json").write_text('{"measurements": [{"metric": "fd"}]}')
    with pytest.raises(UserError, match=r"damaged.*delete it"):
        evaluation.result()


def test_an_outcome_that_is_no_number_survives(job: MakeJob) -> None:
    folder = job().run.evaluation({"kind": "samples"})
    facts: dict[str, Any] = {"measurements": (), "seconds": 1.0, "commit": "abc", "device": "b", "reason": "why"}
    diverged = Result(**facts, outcome="diverged", outside=0.5)
    folder.keep(diverged)
    assert folder.result() == diverged
    assert folder.stands("def"), "an outcome of the same weights"
    failed = Result(**facts, outcome="failed")
    folder.keep(failed, traceback="Traceback")
    assert (folder.result(), (folder.path / "error.log").read_text()) == (failed, "Traceback")
    assert folder.done
    assert [folder.stands(code) for code in ("abc", "def", "abc-modified")] == [True, False, False]
    folder.keep(Result(**facts, outcome="failed", mistake=True))
    assert not folder.stands("abc"), "the user may have mended it"
    assert not (folder.path / "error.log").exists()
    folder.keep(Result(**{**facts, "commit": "abc-modified"}, outcome="failed"))
    assert not folder.stands("abc-modified")
    (folder.path / "result.json").unlink()
    assert not folder.stands("abc")


def test_the_log_is_cut_back_to_an_iteration(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.truncate(3)
    for iteration in (1, 2, 3):
        log.append({"iteration": iteration, "gap": 0.1 * iteration})
    with log.path.open("a") as file:
        file.write('{"iteration": 4, "ga')  # a kill
    log.truncate(2)
    assert log.lines() == [{"iteration": 1, "gap": 0.1}, {"iteration": 2, "gap": 0.2}]


def _hold(path: Path, held: multiprocessing.synchronize.Event) -> None:
    with WorkFolder(path).lock():
        held.set()
        time.sleep(60)


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    owner = context.Process(target=_hold, args=(tmp_path, held))
    owner.start()
    try:
        assert held.wait(60)
        with pytest.raises(UserError, match="another process is working on"), WorkFolder(tmp_path).lock():
            pass
        assert owner.pid is not None
        os.kill(owner.pid, signal.SIGKILL)
        owner.join()
        with WorkFolder(tmp_path).lock(wait=10):  # its lock file is still there
            pass
    finally:
        owner.kill()
        owner.join()


def test_progress_and_failure_are_there_until_work_begins_again(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path)
    assert folder.progress() is None
    folder.report("training", 3, 10, "iteration 3 of 10")
    seen = folder.progress()
    assert seen is not None
    assert (seen.phase, seen.done, seen.total, seen.text, seen.pid) == (
        "training",
        3,
        10,
        "iteration 3 of 10",
        os.getpid(),
    )
    folder.fail("too hot", mistake=False, traceback="a traceback")
    failure = folder.failure()
    assert failure is not None
    assert (failure.message, failure.mistake) == ("too hot", False)
    assert (tmp_path / "error.log").read_text() == "a traceback"
    folder.ask_to_stop()
    assert folder.stop_asked
    folder.begin()
    assert (folder.progress(), folder.failure(), folder.stop_asked) == (None, None, False)


def test_damaged_progress_is_no_progress(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text("{")
    assert WorkFolder(tmp_path).progress() is None


def test_a_budget_is_a_cost_or_seconds(job: MakeJob) -> None:
    settings = job("cdrl", "{seconds: 2}").settings  # type: ignore[arg-type]
    assert settings.budget == {"seconds": 2.0}
    assert RunSettings.from_json(json.loads(json.dumps(asdict(settings)))) == settings


def test_drafts_of_killed_processes_go_when_work_begins(job: MakeJob) -> None:
    run = job().run
    evaluation = run.evaluation({"kind": "samples"})
    evaluation.want({"kind": "samples"})
    dead = subprocess.Popen(["true"])
    dead.wait()
    for folder in (run.path, evaluation.path):
        (folder / f".result.json.{dead.pid}.part").touch()
    run.begin()
    assert [path for path in run.path.rglob("*") if path.name.startswith(".")] == []


def test_a_folder_that_is_gone_while_runs_are_looked_for(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the drafts of a checkpoint that is being kept."""
    run, scan = job().run, os.scandir
    (run.path / ".anchor.unfinished").mkdir()

    def scandir(path: str) -> object:
        if os.fspath(path).endswith(".unfinished"):
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert RunFolder.below(run.path.parents[3]) == [run]
