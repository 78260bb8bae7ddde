"""SVHN from its .mat files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from cdrl.errors import UserError
from experiments.data import load


def test_images_and_digits(tmp_path: Path, pixels: Callable[..., np.ndarray]) -> None:
    images = pixels(3, 32)
    savemat(tmp_path / "test_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": np.array([[10], [1], [9]], np.uint8)})
    loaded = load("svhn", "test", tmp_path)
    assert loaded.labels is not None
    np.testing.assert_array_equal(loaded.images, images)
    assert loaded.labels.tolist() == [0, 1, 9]


def test_bad_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_32x32.mat").write_bytes(b"no")
    with pytest.raises(UserError, match=r"test_32x32\.mat: not SVHN"):
        load("svhn", "test", tmp_path)
    savemat(tmp_path / "test_32x32.mat", {"X": np.zeros((3, 3)), "y": np.zeros((3, 1))})
    with pytest.raises(UserError, match=r"test_32x32\.mat: X is float64"):
        load("svhn", "test", tmp_path)
    images = np.zeros((32, 32, 3, 2), np.uint8)
    for labels in ([[1.7], [2.0]], [[11], [1]], [[1, 2], [3, 4]], [[1]]):
        savemat(tmp_path / "test_32x32.mat", {"X": images, "y": np.array(labels)})
        with pytest.raises(UserError, match=r"test_32x32\.mat: .*labels"):
            load("svhn", "test", tmp_path)
