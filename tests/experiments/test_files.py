"""Small files: whole or not there, and one clear line where they are neither."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cdrl.errors import UserError
from experiments.files import read_json, sha256, write_json, write_text
from experiments.runs.folder import EvaluationFolder, RunFolder


def test_a_value_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {"a": [1, None, "σ"]})
    assert read_json(tmp_path / "new" / "a.json") == {"a": [1, None, "σ"]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_a_file_hashes_as_elsewhere(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("content", [b"", b'{"status": "fini', b"\xff\xfe"])
def test_a_damaged_status_or_result_is_named_with_what_to_do(content: bytes, tmp_path: Path) -> None:
    status, result = tmp_path / "status.json", tmp_path / "eval" / "samples-1" / "result.json"
    result.parent.mkdir(parents=True)
    for path in (status, result):
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{status} is damaged \(.+\); delete it"):
        RunFolder(tmp_path).status()
    with pytest.raises(UserError, match=rf"{result} is damaged \(.+\); delete it"):
        EvaluationFolder(result.parent).result()


def test_a_full_disk_is_said_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=rf"cannot write {tmp_path}/a \(No space left on device\)"):
        write_text(tmp_path / "a", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
