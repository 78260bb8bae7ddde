"""Work in named parts under a deadline: a part that has its file is not done again."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from experiments.files import write_json


class OutOfTime(KeyboardInterrupt):
    """The deadline has passed. Like Ctrl-C it stops the suite in order: running jobs keep their checkpoints."""


@dataclass(frozen=True)
class Deadline:
    """So many seconds from now.

    Attributes:
        seconds: wall-clock time from construction on.
        clock: monotonic seconds; another one takes its place in tests.
    """

    seconds: float
    clock: Callable[[], float] = time.monotonic
    begin: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "begin", self.clock())

    @property
    def left(self) -> float:
        """Seconds, negative when it has passed."""
        return self.seconds - (self.clock() - self.begin)

    @contextmanager
    def enforced(self, reserve: float = 0.0) -> Iterator[None]:
        """Raises `OutOfTime` inside, ``reserve`` seconds early; at once where less is left. Main thread only."""
        left = self.left - reserve
        if left <= 0.0:
            raise OutOfTime
        assert threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGALRM, _ring)
        signal.setitimer(signal.ITIMER_REAL, left)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)


def _ring(signum: int, frame: FrameType | None) -> None:
    raise OutOfTime


@dataclass(frozen=True)
class Parts:
    """The parts of a stage.

    Attributes:
        folder: holds one ``<name>.json`` a finished part.
        deadline: no part starts after it, and one that is under way is stopped and left for the next call.
    """

    folder: Path
    deadline: Deadline

    def do(self, name: str, act: Callable[[], Any]) -> Any:
        """What ``act`` returns (anything JSON can hold), now or in an earlier call.

        Raises:
            OutOfTime: the deadline came first.
        """
        path = self.folder / f"{name}.json"
        if path.exists():
            return json.loads(path.read_text())
        begin = time.monotonic()
        with self.deadline.enforced():
            value = act()
        write_json(path, value)
        print(f"[{time.monotonic() - begin:6.1f} s] {name}: {_short(value)}", flush=True)
        return value

    def attempt(self, name: str, act: Callable[[], Any]) -> Any:
        """`do`, but a part that fails is written down as [{"error": …}]: it must not cost the others their time."""

        def guarded() -> Any:
            try:
                return act()
            except Exception as error:
                return [{"error": f"{type(error).__name__}: {error}"}]

        return self.do(name, guarded)


def _short(value: Any, longest: int = 300) -> str:
    text = json.dumps(value)
    return text if len(text) <= longest else f"{text[:longest]} …"
