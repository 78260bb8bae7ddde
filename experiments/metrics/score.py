"""`Scorer`: a stream of images in, a protocol's metrics out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl import precision
from cdrl.errors import UserError
from cdrl.pictures import to_uint8, unscale
from experiments.data import ImageSet
from experiments.metrics.extractors import Extractor, Pixels, build
from experiments.metrics.frechet import Moments, frechet_distance
from experiments.metrics.inception_score import inception_score
from experiments.metrics.kernel import kernel_distance
from experiments.metrics.manifold import precision_recall
from experiments.metrics.protocols import Protocol
from experiments.metrics.reference import FEATURE_METRICS, batches, reference

CLASS_METRICS = frozenset({"is", "class_accuracy"})
"""Metrics that need class probabilities."""


class Scorer:
    """Scores images as they are made: only features (or only their moments) are kept, never the images.

    Args:
        protocol: what to measure, and how.
        images: the reference set, of the protocol's split.
        cache: folder of weights and reference statistics.
        device: where features are computed.
        extractor: the protocol's extractor, when it is already at hand.

    Attributes:
        samples: how many images have been given.
        reference_samples: how many they are compared with.

    Raises:
        UserError: if weights are missing or wrong, or ``images`` is not what the protocol looks at or compares with.
    """

    def __init__(
        self,
        protocol: Protocol,
        images: ImageSet,
        cache: Path | str,
        device: torch.device | str = "cpu",
        extractor: Extractor | None = None,
    ) -> None:
        protocol.check_fits(images.channels, images.image_size)
        self.protocol = protocol
        self._device = torch.device(device)
        self._extractor = extractor or build(
            protocol.extractor, Path(cache), self._device, protocol.weights, protocol.weights_sha256
        )
        if CLASS_METRICS & set(protocol.metrics) and not self._extractor.classes:
            raise UserError(f"{protocol.extractor} knows no classes; leave is and class_accuracy out of its metrics")
        self._reference = reference(protocol, self._extractor, images, Path(cache), self._device)
        self.reference_samples = self._reference.images
        self._moments = Moments(self._extractor.dim, self._device)
        self._features: list[Tensor] = []
        self._probabilities: list[Tensor] = []
        self._hits: list[Tensor] = []

    @property
    def samples(self) -> int:
        return self._moments.count

    def update(self, pixels: Pixels, labels: Tensor | NDArray[np.int64] | None = None) -> None:
        """Add images (n, height, width, channels).

        Args:
            pixels: uint8; float32 in 0 … 255 when the protocol does not round (see `to_pixels`).
            labels: (n,) in 0 … C − 1, the classes that were asked for; only ``class_accuracy`` looks at them.

        Raises:
            ValueError: if the type of ``pixels`` is not the protocol's.
        """
        wanted = "uint8" if self.protocol.rounding else "float32"
        if str(pixels.dtype).removeprefix("torch.") != wanted:
            raise ValueError(f"{self.protocol.name} looks at {wanted} pixels, not {pixels.dtype}")
        wants = set(self.protocol.metrics)
        probabilities: list[Tensor] = []
        for batch in batches(self._extractor, pixels, self._device):
            self._moments.update(batch.features)
            if FEATURE_METRICS & wants:
                self._features.append(batch.features.cpu())
            if batch.probabilities is not None:
                probabilities.append(batch.probabilities.cpu())
        if "is" in wants:
            self._probabilities += probabilities
        if "class_accuracy" in wants and labels is not None and len(pixels):
            self._hits.append(torch.cat(probabilities).argmax(dim=1) == torch.as_tensor(labels).cpu())

    def result(self) -> dict[str, float]:
        """Metric → value, in the protocol's order; ``class_accuracy`` only where labels were given.

        Raises:
            UserError: with fewer than two images.
        """
        if self.samples < 2:
            raise UserError(f"{self.protocol.name} needs at least 2 samples, not {self.samples}; ask for more samples")
        with precision.products("fp32"):  # whatever the samples were drawn in
            values = self._distances()
        if self._hits:
            values["class_accuracy"] = float(torch.cat(self._hits).double().mean())
        return {name: values[name] for name in self.protocol.metrics if name in values}

    def _distances(self) -> dict[str, float]:
        wants, target, values = set(self.protocol.metrics), self._reference.moments, {}
        if "fd" in wants:
            values["fd"] = frechet_distance(self._moments.mean, self._moments.cov, target.mean, target.cov)
        if FEATURE_METRICS & wants:
            assert self._reference.features is not None
            features = torch.cat(self._features).to(self._device)
            compared = self._reference.features.to(self._device)
            if "kid" in wants:
                values["kid"] = kernel_distance(features, compared, subset_size=self.protocol.kid_subset_size)
            if {"precision", "recall"} & wants:
                values["precision"], values["recall"] = precision_recall(features, compared)
        if "is" in wants:
            values["is"] = inception_score(torch.cat(self._probabilities))
        return values


def to_pixels(images: Tensor, rounding: bool) -> Tensor:
    """A sampler's images (n, C, H, W) in [−1, 1] as the pixels (n, H, W, C) a protocol looks at, on the CPU.

    Clamped; uint8 with ``rounding``, else float32 in 0 … 255.
    """
    pixels = to_uint8(images) if rounding else unscale(images).permute(0, 2, 3, 1).contiguous()
    return pixels.cpu()
