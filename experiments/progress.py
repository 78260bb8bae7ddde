"""Long work that several processes may want at once: one does it and says how far it is, the others wait for it.

The work reports with `progress` and `announce`, inside `exclusive` where only one process should do it. Whoever runs it
may hear of it with `listening`; otherwise a terminal shows a bar, and anything else gets a line now and then.

    with listening(lambda share, text: folder.report("reference statistics", share, 1.0, text)):
        data.load("cifar10", "train")
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from filelock import SoftFileLease, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cdrl.errors import UserError

Advance = Callable[[int], None]
"""Called with the number of items just finished."""
OnProgress = Callable[[float, str], object]
"""Called with the share that is done, 0 … 1, and the same in words; may raise to stop the work."""

_SECONDS_BETWEEN_REPORTS = 0.25
_SECONDS_BETWEEN_LINES = 10.0
_LEASE = 60.0  # seconds without a sign of life after which an owner on another machine counts as dead
_NAMELESS = 5.0  # seconds for which a lock that names nobody is waited for; the library takes it after two

_listener: ContextVar[OnProgress | None] = ContextVar("listener", default=None)


@contextmanager
def listening(on_progress: OnProgress | None) -> Iterator[None]:
    """Everything inside reports to ``on_progress`` and prints nothing; None leaves things as they are."""
    token = _listener.set(on_progress or _listener.get())
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """Yields a function to call with the number of images just finished."""
    listener = _listener.get()
    if listener is None and sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda count: bar.advance(task, count)
        return

    start = latest = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal latest, done
        done += count
        now = time.monotonic()
        wait = _SECONDS_BETWEEN_LINES if listener is None else _SECONDS_BETWEEN_REPORTS
        if now - latest < wait and (listener is None or done < total):
            return
        latest, text = now, f"{title}: {done:,} of {total:,} images"
        if listener is not None:
            listener(done / max(total, 1), text)
        else:
            announce(f"{text}, about {(now - start) * (total - done) / max(done, 1):.0f} s left")

    if listener is not None:
        listener(0.0, f"{title}: 0 of {total:,} images")
    yield advance


def announce(text: str) -> None:
    """Say what starts now, for steps of unknown length, or what was found on the way."""
    if (listener := _listener.get()) is not None:
        listener(0.0, text)
    else:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def exclusive(
    path: Path, title: str, remedy: str = "choose another folder with cache=FOLDER", wait: float | None = None,
    on_lost: Callable[[], None] = lambda: None,
) -> Iterator[None]:  # fmt: skip
    """Only one process at a time is inside, on all machines that share the folder; the others wait.

    The place of an owner that died is taken at once on its own machine, and after a minute without a sign of life on
    another; a lock that names nobody, as of one that died while it made it, is taken in seconds. Works on file systems
    without flock.

    Args:
        path: the lock's file; gone afterwards.
        title: what is made or worked on inside, for those who wait.
        remedy: for a folder that cannot be written.
        wait: seconds to wait in silence; None waits for as long as it takes, and says for whom.
        on_lost: called from another thread when somebody has taken over, because no sign of life got through.

    Raises:
        UserError: the folder cannot be written, or another process is still inside after ``wait``.
    """
    lock, said = SoftFileLease(path, lease_duration=_LEASE, on_compromise=lambda _: on_lost()), False
    nameless_since = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not lock.is_locked:
            try:
                lock.acquire(timeout=2 * _SECONDS_BETWEEN_REPORTS if wait is None or nameless_since else wait)
            except Timeout:
                owner = lock.owner
                if owner is not None:
                    nameless_since, whom = None, f"made by {owner.hostname}, process {owner.pid}"
                    if wait is not None:
                        raise UserError(f"another process is working on {title}; wait for it or stop it") from None
                elif path.exists():
                    # Nobody is said to be at work who cannot be named. The library takes what is no lock of its own
                    # in seconds, but never an empty file: its owner might be about to write. After a minute it is not.
                    nameless_since, whom = nameless_since or time.monotonic(), f"{path} names no process"
                    _spoil(path)
                    if time.monotonic() - nameless_since > _NAMELESS + (_LEASE if wait is None else 0):
                        raise UserError(f"{path} is no lock of any process; delete it or try in a minute") from None
                else:
                    continue
                if _listener.get() is not None or not said:
                    announce(f"waiting for {title} ({whom})")
                    said = True
    except OSError as error:
        raise UserError(f"cannot write to {path.parent} ({error.strerror}); {remedy}") from error
    try:
        yield
    finally:
        lock.release()


def _spoil(path: Path) -> None:
    """Make an old empty lock one that nobody can hold. Written to the very file that was looked at."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if status.st_size == 0 and time.time() - status.st_mtime > _LEASE:
                os.write(descriptor, b"nobody\n")
        finally:
            os.close(descriptor)
