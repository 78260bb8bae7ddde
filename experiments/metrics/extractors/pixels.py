"""Input and output of extractors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl import precision

Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.float32] | Tensor


class Extracted(NamedTuple):
    """Features of n images.

    Attributes:
        features: (n, d) float32.
        probabilities: (n, C) float32, or None when the network has no classes.
    """

    features: Tensor
    probabilities: Tensor | None = None


def to_nchw(pixels: Pixels, channels: int, device: torch.device | str) -> Tensor:
    """Float32 (n, channels, height, width) in 0 … 255 on ``device``; grey is repeated to fill colour channels.

    Raises:
        ValueError: for anything but uint8 or float32 (n, height, width, 1 or ``channels``).
    """
    images = torch.as_tensor(np.array(pixels, order="C") if isinstance(pixels, np.ndarray) else pixels)
    if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32):
        raise ValueError(f"pixels must be uint8 or float32 NHWC, not {images.dtype} {tuple(images.shape)}")
    if images.shape[3] not in (1, channels):
        raise ValueError(f"images have {images.shape[3]} channels; this extractor takes {channels}")
    return images.to(device).permute(0, 3, 1, 2).float().expand(-1, channels, -1, -1).contiguous()


def extract(network: Callable[[Tensor], Extracted], images: Tensor, cpu_batch: int) -> Extracted:
    """``network`` on ``images`` (n, …): at once on a GPU, on the CPU in batches of exactly ``cpu_batch``.

    On the CPU the last batch is filled up, because a sum's rounding depends on the size of the batch: so the features
    are a function of the image alone.
    """
    with exact_inference():
        if images.device.type != "cpu" or len(images) == 0:
            return network(images)
        missing = -len(images) % cpu_batch
        filled = torch.cat([images, images[:1].expand(missing, *images.shape[1:])])
        features, probabilities = zip(*map(network, filled.split(cpu_batch)), strict=True)
        return Extracted(
            torch.cat(features)[: len(images)],
            None if probabilities[0] is None else torch.cat(probabilities)[: len(images)],
        )


@contextmanager
def exact_inference() -> Iterator[None]:
    """No autograd, and products in true float32: TF32 would move a distance in its third digit."""
    with torch.inference_mode(), precision.products("fp32"):
        yield
