"""Speed on a device: parity of every fast path, then times, memory and share of the matrix ceiling.

    python -m tests.benchmarks.gpu                       everything, a JSON file per part in build/gpu/
    python -m tests.benchmarks.gpu --light               without what has to be compiled for minutes
    python -m tests.benchmarks.gpu --device cpu --tiny   a rehearsal

A call stops when --seconds are over, half a minute of imports not counted, with exit code 75 while something is left;
called again with the same --out it goes on with the part that it was in. ``speed.csv`` gathers the parts.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from cdrl.cli import UNFINISHED
from cdrl.errors import UserError
from tests.benchmarks.gpu import speed


class OutOfTime(KeyboardInterrupt):
    """The seconds of this call are over."""


def main(arguments: Sequence[str]) -> int:
    """Run the command line; 0 done, 75 out of time, 1 a mistake, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of the parts (default: build/gpu)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small networks, a few images")
    parser.add_argument("--light", action="store_true", help="without what has to be compiled for minutes")
    parser.add_argument("--seconds", type=float, default=520.0, help="of this call (default: 520)")
    options = parser.parse_args(arguments)
    try:
        with alarm(options.seconds):
            table = speed.run(options.out, torch.device(options.device), tiny=options.tiny, light=options.light)
    except OutOfTime:
        print("out of time; the same command does what is left", file=sys.stderr)
        return UNFINISHED
    except KeyboardInterrupt:
        print("interrupted; the same command does what is left", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table.to_string(index=False))
    return 0


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` inside after so many seconds; main thread only."""

    def ring(signum: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
