"""Numbers from papers: what was published, for which data and model, and how well that is confirmed.

The file is a table of quotations. ``status`` says what each is worth: "confirmed" by a public text, "unconfirmed"
(commonly quoted, no text at hand), or "conflicting" (texts disagree). A value may be words ("does not converge").
``dataset``, ``metric`` and ``model`` are the papers' words; ``data``, ``against``, ``level``, ``steps`` and ``weight``
are this suite's. ``identity`` says which model a number is of: a row of a manifest is compared with it only if it
``reproduces`` that model, whatever number it stands beside. ``images`` says which images of the data set it was
measured on, where there are several.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from cdrl.cli import note
from experiments.files import COUNT, NUMBER, WORDS, read_csv
from experiments.measurement import Measurement
from experiments.metrics.registry import METRICS, metric

PUBLISHED = Path(__file__).parents[1] / "results" / "published" / "published.csv"
Worth = Literal["confirmed", "unconfirmed", "conflicting"]
"""How well a number is confirmed."""
_COLUMNS = {
    **dict.fromkeys(("dataset", "metric", "model"), rf"(?!$){WORDS}"),
    "status": "|".join(("", *get_args(Worth))),
    **dict.fromkeys(("level", "steps"), rf"\s*({COUNT})?\s*"),
    "weight": rf"\s*({NUMBER})?\s*",
}
_OPTIONAL = (
    "value", "family", "status", "source", "note", "data", "against", "level", "steps", "weight", "identity", "images",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Number:
    """One published number.

    Attributes:
        value: the number, or None where the publication gives words instead.
        status: "confirmed", "unconfirmed" or "conflicting".
        text: the value as printed.
        dataset, metric, model, source, note: as in the file.
        data: this suite's name of the data set, or empty.
        against, level, steps, weight: as in `experiments.measurement.Measurement`.
        identity: the model in a word, the same for every number of one model; empty where no row could be that model.
        images: words that the source of a run's images must have, or empty.
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
    data: str = ""
    against: str = ""
    level: int | None = None
    steps: int | None = None
    weight: float | None = None
    identity: str = ""
    images: str = ""
    comparable: bool = True

    @property
    def protocols(self) -> frozenset[str]:
        """Names of the protocols that measure what was published, as far as the publication says."""
        under = (known.published_under for known in METRICS.values() if known.published_as == self.metric)
        return frozenset().union(*under)

    def about(self) -> tuple[Any, ...]:
        """Columns in which a measurement beside it must agree."""
        return self.against, self.level, self.steps, self.weight


@lru_cache
def load(path: Path = PUBLISHED) -> tuple[Number, ...]:
    """Every published number, in the file's order; a line's missing last fields are empty.

    No file is no numbers, which is said on stderr. Raises `UserError` where it is damaged.
    """
    if not path.exists():
        note(
            f"{path} is missing: no published number stands beside what is measured; "
            "a checkout of the repository has it"
        )
        return ()
    lines = read_csv(path, _COLUMNS, _OPTIONAL, "bring it back: git checkout results/published")
    return tuple(map(_number, lines))


def find(spec: Mapping[str, Any], dataset: str, measurement: Measurement) -> Number | None:
    """The published number that stands beside a measured one.

    Args:
        spec: ``model`` as in the file, and optionally ``dataset`` as in the file; ``reproduces`` is for verdicts.
        dataset: the run's data set, e.g. "cifar10". When nothing was ever published for it (digits), the model's first
            such number is returned, not ``comparable``.
        measurement: the measured number.
    """
    wanted = metric(measurement.metric).published_as
    about = (measurement.against, measurement.level, measurement.steps, measurement.weight)
    numbers = [
        number
        for number in load()
        if wanted
        and (number.model, number.metric, number.about()) == (spec["model"], wanted, about)
        and spec.get("dataset", number.dataset) == number.dataset
    ]
    own = [number for number in numbers if number.data == dataset]
    if own or dataset in {number.data for number in load()} or not numbers:
        return own[0] if own else None
    return replace(numbers[0], comparable=False)


def _number(line: Mapping[str, str]) -> Number:
    facts: dict[str, Any] = {one.name: line.get(one.name, "").strip() for one in fields(Number) if one.name in line}
    for name, kind in (("level", int), ("steps", int), ("weight", float)):
        facts[name] = kind(facts[name]) if facts.get(name) else None
    text, status = facts.pop("value", ""), facts.pop("status", "")
    value = float(text) if re.fullmatch(NUMBER, text) else None
    return Number(**facts, value=value, text=text, status=status or "unconfirmed")
