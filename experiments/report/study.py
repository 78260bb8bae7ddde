"""One experiment at one scale, as the report sees it: cells, rows, and evaluations' arrays where they are at hand."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

import pandas as pd
from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from cdrl.errors import UserError
from experiments.files import (
    COUNT,
    NUMBER,
    WORDS,
    Amount,
    AtLeastOne,
    Commit,
    Count,
    Line,
    Name,
    Number,
    Place,
    Sha256,
    csv_read,
    read_arrays,
    read_csv,
    read_json,
    read_text,
)  # fmt: skip
from experiments.measurement import COLUMNS, Difference, difference, within
from experiments.metrics import metric
from experiments.published import Worth
from experiments.runs.folder import EvaluationFolder, Result, RunFolder, Seed, Status

REFERENCES = ("real", "noise")
"""Methods that no training stands behind: the floor and the ceiling of a table."""
_SCALES = ("nano", "micro", "mini", "paper")
_WORDS = {
    "steps": "K = {:g}",
    "weight": "w = {:g}",
    "image_size": "{:g} pixels",
    "mask": "{}",
    "variant": "{}",
    "trained": "after {:.0%} of training",
}
"""Columns in a row's name; tables place the level and what is compared with."""

_TEXTS = (
    "row", "dataset", "metric", "protocol", "against", "mask", "variant", "diverged", "rollbacks", "published",
    "published_status", "verdict", "device", "commit", "runs", "values", "label", "method", "note",
)  # fmt: skip
"""Columns of words; the others hold numbers."""
_RECENT = ("values", "diverged", "rollbacks", "updates", "train_cost", "chain_steps", "sampling_steps", "step_variance")
"""Columns that cells of before this one lack: such results are shown, and `experiments.verify` refuses them."""
_VERDICTS = ("reproduced", "off", "different-scale", "other-model", "diverged", "not-run")
_MAYBE = rf"({NUMBER}|nan)?"
_PATTERNS = {
    **dict.fromkeys(COLUMNS, _MAYBE),
    **dict.fromkeys(("experiment", "scale", *_TEXTS), WORDS),
    **dict.fromkeys(
        ("level", "steps", "image_size", "chain_steps", "sampling_steps", "seeds", "samples"), rf"({COUNT}(\.0)?)?"
    ),
    **dict.fromkeys(("low", "high"), rf"({NUMBER}|nan|-?inf)?"),
    **dict.fromkeys(("updates", "train_cost"), rf"({COUNT}(\.0)?)?"),
    **dict.fromkeys(("row", "metric"), r"[^\x00-\x1f\x7f]+"),
    "values": rf"(({NUMBER}|nan)( ({NUMBER}|nan))*)?",
    "diverged": r"(\d{1,6} of \d{1,6})?",
    "rollbacks": r"(\d{1,6}( \d{1,6})*)?",
    "verdict": "|".join(_VERDICTS),
    "published_status": "|".join(("", *get_args(Worth))),
}
"""What the values of cells.csv look like."""
_LAYOUTS = {
    "grid.npy": {"": "u1 n h w 1,3"},
    "curve.npz": {"grad_evals": "n n", "value": "f n"},
    "density.npz": {
        "half": "n t", "learned": "f t g g", "truth": "f t g g", "samples": "f s 2", "data": "f p 2",
    },
    "ood.npz": {"*": "f t n*"},
    "examples.npz": {"*": "u1 n* h w 1,3"},
    "compose.npz": {
        "combinations": "i c k", "names": "U c k", "share": "f c", "images": "u1 c m h w 1,3",
        "joint": "f c",
    },
    "inpaint": {"truth": "u1 n h w 1,3", "mask": "b n h w 1", "completions": "u1 n m h w 1,3"},
    "chains.npz": {"acceptance": "f t s", "log_density": "f t s n m"},
    "long.npz": {"*": "u1 n h w 1,3"},
    "gradients.npz": {"*": "n *"},
    "search.npz": {"*": "n *"},
}  # fmt: skip
"""What figures need of evaluations' arrays, by file; see `experiments.files.read_arrays`."""
_AGAIN = "run the experiment again"
_EVALUATE = "delete its folder, and the experiment's command evaluates that run again"


class Chain(TypedDict):
    """K and b² of a row's training, and K of its sampling."""

    steps: Count | None
    sampling_steps: Count | None
    step_variance: Amount | None


class Asked(TypedDict, total=False):
    """What a row's evaluation was asked for."""

    steps: Count | None
    weight: Number | None
    guidance: Number | None


class Published(TypedDict):
    """The published numbers that stand beside a row's."""

    model: Name
    dataset: NotRequired[Line]
    reproduces: NotRequired[Line | None]


