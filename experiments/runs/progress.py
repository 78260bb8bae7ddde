"""How far work is, read from the folders it is done in: for the command that ordered it, and for a second terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from cdrl.errors import UserError
from experiments.runs.folder import RunFolder, WorkFolder

EVALUATION_SHARE = 0.1
"""What an evaluation is taken to cost, as a share of the longest training."""
_SECONDS_BETWEEN_LINES = 15.0


@dataclass(eq=False)
class Item:
    """One order on the board.

    Attributes:
        name: for people.
        folder: where the work is done.
        training: how long it will train, as a share of the longest training.
        evaluations: how many it will do.
    """

    name: str
    folder: WorkFolder
    training: float = 0.0
    evaluations: int = 1
    text: str = ""
    done: float = 0.0
    begun_at: float | None = field(default=None, init=False)
    """What was done when it first reported: work of an earlier command."""
    task: TaskID | None = field(default=None, init=False)

    @property
    def size(self) -> float:
        return self.training + EVALUATION_SHARE * self.evaluations

    def read(self, since: float) -> None:
        """Look at the folder's progress, unless it is older than ``since``."""
        progress = self.folder.progress()
        if progress is None or progress.updated < since:
            return
        share = min(1.0, progress.done / max(progress.total, 1e-9))
        training = progress.phase == "training"
        self.text = progress.text
        self.done = share * self.training if training else self.training + share * EVALUATION_SHARE * self.evaluations
        if progress.phase in ("data", "measuring"):
            self.done = 0.0
        elif self.begun_at is None:
            self.begun_at = self.done


class Board:
    """Bars on a terminal, a plain line now and then elsewhere; with the time left."""

    def __init__(self, title: str, items: Sequence[Item]) -> None:
        self.title, self.items = title, list(items)
        self.console = Console(stderr=True)
        self._waiting = list(items)
        self._finished = 0
        self._work_done = 0.0
        self._started, self._begun = time.time(), time.monotonic()
        self._first_heard: float | None = None
        """When work began: starting the first processes says nothing of the time that is left."""
        self._printed = time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._overall = self._bars.add_task(title, total=len(items), text="")

    def __enter__(self) -> Board:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._bars.stop()

    def say(self, text: str, style: str | None = None) -> None:
        """A line of its own. Work goes on where nobody can be told any more: a terminal that is closed, a full log."""
        with suppress(OSError):
            self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def refresh(self) -> None:
        """Read every folder that somebody works in, and show it."""
        for item in self._waiting:
            item.read(self._started)
            if item.text and item.task is None:
                item.task = self._bars.add_task(f"  {item.name}", total=item.size, text="")
            if item.begun_at is not None:
                self._first_heard = self._first_heard or time.monotonic()
            if item.task is not None:
                self._bars.update(item.task, completed=item.done, text=item.text)
        completed = self._finished + sum(item.done / item.size for item in self._waiting)
        title = f"{self.title} {self._finished}/{len(self.items)}"
        self._bars.update(self._overall, completed=completed, description=title, text=self.time_left())
        if not self.console.is_terminal and time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            running = "; ".join(f"{item.name}: {item.text}" for item in self._waiting if item.text)
            elapsed = clock(time.monotonic() - self._begun)
            done = f"{self._finished} of {len(self.items)} done"
            self.say(f"[{elapsed}] {done}, {self.time_left()} ({running or 'starting'})")

    def end(self, item: Item) -> None:
        """An item's work has ended, well or not."""
        self._waiting.remove(item)
        self._finished += 1
        self._work_done += item.size - (item.begun_at or 0.0)
        if item.task is not None:
            self._bars.remove_task(item.task)

    def time_left(self) -> str:
        """In words: what is left at the pace of what this command has seen done."""
        done = self._work_done + sum(item.done - (item.begun_at or 0.0) for item in self._waiting)
        left = sum(item.size - item.done for item in self._waiting)
        if self._first_heard is None or done < 0.02:
            return "time left: measuring"
        return f"time left: about {clock(left * (time.monotonic() - self._first_heard) / done)}"


@contextmanager
def shown(path: Path) -> Iterator[None]:
    """Shows how far the work on a run folder is, and the time left, while it is done inside."""
    run, over = RunFolder(path), threading.Event()
    pending = sum(not evaluation.done for evaluation in run.evaluations())
    item = Item(str(path), run, training=float(run.status() is None), evaluations=max(1, pending))

    def follow() -> None:
        while not over.wait(0.5):
            board.refresh()

    with Board("work", [item]) as board:
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def watch(paths: Sequence[Path], *, once: bool = False, every: float = 2.0) -> int:
    """Show the state of every run below the paths, from any terminal or machine that sees them, until Ctrl-C.

    Args:
        paths: run folders, or folders above them such as ``runs``.
        once: show it once and return; so does output that is no terminal.
        every: seconds between looks.

    Returns:
        The exit code, 0.

    Raises:
        UserError: there is no run there.
    """
    console = Console()
    table = _table(paths)
    if once or not console.is_terminal:
        console.print(table)
        return 0
    with Live(table, console=console, auto_refresh=False) as live:
        while True:
            live.update(_table(paths), refresh=True)
            time.sleep(every)


def _table(paths: Sequence[Path]) -> Table:
    """A line per run: those that somebody works on first, then those that stopped, wait, or are complete."""
    runs = [run for path in paths for run in RunFolder.below(path)]
    if not runs:
        raise UserError(f"there are no runs in {', '.join(map(str, paths))}; name a folder such as runs")
    lines = []
    for run in runs:
        dataset, method, identity, seed = run.path.absolute().parts[-4:]
        evaluations, progress = run.evaluations(), run.progress()
        done = sum(evaluation.done for evaluation in evaluations)
        title = f"{dataset}/{method}/{identity[:6]} {seed}"
        try:
            state, rank, now, failure = run.state, 2, "", run.failure()
        except UserError as error:  # the others are shown all the same
            lines.append((1, title, "damaged", f"{done}/{len(evaluations)}", str(error)))
            continue
        if state == "wanted" and evaluations and done == len(evaluations):
            state = "complete"  # there was nothing to train
        if state in ("diverged", "complete") or (state == "finished" and done == len(evaluations)):
            rank = 3
        elif failure is not None:
            state, rank, now = f"{state}, stopped", 1, failure.message
        elif progress is not None:
            ago = clock(max(0.0, time.time() - progress.updated))  # by a clock that may have been put back
            rank, now = 0, f"{progress.text} ({ago} ago, {progress.host} {progress.pid})"
        lines.append((rank, title, state, f"{done}/{len(evaluations)}", now))
    table = Table(box=None, pad_edge=False)
    for title in ("run", "state", "evaluated", "now"):
        table.add_column(title, no_wrap=title != "now")
    for _, *line in sorted(lines, key=lambda line: line[0]):
        table.add_row(*map(escape, line))
    return table


def clock(seconds: float) -> str:
    """``"1 h 05 min"``, ``"3 min 20 s"``, ``"12 s"``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
