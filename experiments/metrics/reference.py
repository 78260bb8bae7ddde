"""Statistics of reference sets, computed once and kept by a hash of everything that decides them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cdrl.errors import UserError
from experiments.data import ImageSet
from experiments.data.progress import progress
from experiments.metrics.extractors import Extracted, Extractor, Pixels
from experiments.metrics.frechet import Moments
from experiments.metrics.protocols import Protocol

FEATURE_METRICS = frozenset({"kid", "precision", "recall"})
"""Metrics that need every feature, not only their moments."""
_BATCH = {"cpu": 64, "cuda": 256}


@dataclass(frozen=True)
class Reference:
    """What samples are compared with.

    Attributes:
        moments: of the features, float64.
        features: (m, d) float32 on the CPU, or None when the protocol needs only moments.
        images: how many images, before flips.
    """

    moments: Moments
    features: Tensor | None
    images: int


def reference(
    protocol: Protocol, extractor: Extractor, images: ImageSet, cache: Path, device: torch.device
) -> Reference:
    """Statistics of the protocol's part of ``images``, from the cache or computed (with progress) and kept there.

    Raises:
        UserError: if ``images`` is another split than the protocol's, or too small.
    """
    count = _check(protocol, images)
    path = _path(protocol, extractor, images, count, cache, features=True)
    if not (FEATURE_METRICS & set(protocol.metrics) or path.exists()):  # moments alone are a hundredth of it
        path = _path(protocol, extractor, images, count, cache, features=False)
    try:
        kept = safetensors.torch.load_file(path)
    except (FileNotFoundError, SafetensorError):
        kept = _compute(protocol, extractor, images, count, device)
        about = {"protocol": protocol.name, "dataset": images.name, "split": images.split, "images": str(count)}
        _keep(path, kept, about)
    moments = Moments.restore(int(kept["count"]), kept["mean"], kept["cov"])
    return Reference(moments, kept.get("features"), count)


def batches(extractor: Extractor, pixels: Pixels, device: torch.device) -> Iterator[Extracted]:
    """Features of ``pixels``, a batch that suits the device at a time."""
    size = _BATCH.get(device.type, _BATCH["cpu"])
    for start in range(0, len(pixels), size):
        yield extractor(pixels[start : start + size])


def _check(protocol: Protocol, images: ImageSet) -> int:
    """How many images the reference has."""
    if images.split != protocol.reference_split:
        raise UserError(f"{protocol.name} compares with '{protocol.reference_split}' images, not '{images.split}'")
    there = len(images.images)
    count = protocol.reference_samples or max(there, 2)
    if count > there:
        raise UserError(f"{protocol.name} needs {count} {images.split} images; {images.name} has {there}: add some")
    return count


def _path(protocol: Protocol, extractor: Extractor, images: ImageSet, count: int, cache: Path, features: bool) -> Path:
    content = [extractor.name, extractor.sha256, images.checksum, count, protocol.flips, features]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return cache / "reference" / f"{extractor.name}-{images.name}-{images.split}-{count}-{key}.safetensors"


def _compute(
    protocol: Protocol, extractor: Extractor, images: ImageSet, count: int, device: torch.device
) -> dict[str, Tensor]:
    moments = Moments(extractor.dim, device)
    features: list[Tensor] = []
    keep = bool(FEATURE_METRICS & set(protocol.metrics))
    with progress(f"reference statistics of {images.name} for {protocol.name}", count) as advance:
        for start in range(0, count, 1000):
            pixels = np.asarray(images.images[start : min(start + 1000, count)])
            for view in (pixels, pixels[:, :, ::-1]) if protocol.flips else (pixels,):
                for batch in batches(extractor, view, device):
                    moments.update(batch.features)
                    if keep:
                        features.append(batch.features.cpu())
                    advance(len(batch.features) if view is pixels else 0)
    kept = {"count": torch.tensor(moments.count), "mean": moments.mean.cpu(), "cov": moments.cov.cpu()}
    return {**kept, "features": torch.cat(features)} if keep else kept


def _keep(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    safetensors.torch.save_file(tensors, temporary, about)
    os.replace(temporary, path)


class Statistics:  # TEMPORARY
    def __init__(self, protocol, data, cache):
        from experiments.runs.folder import WorkFolder

        self.folder = WorkFolder(Path("/tmp/none"))
        self.done = True

    @staticmethod
    def at(path):
        return False

    def make(self, device, progress):
        pass
