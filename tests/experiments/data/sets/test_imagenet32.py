"""ImageNet 32×32 from batches and from 64×64 images, and its stand-in."""

from __future__ import annotations

import io
import json
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cdrl.errors import UserError
from experiments.data import load

REAL = os.environ.get("CDRL_DATA_TINYIMAGENET")


def planes(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def shrunk(images: np.ndarray) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in images]
    )


def write_npz(path: Path, images: np.ndarray, labels: list[int]) -> None:
    np.savez(path, data=planes(images), labels=np.array(labels), mean=np.zeros(images[0].size))


def write_train(folder: Path, images: np.ndarray) -> None:
    for i in range(10):
        write_npz(folder / f"train_data_batch_{i + 1}.npz", images[i : i + 1], [i + 1])


@pytest.mark.parametrize("side", [32, 64])
def test_npz_batches(tmp_path: Path, pixels: Callable[..., np.ndarray], side: int) -> None:
    images = pixels(10, side)
    write_train(tmp_path, images)
    loaded = load("imagenet32", "train", tmp_path)
    assert loaded.labels is not None
    np.testing.assert_array_equal(loaded.images, images if side == 32 else shrunk(images))
    assert loaded.labels.tolist() == list(range(10))
    assert (loaded.classes, loaded.comparable) == (1000, True)


def test_pickled_batches(tmp_path: Path, pixels: Callable[..., np.ndarray]) -> None:
    images = pixels(3, 32)
    batch = {"data": planes(images), "labels": [1000, 1, 2], "mean": np.zeros(3072)}
    (tmp_path / "val_data").write_bytes(pickle.dumps(batch))
    loaded = load("imagenet32", "test", tmp_path)
    assert loaded.labels is not None
    np.testing.assert_array_equal(loaded.images, images)
    assert loaded.labels.tolist() == [999, 0, 1]


def test_class_list_orders_labels_by_wnid(tmp_path: Path, pixels: Callable[..., np.ndarray]) -> None:
    """The kit's number k is wnid n(2000 − k) here, so that sorting reverses the order."""
    lines = [f"n{2000 - number:08} {number} name" for number in range(1, 1001)]
    (tmp_path / "map_clsloc.txt").write_text("\n".join(lines))
    write_npz(tmp_path / "val_data.npz", pixels(2, 32), [1, 1000])
    loaded = load("imagenet32", "test", tmp_path)
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [999, 0]
    assert loaded.class_names[0] == "n00001000"


def test_bad_batches_are_named(tmp_path: Path, pixels: Callable[..., np.ndarray]) -> None:
    images = pixels(10, 32)
    write_train(tmp_path, images)
    (tmp_path / "train_data_batch_4.npz").write_bytes(b"PK no")
    with pytest.raises(UserError, match=r"train_data_batch_4\.npz: not a readable npz"):
        load("imagenet32", "train", tmp_path)
    write_npz(tmp_path / "train_data_batch_4.npz", images[:1], [0])
    with pytest.raises(UserError, match=r"train_data_batch_4\.npz: labels run from -1"):
        load("imagenet32", "train", tmp_path)
    write_npz(tmp_path / "train_data_batch_4.npz", pixels(1, 16), [1])
    with pytest.raises(UserError, match=r"train_data_batch_4\.npz: data is uint8 \(1, 768\)"):
        load("imagenet32", "train", tmp_path)
    np.savez(tmp_path / "train_data_batch_4.npz", data=np.array([{}], dtype=object), labels=np.array([1]))
    with pytest.raises(UserError, match=r"train_data_batch_4\.npz: not a readable npz"):
        load("imagenet32", "train", tmp_path)
    (tmp_path / "train_data_batch_4.npz").unlink()
    with pytest.raises(UserError, match=r"train_data_batch_4\.npz is missing"):
        load("imagenet32", "train", tmp_path)


