"""Between stored pixels (uint8, NHWC) and the networks' images (float32 in [−1, 1], NCHW).

    v = u / 127.5 − 1,        u = round((clamp(v, −1, 1) + 1) · 127.5),  half to even.

The pair is exact: every one of the 256 stored values comes back. The rounding is part of every metric protocol.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def scale(stored: Tensor) -> Tensor:
    """uint8 of any shape -> float32 in [−1, 1] of the same shape, on the same device."""
    return stored.float().div_(127.5).sub_(1.0)


def to_float(images: Tensor | NDArray[np.uint8]) -> Tensor:
    """uint8 NHWC -> float32 NCHW in [−1, 1], contiguous."""
    stored = torch.from_numpy(np.array(images)) if isinstance(images, np.ndarray) else images
    return scale(stored.permute(0, 3, 1, 2)).contiguous()


def unscale(images: Tensor) -> Tensor:
    """float of any shape -> float32 in 0 … 255, not rounded; values outside [−1, 1] are clamped."""
    return images.float().clamp(-1.0, 1.0).add(1.0).mul(127.5)


def to_uint8(images: Tensor) -> Tensor:
    """float NCHW -> uint8 NHWC, contiguous, on the same device; values outside [−1, 1] are clamped."""
    return unscale(images).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
