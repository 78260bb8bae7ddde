"""Feature extractors: pixels in, features (and class probabilities, where there are classes) out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl import precision
from cdrl.errors import UserError

Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.float32] | Tensor

INCEPTION_MODES = {
    "inception-clean": "clean",
    "inception-legacy-pytorch": "legacy_pytorch",
    "inception-legacy-tensorflow": "legacy_tensorflow",
}
EFFICIENTNETS = ("efficientnet-lite0", "efficientnet-lite0-96")
SMALL = {"digits": (1, 8), "cifar10-16": (3, 16)}
"""Classifiers that look at images as they are, of so many channels and pixels."""
NAMES = (*SMALL, *EFFICIENTNETS, *INCEPTION_MODES)


class Extracted(NamedTuple):
    """Features of n images.

    Attributes:
        features: (n, d) float32.
        probabilities: (n, C) float32, or None when the network has no classes.
    """

    features: Tensor
    probabilities: Tensor | None = None


class Extractor(Protocol):
    """A fixed network that maps images to features.

    Attributes:
        name: one of `NAMES`.
        dim: length d of a feature.
        classes: number C of classes it tells apart, 0 when it gives no probabilities.
        sha256: of its weights.
    """

    name: str
    dim: int
    classes: int
    sha256: str

    def __call__(self, pixels: Pixels) -> Extracted:
        """Features of ``pixels`` (n, height, width, channels): uint8, or float32 in 0 … 255."""
        ...


def accepts(name: str, channels: int, size: int) -> bool:
    """True for an extractor that takes square images of ``size`` pixels with so many channels."""
    return (channels, size) == SMALL[name] if name in SMALL else channels in (1, 3)  # those resize, and repeat grey


def build(
    name: str, cache: Path, device: torch.device | str = "cpu", weights: str | Path | None = None,
    expected: str | None = None,
) -> Extractor:  # fmt: skip
    """The extractor of this name, ready on ``device``.

    Args:
        cache: folder of downloaded and trained weights.
        weights: a weight file or its folder, instead of the cache.
        expected: SHA-256 to demand of the weight file, instead of the pinned one.

    Raises:
        UserError: for an unknown name, or weights that are missing or not the right ones.
    """
    target = torch.device(device)
    if name == "digits":
        from experiments.metrics.extractors.digits import DigitsExtractor

        return DigitsExtractor(cache, target)
    if name == "cifar10-16":
        from experiments.metrics.extractors.cifar10 import Cifar10Extractor

        return Cifar10Extractor(target, weights, expected)
    if name in EFFICIENTNETS:
        from experiments.metrics.extractors.efficientnet import EfficientNetLite0

        return EfficientNetLite0(name, target, weights, expected)
    if name in INCEPTION_MODES:
        from experiments.metrics.extractors.inception import Inception

        return Inception(INCEPTION_MODES[name], cache, target, weights, expected)
    raise UserError(f"unknown feature extractor '{name}'; there are {', '.join(NAMES)}")


# What extractors share.


def to_nchw(pixels: Pixels, channels: int, device: torch.device | str) -> Tensor:
    """Float32 (n, channels, height, width) in 0 … 255 on ``device``; grey is repeated to fill colour channels.

    Raises `ValueError` for anything but uint8 or float32 (n, height, width, 1 or ``channels``).
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
    are a function of the image alone. Products are in true float32: TF32 would move a distance in its third digit.
    """
    with torch.inference_mode(), precision.products("fp32"):
        if images.device.type != "cpu" or len(images) == 0:
            return network(images)
        missing = -len(images) % cpu_batch
        filled = torch.cat([images, images[:1].expand(missing, *images.shape[1:])])
        features, probabilities = zip(*map(network, filled.split(cpu_batch)), strict=True)
        whole = None if probabilities[0] is None else torch.cat(probabilities)[: len(images)]
        return Extracted(torch.cat(features)[: len(images)], whole)
