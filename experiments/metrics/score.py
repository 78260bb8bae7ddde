"""`Scorer`: a stream of images in, a protocol's metrics out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl import precision
from cdrl.errors import UserError
from cdrl.pictures import to_uint8, unscale
from experiments.data import ImageSet
from experiments.metrics.distances import Comparison, Moments
from experiments.metrics.extractors import Extracted, Extractor, Pixels, build
from experiments.metrics.protocols import Protocol
from experiments.metrics.reference import batches, reference
from experiments.metrics.registry import METRICS


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
        reference_samples: how many they are compared with; 0 where nothing is, as for classes alone.

    Raises:
        UserError: if weights are missing or wrong, or ``images`` is not what the protocol looks at or compares with.
    """

    def __init__(
        self, protocol: Protocol, images: ImageSet, cache: Path | str, device: torch.device | str = "cpu",
        extractor: Extractor | None = None,
    ) -> None:  # fmt: skip
        protocol.check_fits(images.channels, images.image_size)
        self.protocol = protocol
        self._device = torch.device(device)
        wanted = protocol.extractor, Path(cache), self._device, protocol.weights, protocol.weights_sha256
        self._extractor = extractor or build(*wanted)
        names = [name for name in protocol.metrics if METRICS[name].needs in ("probabilities", "labels")]
        if names and not self._extractor.classes:
            raise UserError(f"{protocol.extractor} knows no classes; leave {' and '.join(names)} out of its metrics")
        self._needs = {METRICS[name].needs for name in protocol.metrics}
        self._reference = None
        if {"moments", "features"} & self._needs:
            self._reference = reference(protocol, self._extractor, images, Path(cache), self._device)
        self.reference_samples = 0 if self._reference is None else self._reference.images
        self._moments = Moments(self._extractor.dim, self._device)
        self._gathered: dict[str, list[Tensor]] = defaultdict(list)

    @property
    def samples(self) -> int:
        return self._moments.count

    def update(self, pixels: Pixels, labels: Tensor | NDArray[np.int64] | None = None) -> None:
        """Add images: `extract` and `add` in one."""
        self.add(self.extract(pixels), labels)

    def extract(self, pixels: Pixels) -> list[Extracted]:
        """What the extractor says of images, on the CPU, in the pieces that it looked at; nothing is added.

        Args:
            pixels: (n, height, width, channels) uint8; float32 in 0 … 255 when the protocol does not round (see
                `to_pixels`).

        Raises:
            ValueError: if the type of ``pixels`` is not the protocol's.
        """
        wanted = "uint8" if self.protocol.rounding else "float32"
        if str(pixels.dtype).removeprefix("torch.") != wanted:
            raise ValueError(f"{self.protocol.name} looks at {wanted} pixels, not {pixels.dtype}")
        probabilities = bool({"probabilities", "labels"} & self._needs)
        return [
            Extracted(
                batch.features.cpu(),
                None if batch.probabilities is None or not probabilities else batch.probabilities.cpu(),
            )
            for batch in batches(self._extractor, pixels, self._device)
        ]

    def add(self, extracted: Iterable[Extracted], labels: Tensor | NDArray[np.int64] | None = None) -> None:
        """Add images that `extract` looked at, here or in another process.

        Args:
            extracted: of n images.
            labels: (n,) in 0 … C − 1, the classes that were asked for; only ``class_accuracy`` looks at them.
        """
        kept = self._gathered
        matched = labels is not None and "labels" in self._needs
        if matched:
            kept["labels"].append(torch.as_tensor(labels).cpu())
        for batch in extracted:
            self._moments.update(batch.features)
            if "features" in self._needs:
                kept["features"].append(batch.features)
            if "probabilities" in self._needs and batch.probabilities is not None:
                kept["probabilities"].append(batch.probabilities)
            if matched and batch.probabilities is not None:
                kept["predictions"].append(batch.probabilities.argmax(dim=1))

    def result(self) -> dict[str, float]:
        """Metric → value, in the protocol's order; those that need labels only where labels were given.

        Raises `UserError` with fewer than two images.
        """
        if self.samples < 2:
            raise UserError(f"{self.protocol.name} needs at least 2 samples, not {self.samples}; ask for more samples")
        gathered = {name: torch.cat(parts).to(self._device) for name, parts in self._gathered.items()}
        known = self._reference
        if "features" in self._needs and known is not None and known.features is not None:
            gathered["reference_features"] = known.features.to(self._device)
        moments = Moments(self._extractor.dim, self._device) if known is None else known.moments
        comparison = Comparison(self._moments, moments, kid_subset_size=self.protocol.kid_subset_size, **gathered)
        values = {}
        with precision.products("fp32"):  # whatever the samples were drawn in
            for name in self.protocol.metrics:
                metric = METRICS[name]
                if metric.compute is not None and (metric.needs != "labels" or len(comparison.labels)):
                    values[name] = metric.compute(comparison)
        return values


def to_pixels(images: Tensor, rounding: bool) -> Tensor:
    """A sampler's images (n, C, H, W) in [−1, 1] as the pixels (n, H, W, C) a protocol looks at, on the CPU.

    Clamped; uint8 with ``rounding``, else float32 in 0 … 255.
    """
    return (to_uint8(images) if rounding else unscale(images).permute(0, 2, 3, 1).contiguous()).cpu()
