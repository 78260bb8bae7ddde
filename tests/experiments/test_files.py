"""Small files: whole or not there, and one clear line where they are neither."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cdrl.errors import UserError
from experiments import configuration
from experiments.cells import write_results
from experiments.files import read_json, write_json, write_text
from experiments.plan import Plan, make_plan


def plan(tmp_path: Path) -> Plan:
    places = [f"runs={tmp_path}/runs", f"results={tmp_path}/results"]
    return make_plan(configuration.resolve(["experiment=table1", *places]))


def test_a_value_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {"a": [1, None, "σ"]})
    assert read_json(tmp_path / "new" / "a.json") == {"a": [1, None, "σ"]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", [b"", b'{"status": "fini', b"\xff\xfe"])
def test_a_damaged_status_or_result_is_named_with_what_to_do(content: bytes, tmp_path: Path) -> None:
    evaluation = plan(tmp_path).rows[0].evaluations[0]
    status, result = evaluation.run.folder / "status.json", evaluation.folder / "result.json"
    result.parent.mkdir(parents=True)
    result.write_bytes(content)
    with pytest.raises(UserError, match=rf"{result} is damaged; delete it"):
        write_results(plan(tmp_path), ["a command"])
    status.write_bytes(content)
    with pytest.raises(UserError, match=rf"{status} is damaged; delete it"):
        plan(tmp_path).missing()


def test_a_full_disk_is_said_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=rf"cannot write {tmp_path}/a \(No space left on device\)"):
        write_text(tmp_path / "a", "new")
    with pytest.raises(UserError, match=r"cells.csv \(No space"):
        write_results(plan(tmp_path), ["a command"])
    assert [path.read_text() for path in tmp_path.iterdir() if path.is_file()] == ["old"]
