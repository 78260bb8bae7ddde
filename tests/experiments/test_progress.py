"""Without a terminal: a plain line now and then, with the time left."""

from __future__ import annotations

import pytest

from experiments.data import progress as module


def test_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 1.0, 12.0, 13.0, 30.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with module.progress("decoding", 4000) as advance:
        for _ in range(4):
            advance(1000)
    assert capsys.readouterr().err.splitlines() == [
        "decoding: 2,000 of 4,000, about 12 s left",
        "decoding: 4,000 of 4,000, about 0 s left",
    ]
