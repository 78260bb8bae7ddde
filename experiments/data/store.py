"""Decoded data sets on disk: decode once, verify, map from then on.

An entry is a folder ``<cache>/decoded/<name>-<split>-<key>/`` with ``images.npy``, optionally ``labels.npy`` and
``attributes.npy``, and ``meta.json`` (names, source, the pixels' SHA-256, size and time of the image file). Its key is
a hash of the source files' names, sizes and times and of the options, so that a changed source is decoded anew. It is
written under a temporary name and renamed, so that what exists is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdrl.errors import UserError
from experiments.data.images import ImageSet, pixel_checksum

Allocate = Callable[[int, int, int], NDArray[np.uint8]]
"""``(count, size, channels)`` -> a zeroed uint8 NHWC array to fill."""

_VERSION = 1  # of decoding: raise it when the same files would give other arrays


@dataclass(frozen=True)
class Decoded:
    """What decoding yields beside the pixels; fields as in `ImageSet`."""

    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    attributes: NDArray[np.bool_] | None = None
    attribute_names: tuple[str, ...] = ()
    source: str = ""  # replaces the recipe's, where only decoding finds out


@dataclass(frozen=True)
class Recipe:
    """A data set that was found but not decoded.

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
    """Decode the recipe, or map what an earlier call decoded.

    Raises:
        UserError: if the pixels' hash is not ``expected``, or the cache cannot be written.
    """
    folder = entry_folder(recipe, cache, name, split)
    kept = open_entry(folder, name, split)
    if kept is None:
        _write_entry(folder, recipe, f"data set {name} ({split})", expected)
        kept = open_entry(folder, name, split)
    if kept is None:
        raise UserError(f"decoded data in {folder} cannot be read back; delete that folder and try again")
    verify(kept.checksum, expected, f"data set {name} ({split}), {recipe.source}")
    return kept


def entry_folder(recipe: Recipe, cache: Path, name: str, split: str) -> Path:
    """Where the decoded recipe belongs."""
    facts = [(str(path.absolute()), *_stamp(path)) for path in recipe.files]
    text = json.dumps([_VERSION, facts, sorted(recipe.options.items())], default=str)
    return cache / "decoded" / f"{name}-{split}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def verify(actual: str, expected: str | None, what: str) -> None:
    """Raise `UserError` unless the hash is the expected one (None accepts any)."""
    if expected is not None and actual != expected:
        raise UserError(
            f"{what}: pixels hash to {actual}, the published data to {expected}; "
            "the copy is damaged or not the original, get it again"
        )


def open_entry(folder: Path, name: str, split: str) -> ImageSet | None:
    """Map a kept entry; None if there is none or it is not what was written."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        pixels = folder / "images.npy"
        # Mode "c" (private writable) shares pages like "r" does, and torch takes only writable arrays.
        images = np.load(pixels, mmap_mode="c", allow_pickle=False)
        rows = {key: _optional(folder / f"{key}.npy") for key in ("labels", "attributes")}
        if [*_stamp(pixels)] != meta["stamp"] and pixel_checksum(images) != meta["checksum"]:
            return None
        return ImageSet(
            images=images,
            name=name,
            split=split,
            source=meta["source"],
            class_names=tuple(meta["class_names"]),
            attribute_names=tuple(meta["attribute_names"]),
            comparable=meta["comparable"],
            known_checksum=meta["checksum"],
            **rows,
        )
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _write_entry(folder: Path, recipe: Recipe, title: str, expected: str | None) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"cannot write decoded data to {folder.parent} ({error}); set data.data_cache") from error
    try:
        _decode_into(draft, recipe, title, expected)
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another process was first: its entry is the same
            os.replace(draft, folder)
    except OSError as error:
        raise UserError(f"{title}: {error}; free some space or set data.data_cache") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _decode_into(draft: Path, recipe: Recipe, title: str, expected: str | None) -> None:
    path = draft / "images.npy"

    def allocate(count: int, size: int, channels: int) -> NDArray[np.uint8]:
        shape = (count, size, size, channels)
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)

    rest = recipe.decode(allocate)
    images = np.load(path, mmap_mode="r")
    checksum = pixel_checksum(images)
    verify(checksum, expected, f"{title}, {recipe.source}")
    if rest.labels is not None:
        np.save(draft / "labels.npy", rest.labels.astype(np.int64))
    if rest.attributes is not None:
        np.save(draft / "attributes.npy", rest.attributes.astype(np.bool_))
    meta = {
        "source": rest.source or recipe.source,
        "checksum": checksum,
        "stamp": [*_stamp(path)],
        "class_names": rest.class_names,
        "attribute_names": rest.attribute_names,
        "comparable": recipe.comparable,
    }
    (draft / "meta.json").write_text(json.dumps(meta, indent=1))


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _optional(path: Path) -> NDArray[Any] | None:
    return np.load(path, allow_pickle=False) if path.exists() else None
