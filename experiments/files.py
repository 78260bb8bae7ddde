"""Small files of the suite, with errors that a person can mend; `cdrl.files` does the writing."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cdrl import files
from cdrl.errors import UserError
from cdrl.files import sha256

__all__ = [
    "csv_read",
    "csv_text",
    "json_text",
    "one_line",
    "read_json",
    "sha256",
    "write_bytes",
    "write_json",
    "write_text",
    "write_together",
    "write_whole",
]

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_FORMULA = re.compile(r"[\s']*[=+\-@＝＋－＠]")
_NUMBER = r"[-+]?(\d+(\.\d*)?(e[-+]?\d+)?|nan|inf)"
_NUMBERS = re.compile(f"{_NUMBER}( {_NUMBER})*")


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


def write_together(folder: Path, texts: Mapping[str, str]) -> None:
    """Replace files of a results folder that belong together, by name: all, or none where one cannot be written.

    A kill between two renames can still leave some of both; SHA256SUMS, which is one of them, tells them apart.

    Raises:
        UserError: the disk is full, or the folder cannot be written to; what was there is as it was.
    """
    drafts = {folder / f".{name}.{os.getpid()}.part": folder / name for name in texts}
    path = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        for (draft, path), text in zip(drafts.items(), texts.values(), strict=True):
            if path.is_dir():  # which a rename would find too late
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            with draft.open("wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())  # where some file systems say first that they are full
        for draft, path in drafts.items():
            files.put(draft, path)
    except OSError as error:
        remedy = "make room or mend it, or name another folder with results=… (cdrl report: --results)"
        raise UserError(f"cannot write {path} ({error.strerror}); {remedy}; the same command goes on") from error
    finally:
        for draft in drafts:
            with suppress(OSError):
                draft.unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Remove the drafts of processes that were killed while they wrote into a folder."""
    for draft in folder.glob(".*.part"):
        try:
            os.kill(int(draft.name.split(".")[-2]), 0)
        except ProcessLookupError:
            draft.unlink(missing_ok=True)
        except (OSError, ValueError, OverflowError):  # of another user's process, or no draft of ours
            continue


def one_line(text: str) -> str:
    """Text of a person or of a file's name without line breaks, control characters and what UTF-8 cannot say."""
    return _UNPRINTABLE.sub(" ", text.encode(errors="replace").decode())


def csv_text(value: Any) -> Any:
    """A value for a CSV file: text on one line, and with ``'`` before what a spreadsheet would take for a formula."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBERS.fullmatch(text) else text


def csv_read(text: str) -> str:
    """What `csv_text` was given, but for line breaks."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


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
