"""A signal that asks work to stop: heard at once, whatever the process is doing, and obeyed within ten seconds.

The work asks for it at points where it can keep a checkpoint. A part that does not come to such a point for a few
seconds is interrupted. A process that does not come out even then, because it waits inside a library, is ended: what
lies in the folders was written whole, so that costs no more than a kill.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from cdrl.cli import stop_signals

_GRACE = 3.0
"""Seconds after which what does not ask is interrupted by KeyboardInterrupt; an iteration of training never is."""
_END = 8.0
"""Seconds after which the process is ended."""


class Wish:
    """Whether to stop, and which signal said so.

    Attributes:
        number: the first signal that came; None before.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._event = threading.Event()

    def __call__(self) -> bool:
        return self._event.is_set()

    def express(self, number: int) -> None:
        """Ask to stop, by a signal."""
        self.number = self.number or number
        self._event.set()


@contextmanager
def heeded(
    wish: Wish, on_signal: Callable[[], None], at_end: Callable[[int], None], also: Sequence[int] = ()
) -> Iterator[None]:
    """While it is open, `stop_signals` express the wish. A thread hears them: a handler would wait for libraries.

    Args:
        wish: what the work inside asks.
        on_signal: called from that thread when the first signal has come.
        at_end: called from it with the signal's number, before `os._exit` ends the process with 128 plus that.
        also: further signals that do the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    main, over, late = threading.get_ident(), threading.Event(), threading.Event()
    numbers = {*stop_signals(), *also}
    hasty = signal.SIGINT not in also and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    hear, tell = os.pipe()
    os.set_blocking(tell, False)

    def obey() -> None:
        while (number := os.read(hear, 1)[0]) not in numbers:
            if over.is_set():
                return
        wish.express(number)
        on_signal()
        if not over.wait(_GRACE):
            late.set()
            signal.pthread_kill(main, signal.SIGINT)  # which training takes for a wish, too
        if not over.wait(_END - _GRACE):
            with suppress(Exception):
                at_end(number)
            os._exit(128 + number)

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if late.is_set() or hasty:
            late.clear()
            raise KeyboardInterrupt

    handlers = {**dict.fromkeys(numbers, lambda *_: None), int(signal.SIGINT): interrupt}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    fd_before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # what came while the process was being made is heard now
    thread = threading.Thread(target=obey, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        os.write(tell, b"\0")
        thread.join()
        late.clear()
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(hear)
        os.close(tell)
