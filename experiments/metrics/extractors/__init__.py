"""Feature extractors: pixels in, features (and class probabilities, where there are classes) out."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from cdrl.errors import UserError
from experiments.metrics.extractors.pixels import Extracted, Pixels

INCEPTION_MODES = {
    "inception-clean": "clean",
    "inception-legacy-pytorch": "legacy_pytorch",
    "inception-legacy-tensorflow": "legacy_tensorflow",
}
NAMES = ("digits", "efficientnet-lite0", *INCEPTION_MODES)


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
    if name == "digits":  # its own small network; the others resize, and repeat grey
        return (channels, size) == (1, 8)
    return channels in (1, 3)


def build(
    name: str,
    cache: Path,
    device: torch.device | str = "cpu",
    weights: str | Path | None = None,
    expected: str | None = None,
) -> Extractor:
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
    if name == "efficientnet-lite0":
        from experiments.metrics.extractors.efficientnet import EfficientNetLite0

        return EfficientNetLite0(target, weights, expected)
    if name in INCEPTION_MODES:
        from experiments.metrics.extractors.inception import Inception

        return Inception(INCEPTION_MODES[name], cache, target, weights, expected)
    raise UserError(f"unknown feature extractor '{name}'; there are {', '.join(NAMES)}")


__all__ = ["INCEPTION_MODES", "NAMES", "Extracted", "Extractor", "Pixels", "accepts", "build"]
