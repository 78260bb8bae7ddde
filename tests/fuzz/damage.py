"""What can happen to a file, as strategies, and what must be true of whoever reads it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hypothesis import strategies as st

from cdrl.errors import UserError
from experiments.checks import _UNPRINTABLE

HANG = 60
"""Seconds after which a case counts as one that would never end."""
_DEEP = "a place for 100,000 brackets"


@st.composite
def spoiled(draw: st.DrawFn, original: bytes) -> bytes:
    """A file after one to three accidents: bits flipped, bytes lost, zeroed, repeated or put in, or its end cut off."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(0, len(content) - 1)))
        end = start + draw(st.integers(1, 64))
        accident = draw(st.sampled_from(("flip", "set", "cut", "lose", "zero", "repeat", "insert")))
        if accident == "flip" and content:
            content[start] ^= 1 << draw(st.integers(0, 7))
        elif accident == "set" and content:
            content[start] = draw(st.integers(0, 255))
        elif accident == "cut":
            del content[start:]
        elif accident == "lose":
            del content[start:end]
        elif accident == "zero":
            content[start:end] = bytes(len(content[start:end]))
        elif accident == "repeat":
            content[start:start] = content[start:end]
        else:
            content[start:start] = draw(st.binary(min_size=1, max_size=16))
    return bytes(content)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([2**63, -(2**64), 10**400, 0, -1]),
    st.floats(), st.text(max_size=12),
    st.sampled_from(["", "../../x", "a\x00b", "\ud800", "x" * 5000, "nan", "-1", _DEEP]),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.one_of(st.none(), st.integers(), st.floats()), max_size=3),
)  # fmt: skip
"""Any JSON, and some that parsers stumble over."""


@st.composite
def retyped(draw: st.DrawFn, original: bytes) -> bytes:
    """A JSON file in which one node, or a few, are another value, gone, unknown, or there twice."""
    document = json.loads(original)
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(document))
        if not places:
            break
        parent, key = draw(st.sampled_from(places))
        change = draw(st.sampled_from(("replace", "replace", "replace", "remove", "add")))
        if change == "remove":
            del parent[key]
        elif change == "add" and isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = draw(VALUES)
        else:
            parent[key] = draw(VALUES)
    text = json.dumps(document)
    if draw(st.integers(0, 19)) == 0 and isinstance(document, dict) and document:
        text = text.replace("{", f"{{{json.dumps(next(iter(document)))}: 1, ", 1)  # a key twice
    return text.replace(f'"{_DEEP}"', "[" * 100_000).encode()


@st.composite
def rewritten(draw: st.DrawFn, original: bytes) -> bytes:
    """A CSV file in which a value, a header or a line is another, gone or there twice."""
    lines = [line.split(",") for line in original.decode().splitlines()]
    for _ in range(draw(st.integers(1, 2))):
        line = draw(st.integers(0, len(lines) - 1)) if draw(st.booleans()) else 0
        column = draw(st.integers(0, len(lines[line]) - 1)) if lines[line] else 0
        change = draw(st.sampled_from(("value", "value", "value", "lose", "twice", "lose line", "line twice")))
        words = st.one_of(
            st.text(max_size=12),
            st.sampled_from(["", "abc", "nan", "inf", "-1", "1e999", "1_0", "9" * 400, '"', "\x00", "off", "0x1"]),
            st.floats().map(repr),
            st.integers().map(str),
        )
        if change == "value" and lines[line]:
            lines[line][column] = draw(words)
        elif change == "lose":
            del lines[line][column : column + 1]
        elif change == "twice":
            lines[line][column:column] = lines[line][column : column + 1]
        elif change == "lose line" and len(lines) > 1:
            del lines[line]
        elif change == "line twice":
            lines.insert(line, list(lines[line]))
    return "".join(",".join(line) + "\n" for line in lines).encode(errors="surrogatepass")


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (parent, key) of a document."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield node, key
        yield from _places(node[key])


@contextmanager
def within(seconds: int = HANG) -> Iterator[None]:
    """Raises `TimeoutError` inside after so many seconds of computing, or ten times as many of waiting."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no end after {seconds} s")

    clocks = ((signal.ITIMER_PROF, signal.SIGPROF, seconds), (signal.ITIMER_REAL, signal.SIGALRM, 10 * seconds))
    before = [signal.signal(number, late) for _, number, _ in clocks]
    for clock, _, limit in clocks:
        signal.setitimer(clock, limit)
    try:
        yield
    finally:
        for (clock, number, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(number, handler)


def answer(ask: Callable[[], Any], seconds: int = HANG) -> Any:
    """What ``ask`` returns, or the `UserError` it raised, one line of words; anything else is a failure."""
    try:
        with within(seconds):
            return ask()
    except UserError as error:
        text = str(error)
        assert text.strip(), "an error without words"
        assert not _UNPRINTABLE.search(text), repr(text)
        assert len(text) < 3000, text[:3000]
        text.encode()  # a terminal can show it
        return error
