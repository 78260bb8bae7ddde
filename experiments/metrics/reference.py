"""Statistics of reference sets, computed once and kept by a hash of everything that decides them.

The first process that needs them computes them, the others wait and say for whom. Features are kept part by part on
the way, so that what was computed before an interruption is not computed again, and the statistics are the same.

    <cache>/reference/<extractor>-<data set>-<split>-<images>-<hash>.safetensors    mean, covariance, perhaps features
    <cache>/reference/….parts/                                                      while they are computed
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl.errors import UserError
from experiments.data import ImageSet
from experiments.metrics import weights
from experiments.metrics.extractors import Extracted, Extractor, Pixels
from experiments.metrics.frechet import Moments
from experiments.metrics.protocols import Protocol
from experiments.progress import OnProgress, listening, progress

_BATCH = {"cpu": 16, "cuda": 256}
_PART = 1000  # images
_SECONDS_BETWEEN_SAVES = 5.0

FEATURE_METRICS = frozenset({"kid", "precision", "recall"})
"""Metrics that need every feature, not only their moments."""


def needs_features(names: Iterable[str]) -> bool:
    """True where one of these metrics needs every feature, not only their moments."""
    return not FEATURE_METRICS.isdisjoint(names)


@dataclass(frozen=True)
class Reference:
    """Statistics of the images that samples are compared with.

    Attributes:
        moments: of the features, float64.
        features: (m, d) float32 on the CPU, or None when the protocol needs only moments.
        images: how many images, before flips.
        path: of the file that keeps it.
    """

    moments: Moments
    features: Tensor | None
    images: int
    path: Path


def reference(
    protocol: Protocol,
    extractor: Extractor,
    images: ImageSet,
    cache: Path,
    device: torch.device,
    on_progress: OnProgress | None = None,
) -> Reference:
    """Statistics of the protocol's part of ``images``: from the cache, or computed and kept there.

    Args:
        on_progress: is told how far they are, or for whom they wait, see `listening`. It may stop the work by raising;
            the next call goes on from there.

    Raises:
        UserError: ``images`` is another split than the protocol's or too small, or the cache cannot be written.
    """
    count = _count(protocol, images)
    features = needs_features(protocol.metrics)  # moments alone are a hundredth of it
    path = _path(protocol, extractor, images, count, cache, features=True)
    if not features and not (features := path.exists()):
        path = _path(protocol, extractor, images, count, cache, features=False)
    title = f"reference statistics of {images.name}"
    parts = path.with_suffix(".parts")
    about = {"protocol": protocol.name, "dataset": images.name, "split": images.split, "images": str(count)}

    def compute() -> dict[str, Tensor]:
        pixels = images.images[:count]
        return _compute(extractor, pixels, protocol.flips, features, device, parts, title)

    with listening(on_progress):
        statistics = weights.load_or_make(path, title, compute, about)
    shutil.rmtree(parts, ignore_errors=True)
    moments = Moments.restore(int(statistics["count"]), statistics["mean"], statistics["cov"])
    return Reference(moments, statistics.get("features"), count, path)


def batches(extractor: Extractor, pixels: Pixels, device: torch.device) -> Iterator[Extracted]:
    """Features of ``pixels``, in batches that suit the device."""
    size = _BATCH.get(device.type, _BATCH["cpu"])
    for start in range(0, len(pixels), size):
        yield extractor(pixels[start : start + size])


def _count(protocol: Protocol, images: ImageSet) -> int:
    """The number of images in the reference."""
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
    extractor: Extractor,
    images: NDArray[np.uint8],
    flips: bool,
    keep_features: bool,
    device: torch.device,
    parts: Path,
    title: str,
) -> dict[str, Tensor]:
    """The statistics, continued from the features that an interrupted call left in ``parts``."""
    moments, kept = Moments(extractor.dim, device), []
    saved = time.monotonic()
    with progress(title, len(images)) as advance:
        for start in range(0, len(images), _PART):
            # The part's images, and the features that are there already.
            pixels = np.asarray(images[start : start + _PART])
            share = len(pixels)
            if flips:
                pixels = np.concatenate([pixels, pixels[:, :, ::-1]])
            part = parts / f"{start:09d}.safetensors"
            known = weights.load(part)
            rows = [] if known is None else [known["features"]]
            done = sum(map(len, rows))
            advance(min(done, share))

            # The other features, kept every few seconds, when stopped, and when the part is complete.
            if done < len(pixels):
                try:
                    for batch in batches(extractor, pixels[done:], device):
                        rows.append(batch.features.cpu())
                        advance(max(min(done + len(rows[-1]), share) - done, 0))
                        done += len(rows[-1])
                        if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                            saved = time.monotonic()
                            weights.save(part, {"features": torch.cat(rows)}, durable=False)
                finally:
                    if rows:
                        weights.save(part, {"features": torch.cat(rows)}, durable=False)

            # Part by part in order, so that an interruption changes no sum.
            features = torch.cat(rows)
            moments.update(features)
            if keep_features:
                kept.append(features)
    statistics = {"count": torch.tensor(moments.count), "mean": moments.mean.cpu(), "cov": moments.cov.cpu()}
    return {**statistics, "features": torch.cat(kept)} if kept else statistics
