"""Statistics of reference sets, computed once and kept by a hash of everything that decides them.

The first process that needs them computes them, the others wait and say for whom. Features are kept part by part on
the way, so that what was computed before an interruption is not computed again, and the statistics are the same.

    <cache>/reference/<extractor>-<data set>-<split>-<images>-<hash>.safetensors    mean, covariance, perhaps features
    <cache>/reference/….parts/                                                      while they are computed

As a job of the suite, before the runs that are compared with them, they are a `Statistics`:

    <cache>/statistics/<extractor>-<data set>-<split>-<hash>/
        statistics.json   what is wanted, written by the plan
        done.json         names the file under <cache>/reference/
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypedDict

from cdrl.errors import UserError
from experiments.configuration import digest
from experiments.data import DataSettings, ImageSet
from experiments.files import AGAIN, Place, read_json, read_record, wished, write_json
from experiments.metrics import weights
from experiments.metrics.distances import Moments
from experiments.metrics.extractors import Extracted, Extractor, Pixels, build
from experiments.metrics.protocols import Protocol
from experiments.metrics.registry import needs_features
from experiments.progress import OnProgress, listening, progress
from experiments.runs.folder import WorkFolder

_BATCH = {"cpu": 16, "cuda": 256}
_PART = 1000  # images
_SECONDS_BETWEEN_SAVES = 5.0


class Wanted(TypedDict):
    """statistics.json."""

    protocol: Protocol
    data: DataSettings


class Made(TypedDict):
    """done.json."""

    file: Place


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
    protocol: Protocol, extractor: Extractor, images: ImageSet, cache: Path, device: torch.device,
    on_progress: OnProgress | None = None,
) -> Reference:  # fmt: skip
    """Statistics of the protocol's part of ``images``: from the cache, or computed and kept there.

    Args:
        on_progress: is told how far they are, or for whom they wait, see `listening`. It may stop the work by raising;
            the next call goes on from there.

    Raises:
        UserError: ``images`` is another split than the protocol's or too small, or the cache cannot be written.
    """
    if images.split != protocol.reference_split:
        raise UserError(f"{protocol.name} compares with '{protocol.reference_split}' images, not '{images.split}'")
    there = len(images)
    count = protocol.reference_samples or max(there, 2)
    if count > there:
        raise UserError(f"{protocol.name} needs {count} {images.split} images; {images.name} has {there}: add some")

    def path(features: bool) -> Path:
        content = [extractor.name, extractor.sha256, images.checksum, count, protocol.flips, features]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        name = f"{extractor.name}-{images.name}-{images.split}-{count}-{key}.safetensors"
        return cache / "reference" / name

    # Moments alone are a hundredth of all features; kept with features they serve as well.
    features = needs_features(protocol.metrics) or path(True).exists()
    parts, title = path(features).with_suffix(".parts"), f"reference statistics of {images.name}"
    about = {"protocol": protocol.name, "dataset": images.name, "split": images.split, "images": str(count)}

    def compute() -> dict[str, Tensor]:
        """Continued from the features that an interrupted call left in ``parts``."""
        moments, kept = Moments(extractor.dim, device), []
        saved = time.monotonic()
        with progress(title, count) as advance:
            for start in range(0, count, _PART):
                # The part's images, and the features that are there already.
                pixels = np.asarray(images.images[start : min(start + _PART, count)])
                share = len(pixels)
                if protocol.flips:
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
                whole = torch.cat(rows)
                moments.update(whole)
                if features:
                    kept.append(whole)
        statistics = {"count": torch.tensor(moments.count), "mean": moments.mean.cpu(), "cov": moments.cov.cpu()}
        return {**statistics, "features": torch.cat(kept)} if kept else statistics

    with listening(on_progress):
        statistics = weights.load_or_make(path(features), title, compute, about)
    shutil.rmtree(parts, ignore_errors=True)
    moments = Moments.restore(int(statistics["count"]), statistics["mean"], statistics["cov"])
    return Reference(moments, statistics.get("features"), count, path(features))


@dataclass(frozen=True)
class Statistics:
    """The reference statistics of one data set under one protocol.

    Attributes:
        protocol: which extractor looks at which images.
        data: where the images come from.
        cache: folder of weights and reference statistics.
    """

    protocol: Protocol
    data: DataSettings
    cache: Path

    @staticmethod
    def at(path: Path) -> bool:
        """True for a folder in which statistics are wanted."""
        return (path / "statistics.json").exists()

    @classmethod
    def open(cls, path: Path) -> Statistics:
        """What is wanted in a folder. Raises `UserError` where that is missing or damaged."""
        record = read_record(path / "statistics.json", Wanted)
        made = cls(record["protocol"], record["data"], path.parents[1])
        if made.folder.path.name != path.name:
            raise UserError(f"{path}/statistics.json is damaged (it is not what {path.name} stands for); {AGAIN}")
        return made

    @property
    def name(self) -> str:
        return f"statistics of {self.data.name} for {self.protocol.name}"

    @property
    def folder(self) -> WorkFolder:
        """Where the job is worked on; decided by everything that decides the statistics."""
        protocol = self.protocol
        settings = {
            "extractor": protocol.extractor, "weights": protocol.weights_sha256, "split": protocol.reference_split,
            "samples": protocol.reference_samples, "flips": protocol.flips,
            "features": needs_features(protocol.metrics), "data": self.data.identity(),
        }  # fmt: skip
        name = f"{protocol.extractor}-{self.data.name}-{protocol.reference_split}-{digest(settings)}"
        return WorkFolder(self.cache / "statistics" / name)

    def want(self) -> None:
        """Writes what is wanted. Raises `UserError` where the cache cannot be written."""
        path = self.folder.path / "statistics.json"
        record = json.loads(json.dumps({"protocol": asdict(self.protocol), "data": asdict(self.data)}))
        if wished(path, lambda: read_json(path)) != record:
            with weights.cache_errors(path):
                write_json(path, record)

    @property
    def done(self) -> bool:
        """Whether they are there; nothing is loaded. A damaged file is found, and made again, when it is used."""
        try:
            return (self.cache / read_record(self.folder.path / "done.json", Made)["file"]).exists()
        except UserError:
            return False

    def make(self, device: torch.device | str = "cpu", on_progress: OnProgress | None = None) -> None:
        """Load the images, build the extractor and compute the statistics, unless done; continues what was interrupted.

        Whoever calls it keeps others out of the folder, or does not mind to wait for them.

        Args:
            on_progress: is told of each of these; see `experiments.progress.listening`.

        Raises:
            UserError: as `DataSettings.load`, `build` and `reference`.
        """
        if self.done:
            return
        protocol, device = self.protocol, torch.device(device)
        with listening(on_progress):
            images = self.data.load(protocol.reference_split)
            protocol.check_fits(images.channels, images.image_size)
            extractor = build(protocol.extractor, self.cache, device, protocol.weights, protocol.weights_sha256)
            made = reference(protocol, extractor, images, self.cache, device)
        path = self.folder.path / "done.json"
        with weights.cache_errors(path):
            write_json(path, {"file": str(made.path.relative_to(self.cache))})


def batches(extractor: Extractor, pixels: Pixels, device: torch.device) -> Iterator[Extracted]:
    """Features of ``pixels``, in batches that suit the device."""
    size = _BATCH.get(device.type, _BATCH["cpu"])
    for start in range(0, len(pixels), size):
        yield extractor(pixels[start : start + size])
