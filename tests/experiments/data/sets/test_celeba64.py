"""CelebA in torchvision's layout: partition, attributes, crop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdrl.errors import UserError
from experiments.data import load


@pytest.fixture
def celeba(tmp_path: Path, pixels: Callable[..., np.ndarray], write_images: Callable) -> Path:
    """Four images, PNG inside despite their names; the last two are not in the training part."""
    folder = tmp_path / "celeba"
    names = [f"{i:06}.jpg" for i in range(1, 5)]
    write_images(folder / "img_align_celeba", pixels(4, 218, 178), names)
    parts = zip(names, (0, 0, 1, 2), strict=True)
    (folder / "list_eval_partition.txt").write_text("".join(f"{name} {part}\n" for name, part in parts))
    rows = zip(names, ("1 -1", "-1  1", "1 1", "-1 -1"), strict=True)
    lines = ["4", "Male Smiling", *(f"{name} {values}" for name, values in rows)]
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines))
    return tmp_path


def test_split_crop_and_attributes(celeba: Path, pixels: Callable[..., np.ndarray]) -> None:
    loaded = load("celeba64", "train", celeba)
    assert loaded.attributes is not None
    assert loaded.labels is None
    assert loaded.attribute_names == ("Male", "Smiling")
    assert loaded.attributes.tolist() == [[True, False], [False, True]]
    crop = Image.fromarray(pixels(4, 218, 178)[1][39:179, 19:159])
    np.testing.assert_array_equal(loaded.images[1], np.asarray(crop.resize((64, 64), Image.Resampling.BILINEAR)))


def test_other_crop_is_another_set(celeba: Path) -> None:
    usual, wide = load("celeba64", "test", celeba), load("celeba64", "test", celeba, crop=178)
    assert usual.checksum != wide.checksum
    with pytest.raises(UserError, match="crop 0"):
        load("celeba64", "test", celeba, crop=0)


@pytest.mark.parametrize("name", ["list_attr_celeba.txt", "list_eval_partition.txt"])
def test_missing_list_is_named(celeba: Path, name: str) -> None:
    (celeba / "celeba" / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        load("celeba64", "train", celeba)


def test_bad_content_is_named(celeba: Path, pixels: Callable[..., np.ndarray], write_images: Callable) -> None:
    folder = celeba / "celeba" / "img_align_celeba"
    write_images(folder, pixels(1, 64), ["000002.jpg"])
    with pytest.raises(UserError, match=r"000002\.jpg: image is 64x64, expected the aligned 178x218"):
        load("celeba64", "train", celeba)
    (folder / "000002.jpg").unlink()
    with pytest.raises(UserError, match=r"no picture .*000002\.jpg"):
        load("celeba64", "train", celeba)
    (celeba / "celeba" / "list_attr_celeba.txt").write_text("1\nMale Smiling\n000001.jpg 1 -1\n")
    with pytest.raises(UserError, match=r"list_attr_celeba\.txt: no attributes for 000002\.jpg"):
        load("celeba64", "train", celeba)
    (celeba / "celeba" / "list_attr_celeba.txt").write_text("1\nMale Smiling\n000001.jpg 1 0\n")
    with pytest.raises(UserError, match=r"line of 000001\.jpg"):
        load("celeba64", "train", celeba)