@pytest.mark.parametrize(
    "labels",
    [["cat", "dog"], [[1], [2, 3]], [1.7, 2.0], np.array([1.7, 2.0]), [10**30, 1], {"a": 1}, np.array(["1", "2"])],
)
def test_labels_that_are_no_whole_numbers_are_refused(
    tmp_path: Path, pixels: Callable[..., np.ndarray], labels: Any
) -> None:
    (tmp_path / "val_data").write_bytes(pickle.dumps({"data": planes(pixels(2, 32)), "labels": labels}))
    with pytest.raises(UserError, match=r"val_data: (labels are no list of whole numbers|not a data batch)"):
        load("imagenet32", "test", tmp_path)
    if isinstance(labels, np.ndarray):
        (tmp_path / "val_data").unlink()
        np.savez(tmp_path / "val_data.npz", data=planes(pixels(2, 32)), labels=labels)
        with pytest.raises(UserError, match=r"val_data\.npz: labels are no list of whole numbers"):
            load("imagenet32", "test", tmp_path)


@pytest.mark.parametrize("data", [[1, 2], "pixels", None])
def test_pixels_that_are_no_array_are_refused(tmp_path: Path, data: Any) -> None:
    (tmp_path / "val_data").write_bytes(pickle.dumps({"data": data, "labels": [1, 2]}))
    with pytest.raises(UserError, match=r"val_data: data is a \w+ and no array"):
        load("imagenet32", "test", tmp_path)


