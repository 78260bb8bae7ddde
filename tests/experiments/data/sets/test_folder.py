"""A user's own folder: flat, by class, with and without its own test images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cdrl.errors import UserError
from experiments.data import load


def test_flat_folder_is_split_without_overlap(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable
) -> None:
    images = pixels(20, 8)
    write_images(tmp_path, images, [f"{i:02}.png" for i in range(20)])
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    train, test = (load("folder", split, tmp_path, image_size=8) for split in ("train", "test"))
    assert (len(train), len(test), train.labels, train.classes) == (18, 2, None, 0)
    both = {image.tobytes() for part in (train, test) for image in part.images}
    assert both == {image.tobytes() for image in images}


def test_class_folders_become_labels(tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable) -> None:
    images = pixels(5, 8)
    write_images(tmp_path / "train" / "dogs", images[:1], ["a.png"])
    write_images(tmp_path / "train" / "cats" / "more", images[1:3], ["a.png", "b.png"])
    write_images(tmp_path / "val" / "cats", images[3:4], ["a.png"])
    write_images(tmp_path / "val" / "dogs", images[4:], ["a.png"])
    train, test = (load("folder", split, tmp_path, image_size=8) for split in ("train", "test"))
    assert train.labels is not None
    assert (train.class_names, train.labels.tolist()) == (("cats", "dogs"), [0, 0, 1])
    np.testing.assert_array_equal(train.images, images[[1, 2, 0]])
    np.testing.assert_array_equal(test.images, images[3:])


def test_central_square_and_grey(tmp_path: Path) -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 10:30] = 200
    for name in "abcd":
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    loaded = load("folder", "train", tmp_path, image_size=4, channels=1)
    assert loaded.images.shape == (2, 4, 4, 1)
    assert (loaded.images == 200).all()


def test_orientation_of_photographs_is_respected(tmp_path: Path) -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was held upside down
    for name in "abcd":
        Image.fromarray(image).save(tmp_path / f"{name}.png", exif=exif)
    loaded = load("folder", "train", tmp_path, image_size=16)
    assert (loaded.images[0, :8] == 0).all()


def test_held_out_images_stay_when_others_come(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable
) -> None:
    write_images(tmp_path, pixels(20, 8), [f"{i:02}.png" for i in range(20)])
    before = load("folder", "test", tmp_path, image_size=8, held_out=0.5)
    write_images(tmp_path, pixels(1, 8), ["new.png"])
    after = load("folder", "test", tmp_path, image_size=8, held_out=0.5)
    kept = {row.tobytes() for row in before.images} & {row.tobytes() for row in after.images}
    assert len(kept) >= 9


def test_pictures_beside_class_folders_are_refused(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable
) -> None:
    write_images(tmp_path, pixels(4, 8), ["stray.png", "other.png", "x.png", "y.png"])
    (tmp_path / "notes").mkdir()
    assert load("folder", "train", tmp_path, image_size=8).classes == 0, "a folder without pictures is no class"
    write_images(tmp_path / "cats", pixels(2, 8), ["a.png", "b.png"])
    with pytest.raises(UserError, match=r"other\.png is in no class folder but .*cats.a\.png is"):
        load("folder", "train", tmp_path, image_size=8)


def test_a_class_called_train_is_a_class(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable
) -> None:
    for name in ("bus", "train"):
        write_images(tmp_path / name, pixels(3, 8), ["a.png", "b.png", "c.png"])
    parts = [load("folder", split, tmp_path, image_size=8) for split in ("train", "test")]
    assert sum(map(len, parts)) == 6
    assert parts[0].class_names == ("bus", "train")
    write_images(tmp_path / "train" / "slow", pixels(1, 8), ["a.png"])
    with pytest.raises(UserError, match=r"train holds folders, and beside it bus/ holds images"):
        load("folder", "train", tmp_path, image_size=8)


def test_three_classes_of_which_one_is_called_train(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable
) -> None:
    for name in ("bus", "car", "train"):
        write_images(tmp_path / name, pixels(3, 8), ["a.png", "b.png", "c.png"])
    parts = [load("folder", split, tmp_path, image_size=8) for split in ("train", "test")]
    assert sum(map(len, parts)) == 9
    assert all(part.class_names == ("bus", "car", "train") for part in parts)
    write_images(tmp_path / "test", pixels(3, 8), ["a.png", "b.png", "c.png"])
    with pytest.raises(UserError, match=r"bus holds images beside test/ and train/; move it away, or rename"):
        load("folder", "train", tmp_path, image_size=8)


def test_nothing_but_splits_lies_beside_a_split(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "val", pixels(2, 8), ["a.png", "b.png"])
    with pytest.raises(UserError, match=r"holds val/ and no train/"):
        load("folder", "test", tmp_path, image_size=8)
    write_images(tmp_path / "train", pixels(5, 8), [f"{name}.png" for name in "abcde"])
    (tmp_path / "notes").mkdir()
    assert [len(load("folder", split, tmp_path, image_size=8)) for split in ("train", "test")] == [5, 2]
    write_images(tmp_path / "test", pixels(3, 8), ["a.png", "b.png", "c.png"])
    assert [len(load("folder", split, tmp_path, image_size=4)) for split in ("train", "test")] == [5, 3]
    assert capsys.readouterr().err.count("val/ is left out, test/ is what is tested on") == 1
    write_images(tmp_path, pixels(1, 8), ["stray.png"])
    with pytest.raises(UserError, match=r"stray\.png lies beside test/, in no split"):
        load("folder", "train", tmp_path, image_size=8)


def test_classes_have_the_numbers_of_training(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable
) -> None:
    for name in ("bus", "car", "tram"):
        write_images(tmp_path / "train" / name, pixels(2, 8), ["a.png", "b.png"])
    for name in ("bus", "tram"):
        write_images(tmp_path / "test" / name, pixels(2, 8), ["a.png", "b.png"])
    test = load("folder", "test", tmp_path, image_size=8)
    assert test.labels is not None
    assert (test.labels.tolist(), test.class_names) == ([0, 0, 2, 2], ("bus", "car", "tram"))
    write_images(tmp_path / "train" / "boat", pixels(1, 8), ["a.png"])
    test = load("folder", "test", tmp_path, image_size=8)
    assert test.labels is not None
    assert test.labels.tolist() == [1, 1, 3, 3], "what is kept of test/ belongs to what train/ held"
    write_images(tmp_path / "test" / "van", pixels(1, 8), ["a.png"])
    for split in ("train", "test"):
        with pytest.raises(UserError, match=r"test/van is a class that .*train lacks"):
            load("folder", split, tmp_path, image_size=8)


def test_splits_are_arranged_alike(tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable) -> None:
    write_images(tmp_path / "train", pixels(2, 8), ["a.png", "b.png"])
    write_images(tmp_path / "test" / "bus", pixels(2, 8), ["a.png", "b.png"])
    with pytest.raises(UserError, match=r"test holds class folders and .*train images without"):
        load("folder", "train", tmp_path, image_size=8)


def test_files_that_are_passed_over_are_said_once(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "cats", pixels(4, 8), ["a.png", "b.png", "c.png", "d.heic"])
    write_images(tmp_path / "dogs" / "more", pixels(2, 8), ["a.png", "b.avif"])
    (tmp_path / "list.txt").touch()
    for split in ("train", "test", "train", "test"):
        load("folder", split, tmp_path, image_size=8)
    said = [line for line in capsys.readouterr().err.splitlines() if "passed over" in line]
    assert said == [f"folder {tmp_path}: 3 files passed over, no image by name, such as list.txt"]


@pytest.mark.parametrize("count", [4, 5, 14, 15])
def test_a_small_folder_can_be_scored(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable, count: int
) -> None:
    """The row of real images compares those held out with the others."""
    write_images(tmp_path, pixels(count, 8), [f"{i:02}.png" for i in range(count)])
    train, test = (load("folder", split, tmp_path, image_size=8) for split in ("train", "test"))
    assert (len(train), len(test)) == (count - 2, 2)


@pytest.mark.parametrize("name", ["train", "test"])
def test_what_cannot_be_scored_is_said_before_training(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable, name: str
) -> None:
    for split in ("train", "test"):
        names = ["a.png"] if split == name else ["a.png", "b.png"]
        write_images(tmp_path / split, pixels(len(names), 8), names)
    with pytest.raises(UserError, match=f"{name} holds one image only; give at least 2"):
        load("folder", "train", tmp_path, image_size=8)


def test_links_are_followed_and_broken_ones_named(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable
) -> None:
    write_images(tmp_path / "elsewhere", pixels(3, 8), ["a.png", "b.png", "c.png"])
    write_images(tmp_path / "set" / "cats", pixels(2, 8), ["a.png", "b.png"])
    (tmp_path / "set" / "cats" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "cats" / "again").symlink_to(tmp_path / "set")
    assert sum(len(load("folder", split, tmp_path / "set", image_size=8)) for split in ("train", "test")) == 5
    for folder in (tmp_path / "set" / "cats", tmp_path / "elsewhere"):
        (folder / "x.png").symlink_to(tmp_path / "nothing.png")
        root = tmp_path / "set" if folder.name == "cats" else folder
        with pytest.raises(UserError, match=rf"{folder}/x\.png is a link to a file that is not there"):
            load("folder", "train", root, image_size=8)


def test_a_name_of_another_alphabet(tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable) -> None:
    write_images(tmp_path / "bus", pixels(4, 8), ["a.png", "b.png", "c.png", "d.png"])
    (tmp_path / "bus" / "b.png").rename(tmp_path / "bus" / os.fsdecode(b"Mu\xf1oz.png"))
    (tmp_path / "bus").rename(tmp_path / os.fsdecode(b"a\xf1o"))
    parts = [load("folder", split, tmp_path, image_size=8) for split in ("train", "test")]
    assert [len(part) for part in parts] == [2, 2]
    assert parts[0].class_names == ("a\\xf1o",), "can be written anywhere"


def test_bad_folders_are_explained(tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable) -> None:
    write_images(tmp_path / "one", pixels(3, 8), ["a.png", "c.png", "d.png"])
    with pytest.raises(UserError, match="one holds 3 images; give at least 4"):
        load("folder", "train", tmp_path / "one")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: a class folder without images"):
        load("folder", "train", tmp_path)
    write_images(tmp_path / "one", pixels(1, 8), ["b.png"])
    (tmp_path / "one" / "b.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"b\.png: not a readable image"):
        [load("folder", split, tmp_path / "one") for split in ("train", "test")]


WRONG_OPTIONS: dict[str, list[Any]] = {
    "image_size": [0, 10**9, "large", 32.5, None, [32]], "channels": [2, True], "held_out": [1.0, "a tenth"],
}  # fmt: skip


@pytest.mark.parametrize("option", [{name: value} for name, values in WRONG_OPTIONS.items() for value in values])
def test_options_are_checked(tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(option))):
        load("folder", "train", tmp_path, **option)
