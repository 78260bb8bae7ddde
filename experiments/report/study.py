"""One experiment at one scale, as the report sees it: cells, rows, and evaluations' arrays where they are at hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cdrl.errors import UserError
from experiments.files import csv_read, read_json
from experiments.measurement import COLUMNS, Difference, difference
from experiments.metrics import metric
from experiments.runs.folder import EvaluationFolder, RunFolder

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
    "row", "dataset", "metric", "protocol", "against", "mask", "variant", "diverged", "published", "published_status",
    "verdict", "device", "commit", "runs", "values", "label", "method", "note",
)  # fmt: skip
"""Columns of words; the others hold numbers."""
_RECENT = ("values", "diverged", "updates", "train_cost", "chain_steps", "sampling_steps", "step_variance")
"""Columns that cells of before this one lack: such results are shown, and `experiments.verify` refuses them."""
_FACTS = ("name", "title", "question", "figures", "order", "rows")
"""Of experiment.json, which also has what cells are derived from."""


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
        record = read_json(folder / "experiment.json")
        facts = {name: record[name] for name in _FACTS}
        facts |= {"figures": tuple(facts["figures"]), "provenance": read_json(kept) if kept.exists() else {}}
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
        return here if here.exists() else self.root / folder

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
        loaded = []
        for path in self.kept(row, file):
            try:
                arrays = np.load(path, allow_pickle=False)
                loaded.append(dict(arrays) if isinstance(arrays, np.lib.npyio.NpzFile) else arrays)
            except Exception as error:  # whatever NumPy, zip or zlib make of it
                remedy = f"delete {path.parent}, and the command that ran the experiment makes it again"
                raise UserError(f"{path} is damaged; {remedy}") from error
        return loaded

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
    cells = pd.read_csv(path, dtype=dict.fromkeys(_TEXTS, str), keep_default_na=False, na_values=["", "nan"])
    if lost := [column for column in COLUMNS if column not in cells and column not in _RECENT]:
        raise UserError(f"{path} lacks the columns {', '.join(lost)}; run the experiment again")
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