def _npz(path: Path, shape: tuple[int, ...], blocks: int) -> None:
    """An archive whose ``data`` claims a shape and unpacks to so many megabytes of zeros."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("data.npy", "w") as member:
            member.write(header.getvalue())
            for _ in range(blocks):
                member.write(bytes(1 << 20))
        labels = io.BytesIO()
        np.save(labels, np.array([1, 2]))
        archive.writestr("labels.npy", labels.getvalue())


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [((2**50,), 1), ((2**38, 3072), 1), ((2**62, 2**62), 1), ((-1, 3072), 1), ((200 * 2**20 // 3072, 3072), 200)],
)
def test_what_an_archive_claims_is_checked_before_there_is_memory_for_it(
    tmp_path: Path, shape: tuple[int, ...], blocks: int
) -> None:
    """The last one keeps its word: 200 MB of zeros out of a file of 200 kB."""
    _npz(tmp_path / "val_data.npz", shape, blocks)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"val_data\.npz: (not a readable npz file|data is uint8)"):
        load("imagenet32", "test", tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6


def test_an_array_type_is_never_called(tmp_path: Path) -> None:
    """A pickle of a few bytes that asks numpy for an array of 2^50 of them."""
    shape = b"cnumpy\nndarray\n(I%d\ntR" % 2**50
    (tmp_path / "val_data").write_bytes(b"(dS'labels'\n" + shape + b"s.")
    with pytest.raises(UserError, match="val_data: not a data batch"):
        load("imagenet32", "test", tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"0": 3}', '{"0": []}', '{"x": ["n01"]}', "[" * 100_000, "\x00"])
def test_lists_of_another_shape_are_named(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable, text: str
) -> None:
    write_images(tmp_path / "train_64" / "n01", pixels(1, 64), ["a.JPEG"])
    write_images(tmp_path / "val_64", pixels(1, 64), ["v1.png"])
    index = tmp_path / "imagenet_class_index.json"
    index.write_text(text)
    with pytest.raises(UserError, match=r"imagenet_class_index\.json: "):
        load("imagenet32", "train", tmp_path)
    index.write_text(json.dumps({"0": ["n01", "fish"]}))
    (tmp_path / "ILSVRC2012_val_labels.json").write_text(text)
    with pytest.raises(UserError, match=r"ILSVRC2012_val_labels\.json: "):
        load("imagenet32", "test", tmp_path)


@pytest.mark.timeout(60)
def test_a_pipe_is_no_list(tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable) -> None:
    write_images(tmp_path / "train_64" / "n01", pixels(1, 64), ["a.JPEG"])
    os.mkfifo(tmp_path / "imagenet_class_index.json")
    with pytest.raises(UserError, match=r"imagenet_class_index\.json is missing"):
        load("imagenet32", "train", tmp_path)


def test_authors_layout(tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable) -> None:
    images = pixels(3, 64)
    write_images(tmp_path / "train_64" / "n02", images[:1], ["a.JPEG"])
    write_images(tmp_path / "train_64" / "n01", images[1:2], ["b.JPEG"])
    write_images(tmp_path / "val_64", images[2:], ["v1.png"])
    index = {"0": ["n02", "fish"], "1": ["n01", "bird"]}
    (tmp_path / "imagenet_class_index.json").write_text(json.dumps(index))
    train = load("imagenet32", "train", tmp_path)
    assert train.labels is not None
    assert (train.labels.tolist(), train.class_names) == ([1, 0], ("n02", "n01"))
    np.testing.assert_array_equal(train.images, shrunk(images[[1, 0]]))
    with pytest.raises(UserError, match=r"ILSVRC2012_val_labels\.json is missing"):
        load("imagenet32", "test", tmp_path)
    (tmp_path / "ILSVRC2012_val_labels.json").write_text(json.dumps({"v1.JPEG": "n01"}))
    test = load("imagenet32", "test", tmp_path)
    assert test.labels is not None
    assert test.labels.tolist() == [1]


def test_class_folders_must_be_all_there(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable
) -> None:
    write_images(tmp_path / "train" / "n01", pixels(1, 64), ["a.png"])
    with pytest.raises(UserError, match="1 class folders, imagenet32 has 1000"):
        load("imagenet32", "train", tmp_path)


def test_class_folders_are_those_of_training(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable
) -> None:
    write_images(tmp_path / "train" / "n01", pixels(1, 64), ["a.png"])
    write_images(tmp_path / "val" / "n02", pixels(1, 64), ["a.png"])
    with pytest.raises(UserError, match=r"n01 is a class of .*train or .*val alone"):
        load("imagenet32", "test", tmp_path)


def test_stand_in_from_parquet(tmp_path: Path, pixels: Callable[..., np.ndarray], write_parquet: Callable) -> None:
    images = pixels(2, 64)
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", images, [5, 199])
    (tmp_path / "classes.json").write_text(json.dumps({"wnids_sorted": [f"n{i:03}" for i in range(200)]}))
    loaded = load("tinyimagenet32", "test", tmp_path)
    assert loaded.labels is not None
    assert not loaded.comparable
    np.testing.assert_array_equal(loaded.images, shrunk(images))
    assert [loaded.class_names[label] for label in loaded.labels] == ["n005", "n199"]


def test_stand_in_of_a_wrong_size(tmp_path: Path, pixels: Callable[..., np.ndarray], write_parquet: Callable) -> None:
    write_parquet(tmp_path / "train.parquet", pixels(1, 32), [0])
    with pytest.raises(UserError, match=r"train\.parquet, row 0: image is 32x32, expected 64x64"):
        load("tinyimagenet32", "train", tmp_path)


def test_stand_in_as_published(tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable) -> None:
    image = pixels(1, 64)
    for i in range(200):
        write_images(tmp_path / "tiny-imagenet-200" / "train" / f"n{i:03}" / "images", image, ["a.JPEG"])
    validation = tmp_path / "tiny-imagenet-200" / "val"
    write_images(validation / "images", image, ["val_0.JPEG"])
    assert len(load("tinyimagenet32", "train", tmp_path)) == 200
    with pytest.raises(UserError, match=r"val_annotations\.txt is missing"):
        load("tinyimagenet32", "test", tmp_path)
    (validation / "val_annotations.txt").write_text("val_0.JPEG\tn007\t0\t0\t1\t1\n")
    loaded = load("tinyimagenet32", "test", tmp_path)
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [7]


@pytest.mark.skipif(not REAL, reason="CDRL_DATA_TINYIMAGENET names no folder")
def test_real_stand_in() -> None:
    loaded = load("tinyimagenet32", "test", REAL)
    assert loaded.labels is not None
    assert np.bincount(loaded.labels).tolist() == [10] * 200
    assert loaded.image_size == 32
