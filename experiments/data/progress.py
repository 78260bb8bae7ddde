"""How far a long job over data is: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[int], None]
_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """Yield a function to call with the number of items just finished; shows the time left, on stderr."""
    if not sys.stderr.isatty():
        yield _lines(title, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def announce(text: str) -> None:
    """Say what starts now, for steps whose length nobody knows."""
    print(text, file=sys.stderr, flush=True)


def _lines(title: str, total: int) -> Advance:
    start = latest = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal latest, done
        done += count
        now = time.monotonic()
        if now - latest >= _SECONDS_BETWEEN_LINES:
            latest = now
            left = (now - start) * (total - done) / max(done, 1)
            announce(f"{title}: {done:,} of {total:,}, about {left:.0f} s left")

    return advance
