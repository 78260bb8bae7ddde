"""Small files of the suite: written whole or not at all, and read by what they must hold.

Whatever a file turns out to be (cut short, flipped bits, another format, a folder, endless), reading it gives a value
of the kind that was asked for, or a `UserError` of one line that names the file and says how it is mended: what a
command can make again is to be deleted, and the same command makes it. `cdrl.files` does the writing.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from cdrl import files
from cdrl.errors import UserError
from cdrl.files import sha256

__all__ = [
    "checked",
    "csv_read",
    "csv_text",
    "json_text",
    "misfit",
    "one_line",
    "read_arrays",
    "read_csv",
    "read_json",
    "read_record",
    "read_text",
    "sha256",
    "wished",
    "write_bytes",
    "write_json",
    "write_text",
    "write_together",
    "write_whole",
]

T = TypeVar("T")

AGAIN = "delete it; the same command makes it again"
"""What to do about a damaged file that a command makes by itself."""
_MOST_BYTES, _MOST_ARRAY_BYTES = 256 * 2**20, 4 * 2**30
"""A larger file is none of ours: of text, and of arrays when unpacked."""


def _value(number: float) -> float:
    if abs(number) > 1e300:  # infinite, or a whole number that no float holds
        raise ValueError("larger than any number of ours")
    return number


def _defined(number: float) -> float:
    if number != number:
        raise ValueError("not a number")
    return number


def _place(path: str) -> str:
    if len(os.fsencode(path)) > 4000 or any(len(os.fsencode(part)) > 255 for part in path.split("/")):
        raise ValueError("too long for a path")
    return path


# Types of fields, in records' dataclasses and in columns of tables: what a file can be refused for.
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
AtLeastOne = Annotated[int, Field(ge=1, le=2**63 - 1)]
Value = Annotated[int | float, AfterValidator(_value)]  # whole numbers stay whole: cells are told by their digits
Number = Annotated[Value, AfterValidator(_defined)]
Amount = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]
Commit = Annotated[str, Field(pattern=r"^[^\s\x00-\x1f\x7f]+$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Place = Annotated[Name, AfterValidator(_place)]

COUNT, SIGNED = r"\d{1,18}", r"-?\d{1,18}"
NUMBER = r"-?(\d{1,17}(\.\d{1,30})?|\d(\.\d{1,30})?e[-+](\d\d|[12]\d\d))"
WORDS = r"[^\x00-\x1f\x7f]*"
"""The same for a column of a CSV file, as patterns."""

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
        clear_drafts(folder)
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


def clear_drafts(folder: Path) -> None:
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


def read_text(path: Path, remedy: str = AGAIN) -> str:
    """A file of text. Raises `UserError` where there is none that can be read."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path} is no file; {_moved(remedy)}")
        if found.st_size > _MOST_BYTES:
            raise _damaged(path, f"{found.st_size:,} bytes are more than it can have", remedy)
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); mend that, and the same command goes on") from error
    except UnicodeDecodeError as error:
        raise _damaged(path, "not UTF-8", remedy) from error


def wished(path: Path, read: Callable[[], T]) -> T | None:
    """What ``read`` makes of a file of wishes; None where it is missing or damaged: either way it is written anew."""
    with suppress(UserError):
        return read() if path.exists() else None
    return None


def check_folder(path: Path, setting: str) -> None:
    """Makes a folder where it is missing. Raises `UserError` unless it takes a file: asked before hours are spent."""
    probe = path / f".writable.{os.getpid()}.part"
    try:
        path.mkdir(parents=True, exist_ok=True)
        clear_drafts(path)
        try:
            probe.write_bytes(bytes(4096))  # a name alone fits a full disk
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        reason = f"cannot write to {path} ({error.strerror})"
        raise UserError(f"{reason}; free some space there, or choose another folder: {setting}=…") from error


def read_record(path: Path, kind: type[T], remedy: str = AGAIN) -> T:
    """A JSON file as what it was written from.

    Args:
        path: the file.
        kind: a dataclass or a ``TypedDict``, whose annotations say types and ranges; every field must fit exactly (1
            is no text, true no number), and there may be no others.
        remedy: what to do where it is damaged.

    Raises:
        UserError: it cannot be read, or holds anything else.
    """
    return _validated(str(path), read_text(path, remedy), kind, remedy)


def read_json(path: Path, kind: Any = Any, remedy: str = AGAIN) -> Any:
    """The same as plain dicts, lists and numbers, exactly as they were written: for what is kept or hashed as it is."""
    text = read_text(path, remedy)
    _validated(str(path), text, kind, remedy)
    return json.loads(text)


def checked(value: Any, kind: type[T], where: str, remedy: str) -> T:
    """Plain data from inside a file as a ``kind``; see `read_record`."""
    return _validated(where, json.dumps(value), kind, remedy)


def read_csv(
    path: Path, columns: Mapping[str, str], optional: tuple[str, ...] = (), remedy: str = AGAIN
) -> list[dict[str, str]]:
    """The lines of a CSV file, values as text.

    Args:
        path: the file.
        columns: name → pattern that every value matches; there may be others, of words.
        optional: columns that need not be there, nor their values at the end of a line; then they are empty.
        remedy: what to do where it is damaged.

    Raises:
        UserError: it cannot be read, a column is missing, or a value does not match.
    """
    text = read_text(path, remedy)
    try:
        header, *body = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (ValueError, csv.Error) as error:  # without a line
        raise _damaged(path, str(error) if isinstance(error, csv.Error) else "it is empty", remedy) from None
    if len(set(header)) < len(header):
        raise _damaged(path, "two columns have one name", remedy)
    if lost := [name for name in columns if name not in header and name not in optional]:
        raise UserError(f"{path} lacks the columns {', '.join(lost)}; {remedy}")
    lines = []
    for number, values in enumerate(body, 2):
        if len(values) > len(header) or not set(header[len(values) :]) <= set(optional):
            raise _damaged(path, f"line {number} has {len(values)} values for {len(header)} columns", remedy)
        line = {**dict.fromkeys((*header, *optional), ""), **dict(zip(header, values, strict=False))}
        for name, value in line.items():
            if not re.fullmatch(columns.get(name, WORDS), value) and not (value == "" and name in optional):
                raise _damaged(path, f"line {number}, {name}: {_short(value)}", remedy)
        lines.append(line)
    return lines


