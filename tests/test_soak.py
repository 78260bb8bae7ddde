"""A part of `make soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import soak


@pytest.mark.slow
def test_nothing_grows(tmp_path: Path) -> None:
    assert soak.endure_alone(300, tmp_path, quiet=True) == []


def test_what_grows_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[object] = []
    monkeypatch.setattr(soak.trainer, "_rates", lambda method, iteration: kept.append(soak.torch.zeros(1)) or {})
    (line,) = soak.endure(60, tmp_path, quiet=True)
    assert line.startswith("tensors grew from ")


def test_differences_are_found_but_for_times(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder, seconds in ((first, 1.0), (second, 2.0)):
        (folder / "runs").mkdir(parents=True)
        (folder / "runs" / "status.json").write_text(f'{{"iterations": 3, "seconds": {seconds}}}')
        (folder / "runs" / "metrics.jsonl").write_text(f'{{"gap": 1.0, "seconds": {seconds}}}\n')
    assert soak.differences(first, second) == []
    (second / "runs" / "metrics.jsonl").write_text('{"gap": 1.0000001, "seconds": 2.0}\n')
    (second / "runs" / ".status.json.7.part").touch()
    (first / "runs" / "anchor.json").write_text("{}")
    assert soak.differences(first, second) == [
        "runs/.status.json.7.part is left behind",
        "runs/anchor.json is missing",
        "runs/metrics.jsonl differs",
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_commands_end_as_undisturbed_ones(tmp_path: Path) -> None:
    counts, wrong = soak.kill_all(tmp_path, seed=0, kills=4, say=print)
    assert wrong == []
    assert counts["kills"] == 4
