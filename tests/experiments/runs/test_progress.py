"""The board of a command and ``cdrl watch``: all they know is what the folders say."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cdrl.errors import UserError
from experiments.plan import Job
from experiments.runs import progress
from experiments.runs.folder import Status, WorkFolder
from experiments.runs.progress import Board, Item, clock, watch

MakeJob = Callable[..., Job]


def test_watch_shows_what_is_worked_on_first(
    job: MakeJob, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    finished, failed, busy, waiting = (job(name).run for name in ("cdrl", "drl", "short_run", "noise"))
    finished.finish(Status(status="finished", iterations=3, seconds=1.0, grad_evals=30, commit="a", device="a CPU"))
    failed.fail("too hot", mistake=False)
    busy.report("training", 3, 10, "iteration 3 of 10")
    assert watch([tmp_path / "runs"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split("/")[1] for line in lines] == ["short_run", "drl", "noise", "cdrl"]
    assert "iteration 3 of 10" in lines[0]
    assert "wanted, stopped" in lines[1]
    assert "too hot" in lines[1]
    assert "finished" in lines[3]
    assert waiting.path.name in lines[2]
    with pytest.raises(UserError, match="no runs in"):
        watch([tmp_path / "nowhere"])


def test_the_time_left_counts_what_this_command_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the first run was done by an earlier command: ten seconds for a quarter of it are thirty for the rest."""
    clocks = {"now": 1000.0}
    monkeypatch.setattr(progress.time, "monotonic", lambda: clocks["now"])
    folders = [WorkFolder(tmp_path / name) for name in "ab"]
    items = [Item("a", folders[0], training=1.0, evaluations=0), Item("b", folders[1], training=0.5, evaluations=0)]
    board = Board("table", items)
    board.refresh()
    assert board.time_left() == "time left: measuring"
    folders[0].report("training", 50, 100, "iteration 50 of 100")
    board.refresh()
    clocks["now"] += 10.0
    folders[0].report("training", 75, 100, "iteration 75 of 100")
    board.refresh()
    assert board.time_left() == "time left: about 30 s"
    board.end(items[0])
    assert board.time_left() == "time left: about 10 s"


def test_progress_of_an_earlier_command_is_not_taken_for_news(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path)
    folder.report("training", 9, 10, "iteration 9 of 10")
    time.sleep(0.01)
    item = Item("a", folder, training=1.0, evaluations=0)
    item.read(since=time.time())
    assert (item.text, item.done) == ("", 0.0)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (75, "1 min 15 s"), (3900, "1 h 05 min")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