def read_arrays(path: Path, layouts: Mapping[str, str], remedy: str = AGAIN) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz`` file, or under ``""`` the one of an ``.npy`` file. Nothing is unpickled.

    Args:
        path: the file.
        layouts: name → kind and dimensions, such as ``"u1 n h w 1,3"``: eight-bit whole numbers, and sizes that are
            one of the numbers given or, where named, the same wherever the name stands in the file; none is 0. Kinds
            are u1, i (whole), f (floating), n (either), b (true or false), U (text). ``"*"`` stands for any names.
        remedy: what to do where it is damaged.

    Raises:
        UserError: it cannot be read, or holds anything else.
    """
    arrays: dict[str, NDArray[Any]] = {}
    try:
        if not path.is_file():
            raise ValueError("no file")
        with path.open("rb") as file:
            for name, (stream, size) in _members(path, file):
                arrays[name] = _array(stream, size)
    except OSError as error:
        if error.strerror:
            raise UserError(f"cannot read {path} ({error.strerror}); mend that, and the same command goes on") from None
        raise _damaged(path, "it cannot be unpacked", remedy) from None
    except Exception as error:  # whatever zipfile, zlib and numpy's parser of headers make of any bytes
        raise _damaged(path, str(error) or type(error).__name__, remedy) from None

    # Is it what it should be?
    sizes: dict[str, int] = {}
    if lost := layouts.keys() - arrays.keys() - {"*"} or ([] if arrays else ["arrays"]):
        raise _damaged(path, f"it lacks {', '.join(sorted(lost))}", remedy)
    for name, array in arrays.items():
        layout = layouts.get(name, layouts.get("*"))
        if layout is not None and not _fits(array, layout, sizes):
            raise _damaged(path, f"{_short(name)} is {array.dtype} of shape {array.shape}, not {layout}", remedy)
    return arrays


def _members(path: Path, file: IO[bytes]) -> Iterator[tuple[str, tuple[IO[bytes], int]]]:
    """Name → stream and bytes of what must be an array."""
    if path.suffix == ".npy":
        yield "", (file, path.stat().st_size)
        return
    with zipfile.ZipFile(file) as package:
        if sum(member.file_size for member in package.infolist()) > _MOST_ARRAY_BYTES:
            raise ValueError("it unpacks to more than it can have")
        for member in package.infolist():
            with package.open(member) as stream:
                yield member.filename.removesuffix(".npy"), (stream, member.file_size)


def _array(stream: IO[bytes], size: int) -> NDArray[Any]:
    """One array of ``size`` bytes with its header, which is not believed about how large it is."""
    version = npy.read_magic(stream)
    header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    expected, data = math.prod(shape) * dtype.itemsize, stream.read(size)
    if dtype.hasobject or expected != len(data) or stream.read(1):
        raise ValueError("it is cut short, or of another kind")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C").copy()


def _fits(array: NDArray[Any], layout: str, sizes: dict[str, int]) -> bool:
    """Whether an array has a layout; ``sizes`` are those of the names met so far."""
    kind, *dimensions = layout.split()
    kinds = {"u1": "u", "i": "iu", "f": "f", "n": "iuf", "b": "b", "U": "U"}[kind]
    if array.dtype.kind not in kinds or (kind == "u1" and array.itemsize != 1) or array.ndim != len(dimensions):
        return False
    return all(
        str(size) in wanted.split(",") if wanted[0].isdigit() else 0 < size == sizes.setdefault(wanted, size)
        for wanted, size in zip(dimensions, array.shape, strict=True)
    )


def misfit(value: Any, kind: Any) -> str | None:
    """What keeps plain data, such as a configuration's, from being a ``kind``, in words; other fields do not count."""
    try:
        _schema(kind).validate_python(value, strict=True)
        return None
    except ValidationError as error:
        return _first(error)


def _first(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(_short(str(part)) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def _validated(where: str, text: str, kind: type[T], remedy: str) -> T:
    """JSON text as a ``kind``, or the `UserError` that says what is wrong with the first thing that is."""

    def unique(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("a key stands twice")

    try:
        value: T = _schema(cast(Any, kind)).validate_json(text, strict=True, extra="forbid")
        json.loads(text, object_pairs_hook=unique)
        return value
    except ValidationError as error:
        raise _damaged(where, _first(error), remedy) from None
    except (UserError, ValueError, RecursionError) as error:  # a dataclass's own checks among them
        raise _damaged(where, str(error), remedy) from None


@lru_cache
def _schema(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _damaged(where: Path | str, what: str, remedy: str) -> UserError:
    return UserError(f"{where} is damaged ({' '.join(_short(what, 200).split())}); {remedy}")


def _moved(remedy: str) -> str:
    return remedy.replace("delete it", "move it away", 1)


def _short(text: str, most: int = 60) -> str:
    """A text of a damaged file as it can be shown."""
    shown = "".join(letter if letter.isprintable() else "�" for letter in text)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
