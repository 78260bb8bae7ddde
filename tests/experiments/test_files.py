"""Small files: whole or not there, and one clear line where they are neither."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cdrl.errors import UserError
from experiments import checksums
from experiments.files import csv_read, csv_text, read_json, sha256, write_json, write_text, write_together
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


def in_a_child(act: Callable[[], object], largest_file: int) -> str:
    """What a `UserError` of ``act`` says, in a process that cannot write files of more bytes, as on a full disk."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        said = "no error"
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
            act()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_files_that_belong_together_are_all_replaced_or_none_is(tmp_path: Path) -> None:
    old = {"a.csv": "old a", "b.json": "old b"}
    checksums.write(tmp_path, old, anew=True)
    before = contents(tmp_path)
    assert before.keys() == {*old, "SHA256SUMS"}
    assert checksums.differences(tmp_path) == []
    new = {"a.csv": "new a", "b.json": "new b" * 1000}
    said = in_a_child(lambda: checksums.write(tmp_path, new, anew=True), largest_file=1000)
    assert said.startswith(f"UserError: cannot write {tmp_path}/b.json (File too large); make room")
    assert "results=…" in said
    assert contents(tmp_path) == before
    checksums.write(tmp_path, new, anew=True)
    assert {name: contents(tmp_path)[name] for name in new} == new
    assert checksums.differences(tmp_path) == []


@pytest.mark.parametrize("name", ["a.csv", "b.json", "SHA256SUMS"])
def test_something_else_in_a_files_place_leaves_the_others(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"cannot write {tmp_path}/{name} \(Is a directory\); .*results=…"):
        checksums.write(tmp_path, {"a.csv": "a", "b.json": "b"}, anew=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=rf"cannot write {tmp_path}/file/results \(Not a directory\); .*results=…"):
        write_together(tmp_path / "file" / "results", {"a": "a"})
    locked = tmp_path / "locked"
    write_together(locked, {"a": "old"})
    change = shutil.which("chattr")
    if change is None or subprocess.run([change, "+i", str(locked)], capture_output=True).returncode:
        pytest.skip("this file system has no folders that root cannot write to")
    try:
        with pytest.raises(UserError, match=rf"cannot write {locked}/a \(Operation not permitted\); .*results=…"):
            write_together(locked, {"a": "new"})
    finally:
        subprocess.run([change, "-i", str(locked)], check=True)
    assert contents(locked) == {"a": "old"}
    write_together(locked, {"a": "new"})
    assert contents(locked) == {"a": "new"}


def test_drafts_of_processes_that_were_killed_go(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    others = {f".score.png.{os.getppid()}.part", ".hidden.part", "a"}
    for name in (*others, f".a.{killed.stdout.strip()}.part"):
        (tmp_path / name).touch()
    write_together(tmp_path, {"a": "new"})
    assert set(contents(tmp_path)) == others


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("CDRL, K = 30", "CDRL, K = 30"),
        ('a "quoted", <b>label</b>', 'a "quoted", <b>label</b>'),
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1+cmd|' /C calc'!A0", "'+1+cmd|' /C calc'!A0"),
        ("-CDRL", "'-CDRL"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" =1", "' =1"),
        ("'=1", "''=1"),
        ("'quoted'", "'quoted'"),
        ("-1.5 nan 2e-05", "-1.5 nan 2e-05"),
        ("-inf", "-inf"),
        ("+3", "+3"),
        ("-", "'-"),
    ],
)
def test_text_in_csv_is_no_formula_and_comes_back(text: str, written: str) -> None:
    assert csv_text(text) == written
    assert csv_read(written) == text


def test_text_in_csv_is_on_one_line_and_numbers_are_numbers() -> None:
    assert csv_text("two\r\nlines\u2028\x1b[31mred\udcff") == "two lines [31mred?"
    assert csv_text("\t=1") == "' =1"
    assert csv_text("-1" * 10_000) == "'" + "-1" * 10_000
    assert [csv_text(value) for value in (-1.5, 3, None)] == [-1.5, 3, None]
