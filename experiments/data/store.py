"""Decoded data sets on disk: one process decodes, all map the result from then on.

An entry is a folder ``<cache>/decoded/<name>-<split>-<key>/`` with ``images.npy``, optionally ``labels.npy`` and
``attributes.npy``, and ``meta.json`` (names, source, checksums, size and time of the image file). Its key is a hash of
the source files' names, sizes and times and of the options, so that a changed source is decoded anew. It is written
under a temporary name and renamed, so that what exists is complete. What does not fit its checksum is decoded anew;
the images are hashed only where the file's size or time has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
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
        if folder.exists():
            announce(f"the decoded images in {folder} are damaged; they are decoded again")
        with exclusive(folder.with_name(f"{folder.name}.lock"), title, "set data.data_cache"):
            images = open_entry(folder, name, split)  # another process may have decoded it meanwhile
            if images is None:
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
        meta, pixels = record["meta"], folder / "images.npy"
        # Mode "c" (private writable) shares pages like "r" does, and torch takes only writable arrays.
        images = np.load(pixels, mmap_mode="c", allow_pickle=False)
        moved = [*_stamp(pixels)] != meta["stamp"]
        if (
            record["sha256"] != _digest(meta)
            or list(images.shape) != meta["shape"]
            or (moved and pixel_checksum(images) != meta["checksum"])
            or any(sha256(folder / f"{key}.npy") != checksum for key, checksum in meta["rows"].items())
        ):
            return None
        rows = {key: np.load(folder / f"{key}.npy", allow_pickle=False) for key in meta["rows"]}
        return ImageSet(
            images, rows.get("labels"), name, split, meta["source"], tuple(meta["class_names"]),
            rows.get("attributes"), tuple(meta["attribute_names"]), meta["comparable"], meta["checksum"],
        )  # fmt: skip
    except (OSError, ValueError, KeyError, EOFError, TypeError):
        return None


def _write_entry(folder: Path, recipe: Recipe, title: str, expected: str | None) -> None:
    """Decode into a folder of another name, then rename it."""
    try:
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"cannot write decoded data to {folder.parent} ({error}); set data.data_cache") from error
    pixels = draft / "images.npy"

    def allocate(count: int, size: int, channels: int) -> NDArray[np.uint8]:
        shape = (count, size, size, channels)
        return np.lib.format.open_memmap(pixels, mode="w+", dtype=np.uint8, shape=shape)

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
            "stamp": _stamp(pixels), "rows": rows, "class_names": rest.class_names,
            "attribute_names": rest.attribute_names, "comparable": recipe.comparable,
        }  # fmt: skip
        write_json(draft / "meta.json", {"meta": meta, "sha256": _digest(meta)})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(draft, folder)
    except OSError as error:
        raise UserError(f"{title}: {error}; free some space or set data.data_cache") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
