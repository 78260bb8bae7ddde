"""Numbers from papers: what was published, for which data and model, and how well that is confirmed.

The file is a table of quotations. ``status`` says what each is worth: "confirmed" by a public text, "unconfirmed"
(commonly quoted, no text at hand), or "conflicting" (texts disagree). A value may be words ("does not converge").
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

PUBLISHED = Path(__file__).parents[2] / "results" / "published" / "published.csv"

_METRICS = {"fd": "FID", "is": "Inception Score", "auroc": "AUROC"}
_DATASETS = {"cifar10": "CIFAR-10", "imagenet32": "ImageNet 32x32", "celeba64": "CelebA 64x64"}
_LEGACY = frozenset({"fid-legacy-pytorch", "fid-legacy-tensorflow"})
_PROTOCOLS = {"FID": _LEGACY, "Inception Score": _LEGACY, "AUROC": frozenset({"log-density"})}
"""50,000 samples on 8 bits against the training set, in the weights of that time; the other protocols came later."""
_OUTSIDE = {"interp": "CIFAR-10 interp", "cifar100": "CIFAR-100", "celeba64": "CelebA", "svhn": "SVHN"}
"""The right-hand side of "CIFAR-10 vs …"."""


@dataclass(frozen=True)
class Number:
    """One published number.

    Attributes:
        value: the number, or None where the publication gives words instead.
        status: "confirmed", "unconfirmed" or "conflicting".
        text: the value as printed.
        comparable: whether it was published for the data set that it was looked up for.
    """

    value: float | None
    status: str
    text: str = ""
    dataset: str = ""
    metric: str = ""
    model: str = ""
    source: str = ""
    note: str = ""
    comparable: bool = True

    @property
    def protocols(self) -> frozenset[str]:
        """Names of the protocols that measure what was published, as far as the publication says."""
        return _PROTOCOLS.get(self.metric, frozenset())


@lru_cache
def load(path: Path = PUBLISHED) -> tuple[Number, ...]:
    """Every published number, in the file's order; a line's missing last fields are empty, no file is no numbers."""
    if not path.exists():
        return ()
    with path.open(newline="") as file:
        return tuple(_number(line) for line in csv.DictReader(file, restval=""))


def find(spec: Mapping[str, Any], dataset: str, metric: str) -> Number | None:
    """The published number that stands beside a measured one.

    Args:
        spec: ``model`` as in the file, and optionally ``dataset`` and ``metric`` as in the file.
        dataset: the measured data set's name, e.g. "cifar10", or "cifar10 vs svhn". When nothing was ever published
            for it (digits), the model's first number of the metric is returned, not ``comparable``.
        metric: the measured metric's name, e.g. "fd".
    """
    wanted = _METRICS.get(metric.lower(), metric)
    if spec.get("metric", wanted) != wanted:
        return None
    found = [number for number in load() if (number.model, number.metric) == (spec["model"], wanted)]
    if "dataset" in spec:
        found = [number for number in found if number.dataset == spec["dataset"]]
    inside, _, outside = dataset.partition(" vs ")
    known = inside in _DATASETS and (not outside or outside in _OUTSIDE)
    name = " vs ".join(filter(None, (_DATASETS.get(inside), _OUTSIDE.get(outside))))
    own = [number for number in found if known and number.dataset.partition(" (")[0] == name]
    if own or inside in _DATASETS or not found:
        return own[0] if own else None
    return replace(found[0], comparable=False)


def _number(line: Mapping[str, str]) -> Number:
    def field(name: str) -> str:
        return (line.get(name) or "").strip()

    text = field("value")
    return Number(
        value=float(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else None,
        status=field("status") or "unconfirmed",
        text=text,
        dataset=field("dataset"),
        metric=field("metric"),
        model=field("model"),
        source=field("source"),
        note=field("note"),
    )
