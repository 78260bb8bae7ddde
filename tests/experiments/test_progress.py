"""What long work says, to whom, and how several processes share it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdrl.errors import UserError
from experiments import progress as module
from experiments.progress import announce, exclusive, listening, progress


def test_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 1.0, 12.0, 13.0, 30.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("decoding", 4000) as advance:
        for _ in range(4):
            advance(1000)
    assert capsys.readouterr().err.splitlines() == [
        "decoding: 2,000 of 4,000 images, about 12 s left",
        "decoding: 4,000 of 4,000 images, about 0 s left",
    ]


def test_a_listener_hears_instead_and_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 0.1, 0.3, 0.4, 0.5])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    heard: list[tuple[float, str]] = []
    with listening(lambda share, text: heard.append((share, text))):
        announce("fetching")
        with listening(None), progress("decoding", 4000) as advance:
            for _ in range(4):
                advance(1000)
    announce("to everyone")
    assert heard == [
        (0.0, "fetching"),
        (0.0, "decoding: 0 of 4,000 images"),
        (0.5, "decoding: 2,000 of 4,000 images"),
        (1.0, "decoding: 4,000 of 4,000 images"),
    ]
    assert capsys.readouterr().err == "to everyone\n"


def _hold(path: Path, seconds: float) -> None:
    with exclusive(path, "the thing"):
        (path.parent / "held").touch()
        time.sleep(seconds)


def _holder(path: Path, seconds: float) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(path, seconds))
    process.start()
    while not (path.parent / "held").exists():
        time.sleep(0.01)
    return process


def test_others_wait_and_say_for_whom(tmp_path: Path) -> None:
    holder, heard = _holder(tmp_path / "lock", 1.2), []
    with listening(lambda _, text: heard.append(text)), exclusive(tmp_path / "lock", "the thing"):
        holder.join(5)
        assert holder.exitcode == 0, "its owner has left"
    assert set(heard) == {f"waiting for the thing (made by {socket.gethostname()}, process {holder.pid})"}
    assert not (tmp_path / "lock").exists()


def test_who_waits_can_be_stopped(tmp_path: Path) -> None:
    def stop(share: float, text: str) -> None:
        raise KeyboardInterrupt

    holder = _holder(tmp_path / "lock", 30)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), listening(stop), exclusive(tmp_path / "lock", "the thing"):
        raise AssertionError("the lock is held")
    assert time.monotonic() - start < 10
    holder.kill()
    holder.join()


def test_a_dead_owner_is_taken_over(tmp_path: Path) -> None:
    holder = _holder(tmp_path / "lock", 60)
    os.kill(holder.pid or 0, signal.SIGKILL)
    holder.join()
    assert (tmp_path / "lock").exists()
    start = time.monotonic()
    with exclusive(tmp_path / "lock", "the thing"):
        assert time.monotonic() - start < 10


@pytest.mark.parametrize(("content", "age"), [(b"", 120), (b"nobody", 0), (b"\xff" * 2000, 0), (b"1 2 3\n", 120)])
@pytest.mark.parametrize("wait", [0.0, None])
def test_a_lock_that_names_nobody_is_taken(tmp_path: Path, content: bytes, age: float, wait: float | None) -> None:
    """As of an owner that died while it made the lock, or of another program."""
    (tmp_path / "lock").write_bytes(content)
    os.utime(tmp_path / "lock", (time.time() - age,) * 2)
    with exclusive(tmp_path / "lock", "the thing", wait=wait):
        pass
    assert list(tmp_path.iterdir()) == []


def test_only_a_lock_that_is_held_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NAMELESS", 0.1)
    (tmp_path / "lock").touch()  # just now: its owner may be about to write its name
    with pytest.raises(UserError, match=r"lock is no lock of any process; delete it or try in a minute"):
        exclusive(tmp_path / "lock", "the thing", wait=0.0).__enter__()
    (tmp_path / "lock").unlink()
    holder = _holder(tmp_path / "lock", 30)
    with pytest.raises(UserError, match="another process is working on the thing"):
        exclusive(tmp_path / "lock", "the thing", wait=0.0).__enter__()
    holder.kill()
    holder.join()


WITHOUT_FLOCK = """
import ctypes, errno, os, sys, time
from pathlib import Path
from cdrl.errors import UserError
from experiments.progress import exclusive

libc = ctypes.CDLL(None, use_errno=True)
assert libc.flock(0, 1) == -1 and ctypes.get_errno() == int(sys.argv[2]), "there are no locks here"
with exclusive(Path(sys.argv[1], "lock"), "the thing", wait=0.0):
    if os.fork() == 0:
        try:
            exclusive(Path(sys.argv[1], "lock"), "the thing", wait=0.0).__enter__()
        except UserError as error:
            print(error, flush=True)
        os._exit(0)
    os.wait()
with exclusive(Path(sys.argv[1], "lock"), "the thing", wait=0.0):
    print("free again")
"""


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks(tmp_path: Path, code: int) -> None:
    """Every flock fails, as on Lustre without -o flock, or NFS without its lock daemon."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and Linux's LD_PRELOAD")
    library, folder = tmp_path / "no.so", tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "no.c").write_text(f"#include <errno.h>\nint flock(int f, int how) {{ errno = {code}; return -1; }}\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "no.c"], check=True)
    command = [sys.executable, "-c", WITHOUT_FLOCK, folder, str(code)]
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    said = result.stdout.splitlines()
    assert said == ["another process is working on the thing; wait for it or stop it", "free again"], result.stderr
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "cache" / "lock"
    with pytest.raises(UserError, match=r"cannot write to .*file/cache \(Not a directory\); set this"):
        exclusive(path, "the thing", "set this").__enter__()
