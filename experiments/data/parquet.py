"""Parquet shards with one compressed image per row, as image data sets are published on model hubs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdrl.errors import UserError
from cdrl.pictures import Transform
from experiments.data.decoding import Encoded, checked_labels, fill, whole_numbers
from experiments.data.store import Allocate, Decoded

_PREFIXES = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
_ROWS_AT_ONCE = 512


def shards(root: Path, split: str) -> list[Path]:
    """The split's shards in order, from ``root`` or its folder ``data``; empty if there are none.

    A file belongs to the split named before its first hyphen ("train-00000-of-00005.parquet").
    """
    for folder in (root, root / "data"):
        for prefix in _PREFIXES[split]:
            named = {*folder.glob(f"{prefix}-*.parquet"), *folder.glob(f"{prefix}.parquet")}
            paths = sorted(path for path in named if path.is_file())
            if paths:
                # A name such as train-00000-of-00005 promises how many shards there are.
                stem, separator, total = paths[0].stem.rpartition("-of-")
                if separator and total.isdigit() and len(paths) != int(total):
                    name = stem.split("-")[0]
                    raise UserError(f"{folder}: {len(paths)} of {int(total)} shards {name}-*; get the rest")
                return paths
    return []


def decode(
    paths: Sequence[Path], label_columns: Sequence[str], transform: Transform, size: int, class_names: tuple[str, ...],
    name: str, allocate: Allocate,
) -> Decoded:  # fmt: skip
    """All images, transformed to RGB of ``size``, and their labels; for the data set ``name``."""
    numbers = labels(paths, *label_columns)
    out = allocate(count(paths), size, 3)
    fill(out, images(paths), transform, f"decoding {name}")
    return Decoded(checked_labels(numbers, len(out), len(class_names), paths[0].parent), class_names)


def count(paths: Sequence[Path]) -> int:
    """Rows in all shards together."""
    return sum(_open(path).metadata.num_rows for path in paths)


def images(paths: Sequence[Path]) -> Iterator[Encoded]:
    """Every image of the shards, in order; the column is ``img`` or ``image``, bytes or a struct with ``bytes``."""
    for path in paths:
        file, column = _open(path), _column(path, ("img", "image"))
        with _named_errors(path, "damaged Parquet file"):
            batches = file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[column])
            for row, value in enumerate(value for batch in batches for value in batch.column(0).to_pylist()):
                data = value.get("bytes") if isinstance(value, dict) else value
                if not isinstance(data, bytes):
                    raise UserError(f"{path}, row {row}: no image bytes in column {column!r}; get the shard again")
                yield f"{path}, row {row}", data


def labels(paths: Sequence[Path], *columns: str) -> NDArray[np.int64]:
    """The first of ``columns`` that the shards have, concatenated."""
    parts = [np.zeros(0, dtype=np.int64)]
    for path in paths:
        file, column = _open(path), _column(path, columns)
        with _named_errors(path, f"column {column!r} is no list of labels"):
            values = file.read(columns=[column]).column(column).to_numpy()
        parts.append(whole_numbers(values, f"{path}, column {column!r}"))
    return np.concatenate(parts)


def _open(path: Path) -> Any:
    import pyarrow.parquet as pq

    with _named_errors(path, "not a readable Parquet file"):
        return pq.ParquetFile(path)


def _column(path: Path, wanted: Sequence[str]) -> str:
    """The first of the wanted columns that is there."""
    present = _open(path).schema_arrow.names
    if column := next((name for name in wanted if name in present), None):
        return column
    raise UserError(f"{path}: no column {' or '.join(wanted)}, only {', '.join(present)}; wrong file?")


@contextmanager
def _named_errors(path: Path, what: str) -> Iterator[None]:
    """Arrow's errors, most of them also a ValueError or TypeError, as `UserError` about the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: {what} ({error}); get it again") from error
