"""Stored pixels and networks' images: an exact pair, half to even. Bounds of what is read."""

from __future__ import annotations

import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl.errors import UserError
from cdrl.pictures import mask_from_picture, photograph, picture, scale, to_float, to_uint8, upright


def test_every_value_comes_back() -> None:
    stored = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    images = to_float(stored)
    assert images.shape == (1, 1, 16, 16)
    assert (float(images.min()), float(images.max())) == (-1.0, 1.0)
    assert torch.equal(to_uint8(images), stored)


def test_layout_changes_between_nhwc_and_nchw() -> None:
    stored = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3)
    images = to_float(stored)
    assert images.shape == (2, 3, 2, 3)
    assert images[1, 2, 0, 1] == scale(torch.tensor(stored[1, 0, 1, 2]))
    np.testing.assert_array_equal(to_uint8(images).numpy(), stored)


def test_halves_go_to_even_and_outside_is_clamped() -> None:
    """(v + 1) · 127.5 is exactly 127.5 at v = 0."""
    images = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 1, 5)
    assert to_uint8(images).flatten().tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(torch.full((1, 1, 1, 1), 2 / 255)).item() == 128  # 128.5


def test_scale_leaves_its_input_alone() -> None:
    stored = torch.tensor([0, 255], dtype=torch.uint8)
    scale(stored)
    assert stored.tolist() == [0, 255]


def _claiming(path: Path, width: int, height: int) -> Path:
    """A small PNG whose header says that it is so large."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pixels_are_counted_before_they_are_decoded(tmp_path: Path) -> None:
    bomb = _claiming(tmp_path / "bomb.png", 13000, 13000)
    with pytest.raises(UserError, match=r"bomb\.png: image is 13000x13000, and at most 67,108,864 pixels are read"):
        picture(str(bomb), bomb, "RGB", photograph(32))
    with pytest.raises(UserError, match="at most 67,108,864 pixels"):
        picture("bytes", bomb.read_bytes(), "RGB", photograph(32))
    with pytest.raises(UserError, match=r"bomb\.png: image is 13000x13000"):
        mask_from_picture(bomb, (32, 32), 32)
    widest = _claiming(tmp_path / "widest.png", 2**31 - 1, 2**31 - 1)
    with pytest.raises(UserError, match=r"widest\.png: "):
        picture(str(widest), widest, "RGB", photograph(32))


def test_large_pictures_are_decoded(tmp_path: Path) -> None:
    """Beyond the size from which on only two are decoded at a time; more of them than two."""
    Image.new("L", (2**13, 2**11 + 1), 200).save(tmp_path / "large.png")
    with ThreadPoolExecutor(3) as pool:
        shown = list(pool.map(lambda name: picture(name, tmp_path / "large.png", "L", photograph(2)), "abc"))
    assert [np.asarray(image).tolist() for image in shown] == [[[200, 200], [200, 200]]] * 3


@pytest.mark.timeout(60)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "x.png"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match=r"x\.png is no file"):
        picture(str(pipe), pipe, "L", upright)
    with pytest.raises(UserError, match=r"there is no mask"):
        mask_from_picture(pipe, (8, 8), 8)
    with pytest.raises(UserError, match="is no file"):
        picture(str(tmp_path), tmp_path, "L", upright)
