"""The inventory: every data set and split, where it belongs, and whether it is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.data.doctor import inventory
from experiments.data.registry import entry, load, names


def test_one_record_a_split() -> None:
    records = {record.name: record for record in inventory()}
    assert set(records) == {f"{name}/{split}" for name in names() for split in entry(name).splits}
    assert all(record.needed_for for record in records.values())
    assert records["digits/test"].state == "ready"
    assert not records["svhn/test"].present
    assert "test_32x32.mat" in records["svhn/test"].remedy
    assert records["cifar10/train"].sha256.startswith("47af8b02")
    assert "download" in records["cifar10/train"].remedy


def test_found_then_ready(
    tmp_path: Path,
    pixels: Callable[..., np.ndarray],
    write_images: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_images(tmp_path, pixels(4, 8), [f"{i}.png" for i in range(4)])
    monkeypatch.setenv("CDRL_DATA_FOLDER", str(tmp_path))

    def state() -> tuple[str, str]:
        record = next(record for record in inventory() if record.name == "folder/train")
        assert record.where == str(tmp_path)
        return record.state, record.sha256

    assert state() == ("found", "")
    images = load("folder", "train")
    assert state() == ("ready", images.checksum)
