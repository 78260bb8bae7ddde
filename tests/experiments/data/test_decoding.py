"""Decoding: order kept, and the bad image named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdrl.errors import UserError
from cdrl.pictures import photograph, picture
from experiments.data.decoding import bilinear, checked_labels, encoded, exactly, fill, images_below


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
