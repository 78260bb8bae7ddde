"""Shards: found in order, counted, and the broken one named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdrl.errors import UserError
from experiments.data import parquet


def test_rows_run_over_shards(tmp_path: Path, pixels: Callable[..., np.ndarray], write_parquet: Callable) -> None:
    for shard in (1, 0):
        write_parquet(tmp_path / f"data/train-0000{shard}-of-00002.parquet", pixels(3, 4), [shard] * 3)
    write_parquet(tmp_path / "data/validation-00000-of-00001.parquet", pixels(1, 4), [7])
    shards = parquet.shards(tmp_path, "train")
    assert parquet.count(shards) == 6
    assert parquet.labels(shards, "fine", "label").tolist() == [0, 0, 0, 1, 1, 1]
    assert [where.rsplit("-", 3)[-3:] for where, _ in parquet.images(shards)][3] == [
        "00001",
        "of",
        "00002.parquet, row 0",
    ]
    assert parquet.labels(parquet.shards(tmp_path, "test"), "label").tolist() == [7]


def test_missing_shard(tmp_path: Path, pixels: Callable[..., np.ndarray], write_parquet: Callable) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", pixels(1, 4), [0])
    with pytest.raises(UserError, match="1 of 2 shards"):
        parquet.shards(tmp_path, "train")


def test_no_shards(tmp_path: Path) -> None:
    assert parquet.shards(tmp_path, "train") == []


def test_damaged_or_wrong_shard_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"train\.parquet: not a readable Parquet"):
        parquet.count([path])
    pq.write_table(pa.table({"x": [1], "label": ["cat"]}), path)
    with pytest.raises(UserError, match="no column img or image, only x, label"):
        list(parquet.images([path]))
    with pytest.raises(UserError, match=r"column .label.: labels are no list of whole numbers"):
        parquet.labels([path], "label")


def test_row_without_bytes(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"img": [{"bytes": b"x"}, {"bytes": None}]}), path)
    with pytest.raises(UserError, match="row 1: no image bytes"):
        list(parquet.images([path]))