class Evaluated(TypedDict):
    """One seed of a row."""

    seed: Seed
    folder: Place
    run: Place
    status: NotRequired[Status | None]
    result: NotRequired[Result | None]


class Data(TypedDict):
    """A row's data set."""

    name: Name
    image_size: AtLeastOne


class RowRecord(TypedDict):
    """A row of experiment.json; results of before this format lack some of it."""

    row: Name
    label: Line
    method: Name
    method_label: Line
    evaluations: list[Evaluated]
    published: NotRequired[Published | None]
    data: NotRequired[Data]
    chain: NotRequired[Chain]
    asked: NotRequired[Asked]


class Protocol(TypedDict):
    """The protocol's name and metrics, the first of which is the headline."""

    name: Name
    metrics: Annotated[list[Name], Field(min_length=1)]


class Recorded(TypedDict):
    """experiment.json, which has all that cells are derived from."""

    name: Name
    title: Line
    question: Line
    figures: list[Annotated[str, Field(pattern=r"^[A-Za-z_]\w{0,99}$")]]
    order: Annotated[int, Field(ge=-(10**9), le=10**9)]
    rows: list[RowRecord]
    scale: NotRequired[Name]
    changed: NotRequired[list[str]]
    protocol: NotRequired[Protocol]
    device: NotRequired[Name]
    commit: NotRequired[Commit]


class Images(TypedDict):
    """The images that a run was trained on."""

    name: Name
    source: str
    sha256: Sha256


class Provenance(TypedDict, total=False):
    """provenance.json: where numbers come from."""

    command: str
    commit: Commit
    changed: list[str]
    device: Name
    python: Line
    packages: dict[str, Line | None]
    cores: AtLeastOne
    system: Line
    data: Images
    protocol: dict[str, Any]
    configs: dict[Place, dict[str, Any]]
    inputs: dict[Place, Sha256]


_FACTS = ("name", "title", "question", "figures", "order", "rows")
"""Of experiment.json, what the report shows."""


class MissingArray(Exception):
    """A figure wants something of a run that is not on this machine: results are committed, runs are not."""


