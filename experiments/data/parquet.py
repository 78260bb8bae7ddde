"""Parquet shards with one compressed image per row, as image data sets are published on model hubs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdrl.errors import UserError
from experiments.data.decoding import Encoded

_PREFIXES = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
_IMAGE_COLUMNS = ("img", "image")
_ROWS_AT_ONCE = 512


def shards(root: Path, split: str) -> list[Path]:
    """The split's shards in order, from ``root`` or its folder ``data``; empty if there are none.

    A file belongs to the split named before its first hyphen ("train-00000-of-00005.parquet").
    """
    for folder in (root, root / "data"):
        for prefix in _PREFIXES[split]:
            paths = sorted({*folder.glob(f"{prefix}-*.parquet"), *folder.glob(f"{prefix}.parquet")})
            if paths:
                # A name such as train-00000-of-00005 promises how many shards there are.
                stem, separator, total = paths[0].stem.rpartition("-of-")
                if separator and total.isdigit() and len(paths) != int(total):
                    name = stem.split("-")[0]
                    raise UserError(f"{folder}: {len(paths)} of {int(total)} shards {name}-*; get the rest")
                return paths
    return []


def count(paths: Sequence[Path]) -> int:
    """Rows in all shards together."""
    return sum(_open(path).metadata.num_rows for path in paths)


def images(paths: Sequence[Path]) -> Iterator[Encoded]:
    """Every image of the shards, in order; the column is ``img`` or ``image``, bytes or a struct with ``bytes``."""
    for path in paths:
        column = _column(path, _IMAGE_COLUMNS)
        for row, value in enumerate(_values(path, column)):
            data = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(data, bytes):
                raise UserError(f"{path}, row {row}: no image bytes in column {column!r}; get the shard again")
            yield f"{path}, row {row}", data


def labels(paths: Sequence[Path], *columns: str) -> NDArray[np.int64]:
    """The first of ``columns`` that the shards have, concatenated."""
    import pyarrow as pa

    parts = []
    for path in paths:
        column = _column(path, columns)
        try:
            values = _open(path).read(columns=[column]).column(column).to_numpy()
            parts.append(np.asarray(values, dtype=np.int64))
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: column {column!r} is no list of labels ({error}); get it again") from error
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); get it again") from error


def _values(path: Path, column: str) -> Iterator[Any]:
    import pyarrow as pa

    try:
        for batch in _open(path).iter_batches(batch_size=_ROWS_AT_ONCE, columns=[column]):
            yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged Parquet file ({error}); get it again") from error


def _column(path: Path, wanted: Sequence[str]) -> str:
    present = _open(path).schema_arrow.names
    for name in wanted:
        if name in present:
            return name
    raise UserError(f"{path}: no column {' or '.join(wanted)}, only {', '.join(present)}; wrong file?")
