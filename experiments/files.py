"""Small files that are either whole or not there."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from cdrl.errors import UserError


def write_bytes(path: Path, data: bytes) -> None:
    """Write by renaming, so that a kill or a full disk leaves the old file or the new one.

    Raises:
        UserError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may keep the new name without its content
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {path} ({error.strerror}); mend that, and the same command goes on") from error


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises `UserError` where it cannot be read or is damaged."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); mend that, and the same command goes on") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged; delete it; the same command makes it again") from error