@dataclass(frozen=True)
class Study:
    """Results of an experiment.

    Attributes:
        folder: ``results/<experiment>/<scale>``.
        name, title, question, figures, order: as they were when it was run.
        scale: the folder's name; longer than the scale's where settings were changed.
        cells: cells.csv, and in ``name`` each row's label with what the cell is about, where that differs in the row.
        rows: of experiment.json.
        root: what relative run folders are relative to when they are not here: the folder that holds ``results/``.
    """

    folder: Path
    name: str
    scale: str
    title: str
    question: str
    figures: tuple[str, ...]
    order: int
    cells: pd.DataFrame
    rows: list[dict[str, Any]]
    provenance: dict[str, Any] = field(default_factory=dict)
    root: Path = Path()

    @classmethod
    def load(cls, folder: Path, root: Path | None = None) -> Study:
        """Read ``results/<experiment>/<scale>``.

        Raises `UserError` where there are no cells, or they lack columns that every experiment writes now.
        """
        folder = Path(folder)
        cells, kept = _cells(folder / "cells.csv"), folder / "provenance.json"
        if not (folder / "experiment.json").exists():
            raise UserError(f"{folder} lacks experiment.json; run the experiment again")
        record = read_json(folder / "experiment.json", Recorded, _AGAIN)
        facts = {name: record[name] for name in _FACTS}
        facts |= {"figures": tuple(facts["figures"])}
        facts |= {"provenance": read_json(kept, Provenance, _AGAIN) if kept.exists() else {}}
        if lost := sorted(set(cells["row"]) - {row["row"] for row in facts["rows"]}):
            raise UserError(f"{folder}: cells.csv has rows that experiment.json has not: {', '.join(lost)}; {_AGAIN}")
        root = root or folder.resolve().parents[2]
        return cls(folder=folder, scale=folder.resolve().name, cells=cells, root=root, **facts)

    @property
    def at_hand(self) -> bool:
        """Whether every evaluation is on this machine, but those of runs that diverged, which nothing is measured on.

        A run alone is not enough: experiments share them.
        """

        def there(evaluation: dict[str, Any]) -> bool:
            status = RunFolder(self.located(evaluation["run"])).status()
            diverged = status is not None and status.status == "diverged"
            return diverged or EvaluationFolder(self.located(evaluation["folder"])).done

        return all(there(evaluation) for row in self.rows for evaluation in row["evaluations"])

    def located(self, folder: str) -> Path:
        """A folder of experiment.json: relative to where the command ran, be it here or beside the results."""
        here = Path(folder)
        return here if os.path.exists(here) else self.root / folder  # false also for what can be no path

    def method_label(self, method: str) -> str:
        """A method's name for people."""
        return next((row["method_label"] for row in self.rows if row["method"] == method), method)

    def seeds(self, row: str) -> list[int]:
        """A row's seeds, in the manifest's order."""
        return [evaluation["seed"] for evaluation in self._evaluations(row)]

    def kept(self, row: str, file: str) -> list[Path]:
        """Where a file of a row's evaluations is at hand."""
        paths = (self.located(evaluation["folder"]) / file for evaluation in self._evaluations(row))
        return [path for path in paths if path.exists()]

    def arrays(self, row: str, file: str) -> list[Any]:
        """A file of a row's evaluations, where it is at hand: an array for ``.npy``, a dict of arrays for ``.npz``.

        Raises `UserError` where one is damaged.
        """
        layout = _LAYOUTS.get(file, _LAYOUTS.get(file.partition("-")[0], {}))
        loaded = [read_arrays(path, layout, _EVALUATE) for path in self.kept(row, file)]
        return [arrays.get("", arrays) for arrays in loaded]

    def by_seed(self, cell: pd.Series) -> dict[int, float]:
        """Seed → value, of what a cell is the mean of; without the seeds that diverged."""
        values = zip(self.seeds(str(cell["row"])), map(float, cell["values"].split()), strict=False)
        return {seed: value for seed, value in values if not math.isnan(value)}

    def seed_values(self, cell: pd.Series) -> list[float]:
        """The values that a cell is the mean of."""
        return list(self.by_seed(cell).values())

    def difference(self, ours: pd.Series, theirs: pd.Series) -> Difference | None:
        """Cell minus cell of one metric, tested over seeds; see `experiments.measurement.difference`."""
        return difference(self.by_seed(ours), self.by_seed(theirs), metric(ours["metric"]).bounds)

    def metrics(self, row: str, seed: int) -> pd.DataFrame:
        """A run's reports along training. Raises `MissingArray`."""
        for evaluation in self._evaluations(row):
            lines = RunFolder(self.located(evaluation["run"])).metrics.lines()
            if evaluation["seed"] == seed and lines:
                return pd.DataFrame(lines)
        raise MissingArray(f"metrics of row '{row}', seed {seed} are not here")

    def measured(self, name: str, protocol: str | None = None) -> pd.DataFrame:
        """Cells of a metric that have a value, in the table's order."""
        cells = self.cells[(self.cells["metric"] == name) & self.cells["value"].notna()]
        return cells if protocol is None else cells[cells["protocol"] == protocol]

    def required(self, name: str) -> pd.DataFrame:
        """`measured`. Raises `MissingArray` when nothing is."""
        if (cells := self.measured(name)).empty:
            raise MissingArray(f"{self.name}: nothing is measured yet")
        return cells

    def _evaluations(self, name: str) -> list[dict[str, Any]]:
        for row in self.rows:
            if row["row"] == name:
                return row["evaluations"]
        raise MissingArray(f"{self.name} has no row '{name}'")


def studies(results: Path, root: Path | None = None) -> list[Study]:
    """Everything under ``results/``, in the experiments' order, smallest scale first."""
    loaded = [Study.load(path.parent, root) for path in Path(results).glob("*/*/cells.csv")]
    return sorted(loaded, key=lambda s: (s.order, s.name, (*_SCALES, s.scale).index(s.scale), s.scale))


def _cells(path: Path) -> pd.DataFrame:
    """cells.csv with the column ``name``: "CDRL, half"."""
    if not path.exists():
        raise UserError(f"there is no {path}; run the experiment first")
    lines = read_csv(path, _PATTERNS, _RECENT, _AGAIN)
    if not lines:
        raise UserError(f"{path} has no cell; {_AGAIN}")
    for number, line in enumerate(lines, 2):
        if not within(line["metric"], value := float(line["value"] or "nan")):
            raise UserError(f"{path} is damaged (line {number}: {line['metric']} cannot be {value:g}); {_AGAIN}")
    table = io.StringIO(read_text(path, _AGAIN))
    cells = pd.read_csv(table, dtype=dict.fromkeys(_TEXTS, str), keep_default_na=False, na_values=["", "nan"])
    cells = cells.reindex(columns=list(COLUMNS)).fillna(dict.fromkeys(_TEXTS, ""))
    cells = cells.assign(**{column: cells[column].map(csv_read) for column in _TEXTS})
    names = cells["label"]
    for column, text in _WORDS.items():
        if column in _TEXTS:
            shown = cells[column] != ""
        else:  # numbers that are a row's own are in its label
            shown = cells[column].notna() & (cells.groupby("row")[column].transform("nunique") > 1)
        names = names.where(~shown, names + cells[column].map(lambda value, text=text: f", {text.format(value)}"))
    return cells.assign(name=names)
