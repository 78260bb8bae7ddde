"""Decoded data sets on disk: one process decodes, all map the result from then on.

An entry is a folder ``<cache>/decoded/<name>-<split>-<key>/`` with ``images.npy``, optionally ``labels.npy`` and
``attributes.npy``, and ``meta.json`` (names, source, checksums). Its key is a hash of the source files' names, sizes
and times and of the options, so that a changed source is decoded anew. It is written as a draft, under the entry's
lock, and renamed, so that what exists is complete. Every array is hashed each time it is opened (some 1.5 GB a second);
what does not fit its checksum is decoded anew, whatever its size and time say.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdrl.errors import UserError
from experiments.data.images import ImageSet, pixel_checksum
from experiments.files import sha256, write_json
from experiments.progress import announce, exclusive

Allocate = Callable[[int, int, int], NDArray[np.uint8]]
"""``(count, size, channels)`` -> a zeroed uint8 NHWC array to fill."""

_REMEDY = "set data.data_cache"
_DRAFT, _BLOCK = ".draft-", 1 << 20
_VERSION = 2  # of decoding and of what is kept: raise it when the same files would give others


@dataclass(frozen=True)
class Decoded:
    """The result of decoding, beside the pixels; fields as in `ImageSet`."""

    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    attributes: NDArray[np.bool_] | None = None
    attribute_names: tuple[str, ...] = ()
    source: str = ""  # replaces the recipe's, where only decoding finds out


@dataclass(frozen=True)
class Recipe:
    """A data set that is there but not decoded.

    Attributes:
        decode: asks for an array once (`Allocate`), fills it, and returns the rest.
        source: where it comes from, in words.
        files: what it is made of; their names, sizes and times decide whether a kept copy is still right.
        options: what else decides the pixels.
        comparable: see `ImageSet`.
    """

    decode: Callable[[Allocate], Decoded]
    source: str
    files: Sequence[Path] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    comparable: bool = True


def materialise(recipe: Recipe, cache: Path, name: str, split: str, expected: str | None = None) -> ImageSet:
    """Decode the recipe, or map what was decoded before; a process that finds another at it waits for it.

    Raises `UserError` if the pixels' hash is not ``expected``, or the cache cannot be written.
    """
    folder, title = entry_folder(recipe, cache, name, split), f"data set {name} ({split})"
    images = open_entry(folder, name, split)
    if images is None:
        with exclusive(_lock(folder), title, _REMEDY):
            images = open_entry(folder, name, split)  # another process may have decoded it meanwhile
            if images is None:
                if folder.exists():
                    announce(f"the decoded images in {folder} are damaged; they are decoded again")
                _clear_drafts(folder)
                _write_entry(folder, recipe, title, expected)
                images = open_entry(folder, name, split)
    if images is None:
        raise UserError(f"decoded data in {folder} cannot be read back; delete that folder and try again")
    verify(images.checksum, expected, f"{title}, {recipe.source}")
    return images


def entry_folder(recipe: Recipe, cache: Path, name: str, split: str) -> Path:
    """The folder of the decoded recipe."""
    facts = [(str(path.absolute()), *_stamp(path)) for path in recipe.files]
    return cache / "decoded" / f"{name}-{split}-{_digest([_VERSION, facts, sorted(recipe.options.items())])[:12]}"


def verify(actual: str, expected: str | None, what: str) -> None:
    """Raise `UserError` unless the hash is the expected one (None accepts any)."""
    if expected is not None and actual != expected:
        remedy = "the copy is damaged or not the original, get it again"
        raise UserError(f"{what}: pixels hash to {actual}, the published data to {expected}; {remedy}")


def open_entry(folder: Path, name: str, split: str) -> ImageSet | None:
    """Map a kept entry; None if there is none or it is not what was written."""
    try:
        record = json.loads((folder / "meta.json").read_text())
        meta = record["meta"]
        # Mode "c" (private writable) shares pages like "r" does, and torch takes only writable arrays.
        images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
        if (
            record["sha256"] != _digest(meta)
            or list(images.shape) != meta["shape"]
            or pixel_checksum(images) != meta["checksum"]
            or any(sha256(folder / f"{key}.npy") != checksum for key, checksum in meta["rows"].items())
        ):
            return None
        rows = {key: np.load(folder / f"{key}.npy", allow_pickle=False) for key in meta["rows"]}
        return ImageSet(
            images, rows.get("labels"), name, split, meta["source"], tuple(meta["class_names"]),
            rows.get("attributes"), tuple(meta["attribute_names"]), meta["comparable"], meta["checksum"],
        )  # fmt: skip
    except Exception:  # a damaged file can be anything, and is made again whatever it is
        return None


def _write_entry(folder: Path, recipe: Recipe, title: str, expected: str | None) -> None:
    """Decode into a draft, then rename it."""
    try:
        draft = Path(tempfile.mkdtemp(prefix=f"{_DRAFT}{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"cannot write decoded data to {folder.parent} ({error}); {_REMEDY}") from error
    pixels, aside = draft / "images.npy", draft.with_name(f"{draft.name}0")

    def allocate(count: int, size: int, channels: int) -> NDArray[np.uint8]:
        shape = (count, size, size, channels)
        try:
            if math.prod(shape) > sys.maxsize:
                raise OverflowError("more than a file can hold")
            array = np.lib.format.open_memmap(pixels, mode="w+", dtype=np.uint8, shape=shape)
            _reserve(pixels, array.offset)
        except (OSError, OverflowError, ValueError) as error:
            what = f"{title}: no room for {count:,} images of {size}x{size} pixels in {folder.parent} ({error})"
            raise UserError(f"{what}; free some space or {_REMEDY}") from error
        return array

    try:
        rest = recipe.decode(allocate)
        images = np.load(pixels, mmap_mode="r")
        checksum = pixel_checksum(images)
        verify(checksum, expected, f"{title}, {recipe.source}")
        rows = {}
        for key, values, kind in (("labels", rest.labels, np.int64), ("attributes", rest.attributes, np.bool_)):
            if values is not None:
                np.save(draft / f"{key}.npy", values.astype(kind))
                rows[key] = sha256(draft / f"{key}.npy")
        meta = {
            "source": rest.source or recipe.source, "checksum": checksum, "shape": images.shape,
            "rows": rows, "class_names": rest.class_names, "attribute_names": rest.attribute_names,
            "comparable": recipe.comparable,
        }  # fmt: skip
        write_json(draft / "meta.json", {"meta": meta, "sha256": _digest(meta)})
        # What lies there is damaged and goes aside, with a draft's name. Should another process have put a whole entry
        # there meanwhile, because this one was stopped for so long that its lock was taken over, that one is as good.
        with suppress(FileNotFoundError):
            os.rename(folder, aside)
        try:
            os.rename(draft, folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    except OSError as error:
        raise UserError(f"{title}: {error}; free some space or {_REMEDY}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def _reserve(path: Path, start: int) -> None:
    """Give a sparse file its room now, from byte ``start`` on: where the disk is full, writing to a map of it would be
    a bus error."""
    with path.open("r+b") as file:
        size = path.stat().st_size
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:  # no such call on this system, or in this file system
            if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                raise
            file.seek(start)
            while (left := size - file.tell()) > 0:
                file.write(bytes(min(left, _BLOCK)))


def _clear_drafts(folder: Path) -> None:
    """Remove what dead processes left: a draft is made under its entry's lock, which nobody alive holds then."""
    for draft in folder.parent.glob(f"{_DRAFT}*"):
        name = draft.name.removeprefix(_DRAFT).rpartition("-")[0]
        if not name:  # of a version that named no entry
            continue
        entry = folder.with_name(name)
        with suppress(UserError), nullcontext() if entry == folder else exclusive(_lock(entry), entry.name, wait=0.0):
            shutil.rmtree(draft, ignore_errors=True)


def _lock(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
