"""Stored pixels and networks' images: an exact pair, half to even."""

from __future__ import annotations

import numpy as np
import torch

from cdrl.pictures import scale, to_float, to_uint8


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
