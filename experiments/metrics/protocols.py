"""Protocols: exactly how a number was measured. Two protocols never share a column.

Each is one file in ``conf/metrics/``, named as it is called in the tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cdrl.errors import UserError
from experiments.metrics.distances import KID_SUBSET_SIZE
from experiments.metrics.extractors import NAMES, accepts
from experiments.metrics.registry import METRICS, scored

_FOLDER = Path(__file__).parents[1] / "conf" / "metrics"


@dataclass(frozen=True)
class Protocol:
    """A way to compare images with a reference set.

    Attributes:
        name: as in the tables.
        extractor: name of the feature extractor.
        samples: how many samples a full measurement has.
        reference_split: the split compared with.
        reference_samples: how many of its first images; None for all.
        rounding: whether samples are rounded to 8 bits before they are looked at.
        flips: whether the reference also holds every image mirrored.
        metrics: what is measured, out of `experiments.metrics.registry.scored()`; the first is the headline.
        kid_subset_size: rows of each subset that the kernel distance is averaged over.
        weights: a weight file or its folder, when not in the usual place; not part of what the protocol is.
        weights_sha256: hash to demand of it, when not the pinned one.
    """

    name: str
    extractor: str
    samples: int
    reference_split: str = "train"
    reference_samples: int | None = None
    rounding: bool = True
    flips: bool = False
    metrics: tuple[str, ...] = ("fd",)
    kid_subset_size: int = KID_SUBSET_SIZE
    weights: str | None = field(default=None, compare=False)
    weights_sha256: str | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.metrics) - set(scored()))
        if unknown or not self.metrics:
            raise UserError(f"protocol '{self.name}': unknown metrics {unknown}; choose from {', '.join(scored())}")
        if self.extractor not in NAMES:
            raise UserError(f"protocol '{self.name}': no extractor '{self.extractor}'; there are {', '.join(NAMES)}")
        counts = [self.samples, 2 if self.reference_samples is None else self.reference_samples, self.kid_subset_size]
        if min(counts) < 2:
            raise UserError(f"protocol '{self.name}': sample counts must be at least 2, not {min(counts)}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Protocol:
        """The protocol of a resolved ``metrics`` config. Raises `UserError` for a missing or misspelt key."""
        known = {entry.name for entry in dataclasses.fields(cls)}
        if unknown := sorted(set(config) - known):
            raise UserError(f"metrics has no setting {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        if missing := sorted({"name", "extractor", "samples"} - set(config)):
            raise UserError(f"metrics lacks {', '.join(missing)}; choose a protocol, such as metrics=fd-digits")
        return cls(**{**config, "metrics": tuple(config.get("metrics", ("fd",)))})

    @property
    def headline(self) -> Protocol:
        """The same with nothing but the first metric, for curves and searches."""
        return dataclasses.replace(self, metrics=self.metrics[:1])

    @property
    def judge(self) -> Protocol:
        """The same with nothing but what it says of classes. Raises `UserError` where that is nothing."""
        metrics = tuple(name for name in self.metrics if METRICS[name].needs == "labels")
        if not metrics:
            judges = [name for name in names() if any(METRICS[one].needs == "labels" for one in load(name).metrics)]
            raise UserError(f"{self.name} judges no classes; protocols that do: {', '.join(judges)}")
        return dataclasses.replace(self, metrics=metrics)

    def check_fits(self, channels: int, size: int) -> None:
        """Raises `UserError`, naming protocols that fit, unless it can look at images of that kind."""
        if accepts(self.extractor, channels, size):
            return
        fitting = ", ".join(name for name in names() if accepts(load(name).extractor, channels, size)) or "none"
        images = f"{size}x{size} images of {channels} channels"
        raise UserError(f"{self.name} cannot look at {images}; protocols that can: {fitting}")


def names() -> list[str]:
    """The protocols there are."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load(name: str) -> Protocol:
    """The protocol of this name, as its file says. Raises `UserError` when there is none."""
    path = _FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"unknown protocol '{name}'; there are {', '.join(names())}")
    return Protocol.from_config(yaml.safe_load(path.read_text(encoding="utf-8")))
