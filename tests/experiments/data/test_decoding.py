"""Decoding: order kept, and the bad image named."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cdrl.errors import UserError
from cdrl.pictures import photograph, picture
from experiments.data.decoding import (
    bilinear,
    by_class,
    checked_labels,
    encoded,
    exactly,
    fill,
    images_below,
    images_in,
)


def test_rows_keep_their_order(tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable) -> None:
    images = pixels(1100, 4)  # more than are in flight at once
    write_images(tmp_path, images, [f"{row:04}.png" for row in range(1100)])
    out = np.zeros_like(images)
    fill(out, encoded(images_below(tmp_path)), exactly(4), "test")
    np.testing.assert_array_equal(out, images)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * 50])
def test_corrupt_image_is_named(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable, damage: Callable[[bytes], bytes]
) -> None:
    write_images(tmp_path, pixels(3, 32), ["a.png", "b.png", "c.png"])
    (tmp_path / "b.png").write_bytes(damage((tmp_path / "b.png").read_bytes()))
    with pytest.raises(UserError, match=r"b\.png: not a readable image"):
        fill(np.zeros((3, 32, 32, 3), np.uint8), encoded(images_below(tmp_path)), exactly(32), "test")


def test_wrong_size_is_named(tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable) -> None:
    write_images(tmp_path, pixels(1, 8, 9), ["a.png"])
    with pytest.raises(UserError, match=r"a\.png: image is 9x8, expected 8x8"):
        fill(np.zeros((1, 8, 8, 3), np.uint8), encoded([tmp_path / "a.png"]), exactly(8), "test")


@pytest.mark.parametrize("announced", [1, 3])
def test_number_of_images_is_checked(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable, announced: int
) -> None:
    write_images(tmp_path, pixels(2, 4), ["a.png", "b.png"])
    with pytest.raises(UserError, match="announced"):
        fill(np.zeros((announced, 4, 4, 3), np.uint8), encoded(images_below(tmp_path)), exactly(4), "test")


def test_bilinear_is_torchvisions_resize(pixels: Callable[..., np.ndarray]) -> None:
    from torchvision.transforms import Resize

    image = Image.fromarray(pixels(1, 64)[0])
    np.testing.assert_array_equal(np.asarray(bilinear(64, 32)(image)), np.asarray(Resize(32)(image)))


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 300], [32896, 65535]], np.uint16)).save(path)
    assert np.asarray(picture("deep", path, "L", exactly(2))).tolist() == [[0, 1], [128, 255]]


@pytest.mark.parametrize("values", [np.full((2, 2), 0.5, np.float32), np.full((2, 2), 70000, np.int32)])
def test_pixels_of_no_known_range_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    path = tmp_path / "deep.tiff"
    Image.fromarray(values).save(path)
    with pytest.raises(UserError, match=r"deep\.tiff: .*8 bits per channel"):
        picture(str(path), path, "L", exactly(2))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_show_white(tmp_path: Path, mode: str) -> None:
    pixels = np.full((2, 2, 4), 100, np.uint8)
    pixels[..., 3] = [[0, 255], [255, 0]]
    path = tmp_path / "hole.png"
    Image.fromarray(pixels).convert(mode).save(path)
    shown = np.asarray(picture("hole", path, "RGB", exactly(2)))
    assert shown[..., 0].tolist() == [[255, 100], [100, 255]]


def test_photographs_are_upright_and_square_in_every_mode(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise is due
    grey = np.zeros((4, 6), np.uint8)
    grey[:2] = 255
    deep, clear = grey.astype(np.uint16) * 257, np.full((4, 6, 4), 255, np.uint8)
    clear[..., :3] = grey[..., None]
    clear[0, 0, 3] = 0
    for number, pixels in enumerate((grey, deep, clear)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png", exif=exif)
        shown = np.asarray(picture("x", tmp_path / f"{number}.png", "L", photograph(4)))
        assert (shown[:, :2] == 0).all()
        assert (shown[:, 2:] == 255).all()


def test_labels_are_checked() -> None:
    labels = np.array([0, 9])
    assert checked_labels(labels, 2, 10, "x").tolist() == [0, 9]
    for bad, count, message in ((labels, 3, "2 labels for 3"), (labels, 2, "0 to 9"), (labels - 1, 2, "-1 to 8")):
        with pytest.raises(UserError, match=f"x: .*{message}"):
            checked_labels(bad, count, 9, "x")


@pytest.mark.parametrize("labels", [[3, 1], (3, 1), np.array([3, 1], np.uint8), np.array([[3], [1]]), [np.int64(3), 1]])
def test_whole_numbers_of_every_kind_are_labels(labels: Any) -> None:
    checked = checked_labels(labels, 2, 10, "x")
    assert (checked.tolist(), checked.dtype) == ([3, 1], np.int64)


NESTED: Any = 0
for _ in range(40):
    NESTED = [NESTED] * 40  # few objects, and 40^40 numbers to numpy

WRONG_LABELS: list[Any] = [
    ["cat", "dog"], [[1], [2, 3]], [1.7, 1.0], [10**30, 1], {"a": 1, "b": 2}, None, "12", [True, False], NESTED, 7,
    np.array([1.7, 1.0]), np.array(["cat", "dog"]), np.array([True, False]), np.array([2**64 - 1, 1], np.uint64),
    np.zeros((2, 2), np.int64), np.array(1), np.array([1, None]),
]  # fmt: skip


@pytest.mark.parametrize("labels", WRONG_LABELS, ids=lambda labels: type(labels).__name__)
def test_what_is_no_list_of_whole_numbers_is_refused(labels: Any) -> None:
    with pytest.raises(UserError, match="x: labels are no list of whole numbers"):
        checked_labels(labels, 2, 10, "x")


@pytest.mark.timeout(60)
def test_what_is_no_file_is_named_and_not_waited_for(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable
) -> None:
    write_images(tmp_path, pixels(1, 8), ["a.png"])
    os.mkfifo(tmp_path / "notes")  # by its name it is no image
    others: list[Path] = []
    assert images_below(tmp_path, others=others) == [tmp_path / "a.png"]
    assert others == [tmp_path / "notes"]
    with socket.socket(socket.AF_UNIX) as listener:
        before = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket must be short
        listener.bind("socket.png")
        os.chdir(before)
        with pytest.raises(UserError, match=r"socket\.png is a pipe, socket or device"):
            images_in(tmp_path)
    (tmp_path / "socket.png").unlink()
    os.mkfifo(tmp_path / "pipe.png")
    for look in (images_in, images_below, lambda folder: list(by_class([folder]))):
        with pytest.raises(UserError, match=r"pipe\.png is a pipe, socket or device"):
            look(tmp_path)


@pytest.mark.parametrize("name", ["x.png", "x", "x.txt"])
def test_links_that_lead_nowhere_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match=rf"{name} is a link to a file that is not there"):
        images_below(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "y")
    (tmp_path / "y").symlink_to(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} is a link in a loop of links"):
        images_below(tmp_path)


@pytest.mark.timeout(60)
def test_folders_that_link_each_other_are_read_once(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable
) -> None:
    """Twelve folders, each with links to all: there are more ways through them than could ever be walked."""
    for number in range(12):
        write_images(tmp_path / "set" / f"{number:02}", pixels(1, 8), ["a.png"])
        for other in range(12):
            (tmp_path / "set" / f"{number:02}" / f"to{other:02}").symlink_to(tmp_path / "set" / f"{other:02}")
    assert len({path.resolve() for path in images_below(tmp_path)}) == len(images_below(tmp_path)) == 12


def test_a_link_back_to_the_folder_of_classes_brings_no_other_class(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable
) -> None:
    write_images(tmp_path / "elsewhere", pixels(1, 8), ["a.png"])
    write_images(tmp_path / "set" / "dogs", pixels(1, 8), ["a.png"])
    (tmp_path / "set" / "cats").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "set")
    found = list(by_class([tmp_path / "set" / "cats", tmp_path / "set" / "dogs"]))
    assert [(label, path.parent.name) for label, path in found] == [(0, "cats"), (1, "dogs")]


def test_a_folder_named_by_dots(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, pixels(1, 8), ["a.png"])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert len(images_below(Path(".."))) == 1
    monkeypatch.chdir(tmp_path)
    assert len(images_below(Path("."))) == 1
