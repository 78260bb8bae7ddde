"""The time of day jumps by hours, back and forth: nobody waits for it, and nothing is lost by it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest

from cdrl.errors import UserError
from experiments.plan import Job
from experiments.progress import exclusive
from experiments.runs import progress
from experiments.runs.progress import Board, Item
from experiments.runs.work import Order, work

MakeJob = Callable[..., Job]
REAL = time.time


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another time of day whenever somebody asks."""
    hours = cycle((0, 3, -5, 24, -24))
    monkeypatch.setattr(time, "time", lambda: REAL() + 3600 * next(hours))


@pytest.mark.usefixtures("jumping")
def test_a_run_does_not_mind(job: MakeJob, fingerprint: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = job().run
    assert work(Order(run.path, (), "cpu", checkpoint_seconds=0.0, commit="abc")) == "done"
    monkeypatch.undo()
    alone = job(runs="alone").run
    assert work(Order(alone.path, (), "cpu", commit="abc")) == "done"
    assert fingerprint(run.path) == fingerprint(alone.path)


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_deadline_is_in_seconds_that_pass(hours: int, job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back or forward right after the work has begun."""
    run = job(budget=3_000_000).run
    times = iter([REAL()])
    monkeypatch.setattr(time, "time", lambda: next(times, REAL() + 3600 * hours))
    over, begun = REAL() + 3.0, time.monotonic()
    assert work(Order(run.path, (), "cpu", deadline=over)) == "interrupted"
    assert 1.0 < time.monotonic() - begun < 60.0


def _hold(path: Path, held: object, over: object) -> None:
    with exclusive(path, "the thing", wait=0.0):
        held.set()  # type: ignore[attr-defined]
        over.wait(60)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("jumping")
def test_a_lock_stays_with_its_owner(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, over = context.Event(), context.Event()
    owner = context.Process(target=_hold, args=(tmp_path / "lock", held, over))
    owner.start()
    assert held.wait(60)
    for _ in range(10):
        with pytest.raises(UserError, match="another process is working on the thing"):
            exclusive(tmp_path / "lock", "the thing", wait=0.1).__enter__()
    over.set()
    owner.join()
    assert owner.exitcode == 0
    with exclusive(tmp_path / "lock", "the thing", wait=0.0):
        pass


def test_ages_and_times_left_are_no_less_than_nothing(
    job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = job().run
    board = Board("table", [Item("a", run, training=1.0)])
    run.report("training", 5, 10, "iteration 5 of 10")
    monkeypatch.setattr(time, "time", lambda: REAL() - 3600.0)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", -1.0)
    monkeypatch.setenv("COLUMNS", "200")
    board.refresh()
    assert progress.watch([tmp_path / "runs"], once=True) == 0
    shown = capsys.readouterr()
    assert "(0 s ago" in shown.out
    assert "[0 s] 0 of 1 done" in shown.err
