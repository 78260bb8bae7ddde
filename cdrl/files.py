"""Files that are either whole or not there, and what a file hashes to; for the checkpoint modules and the suite."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object], durable: bool = True) -> None:
    """Let ``write`` fill a file beside ``path``, then rename it: a kill or a full disk leaves the old file or the new.

    Args:
        path: in a folder that exists.
        write: is given the path to write to.
        durable: also flush file and folder to the disk, without which a power cut may lose the content.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(unfinished)
        put(unfinished, path, durable)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def put(unfinished: Path, path: Path, durable: bool = True) -> None:
    """Give a written file its name, in one rename; ``durable`` as in `write_whole`."""
    if durable:
        _flush(unfinished)
    os.replace(unfinished, path)
    if durable:
        _flush(path.parent)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
