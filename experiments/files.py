"""Small files of the suite, with errors that a person can mend; `cdrl.files` does the writing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cdrl import files
from cdrl.errors import UserError
from cdrl.files import sha256

__all__ = ["json_text", "read_json", "sha256", "write_bytes", "write_json", "write_text", "write_whole"]


def write_whole(path: Path, write: Callable[[Path], object], durable: bool = True) -> None:
    """`cdrl.files.write_whole`; the folder is made where it is missing. Raises `UserError` if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, write, durable)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); mend that, and the same command goes on") from error


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """`write_whole` of bytes."""
    write_whole(path, lambda unfinished: unfinished.write_bytes(data), durable)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """`write_whole` of text."""
    write_bytes(path, text.encode(), durable)


def json_text(value: Any) -> str:
    """Indented JSON, as `write_json` writes it."""
    return json.dumps(value, indent=1) + "\n"


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """`write_whole` of indented JSON."""
    write_text(path, json_text(value), durable)


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises `UserError` where it cannot be read or is damaged."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); mend that, and the same command goes on") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged; delete it; the same command makes it again") from error


def check_folder(path: Path, setting: str) -> None:
    """Makes a folder where it is missing. Raises `UserError` unless it takes a file: asked before hours are spent."""
    probe = path / f".writable.{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(bytes(4096))  # a name alone fits a full disk
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        reason = f"cannot write to {path} ({error.strerror})"
        raise UserError(f"{reason}; free some space there, or choose another folder: {setting}=…") from error
