"""Where a number says it comes from."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from experiments.runs import machine


def test_a_copy_without_its_history_says_what_it_is_a_copy_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(machine.subprocess, "run", fails)
    monkeypatch.delenv("CDRL_COMMIT", raising=False)
    assert machine.commit() == "unknown"
    monkeypatch.setenv("CDRL_COMMIT", "0123456789ab")
    assert machine.commit() == "0123456789ab"
