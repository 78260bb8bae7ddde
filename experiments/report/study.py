"""One experiment at one scale, as the report sees it: cells, rows, and evaluations' arrays where they are at hand."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from cdrl.errors import UserError
from experiments.files import read_json

MANIFESTS = Path(__file__).parents[1] / "conf" / "experiment"
COLUMNS = (
    "experiment", "scale", "row", "dataset", "metric", "protocol", "value", "low", "high", "seeds", "samples",
    "published", "published_status", "verdict", "grad_evals", "train_seconds", "sample_seconds", "device", "commit",
    "runs",
)  # fmt: skip
"""The fixed columns of cells.csv."""


class MissingArray(Exception):
    """A figure wants something of a run that is not on this machine: results are committed, runs are not."""


@dataclass(frozen=True)
class Study:
    """Results of an experiment.

    Attributes:
        folder: ``results/<experiment>/<scale>``.
        rows: as in rows.json: ``{"row", "label", "method", "evaluations": [{"seed", "folder", "run"}]}``.
        cells: cells.csv, with ``label`` and ``method`` filled in.
        figures: names of modules in `experiments.report.figures`.
        root: what relative run folders are relative to when they are not here: the folder that holds ``results/``.
    """

    folder: Path
    name: str
    scale: str
    title: str
    question: str
    figures: tuple[str, ...]
    cells: pd.DataFrame
    rows: list[dict[str, Any]]
    provenance: dict[str, Any] = field(default_factory=dict)
    root: Path = Path()

    @classmethod
    def load(cls, folder: Path, root: Path | None = None) -> Study:
        """Read ``results/<experiment>/<scale>``.

        Raises:
            UserError: there is no cells.csv, or one without the fixed columns.
        """
        folder = Path(folder)
        rows = _json(folder / "rows.json", [])
        name, scale = folder.resolve().parts[-2:]
        manifest = _manifest(name)
        return cls(
            folder=folder,
            name=name,
            scale=scale,
            title=_at_scale(manifest, scale).get("title", manifest.get("title", name)),
            question=manifest.get("question", ""),
            figures=tuple(manifest.get("figures", ())),
            cells=_cells(folder / "cells.csv", rows),
            rows=rows,
            provenance=_json(folder / "provenance.json", {}),
            root=root or folder.resolve().parents[2],
        )

    @property
    def at_hand(self) -> bool:
        """Whether every evaluation is on this machine, but those of runs that diverged, which nothing is measured on.

        A run alone is not enough: experiments share them.
        """
        return all(self._evaluated(evaluation) for row in self.rows for evaluation in row["evaluations"])

    def _evaluated(self, evaluation: dict[str, Any]) -> bool:
        status = self.located(evaluation["run"]) / "status.json"
        diverged = status.exists() and read_json(status)["status"] == "diverged"
        return diverged or (self.located(evaluation["folder"]) / "result.json").exists()

    def evaluation(self, row: str, seed: int) -> Path:
        """The evaluation folder of a row's seed. Raises `MissingArray`."""
        for evaluation in self._row(row)["evaluations"]:
            if evaluation["seed"] == seed:
                return self.located(evaluation["folder"])
        raise MissingArray(f"{self.name}: row '{row}' has no seed {seed}")

    def array(self, row: str, seed: int, file: str) -> Any:
        """An evaluation's file: an array for ``.npy``, a dict of arrays for ``.npz``, a value for ``.json``.

        Raises:
            MissingArray: it is not on this machine.
        """
        path = self.evaluation(row, seed) / file
        if not path.exists():
            raise MissingArray(f"{path} is not here")
        if path.suffix == ".json":
            return read_json(path)
        loaded = np.load(path, allow_pickle=False)
        return dict(loaded) if path.suffix == ".npz" else loaded

    def arrays(self, row: str, file: str) -> dict[int, Any]:
        """``array`` of every seed that has it."""
        found = {}
        for seed in self.seeds(row):
            try:
                found[seed] = self.array(row, seed, file)
            except MissingArray:
                continue
        return found

    def seeds(self, row: str) -> list[int]:
        """A row's seeds, in the manifest's order."""
        return [evaluation["seed"] for evaluation in self._row(row)["evaluations"]]

    def seed_values(self, row: str, metric: str, protocol: str | None = None) -> list[float]:
        """A metric of each seed that is at hand; ``row`` may carry a measurement's suffix ("cdrl half")."""
        suffix = row.removeprefix(self._row(row)["row"]).strip()
        return [
            measurement["value"]
            for result in self.arrays(row, "result.json").values()
            for measurement in result["measurements"]
            if (measurement["metric"], measurement.get("row", "")) == (metric, suffix)
            and protocol in (None, measurement["protocol"])
        ]

    def metrics(self, row: str, seed: int) -> pd.DataFrame:
        """A run's metrics.jsonl. Raises `MissingArray`."""
        for evaluation in self._row(row)["evaluations"]:
            path = self.located(evaluation["run"]) / "metrics.jsonl"
            if evaluation["seed"] == seed and path.exists():
                return pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])
        raise MissingArray(f"metrics of row '{row}', seed {seed} are not here")

    def measured(self, metric: str, protocol: str | None = None) -> pd.DataFrame:
        """Cells of a metric that have a value, in the table's order."""
        chosen = (self.cells["metric"] == metric) & self.cells["value"].notna()
        if protocol is not None:
            chosen &= self.cells["protocol"] == protocol
        return self.cells[chosen]

    def _row(self, name: str) -> dict[str, Any]:
        """The row with this id, or the one that a suffixed id belongs to."""
        matching = [row for row in self.rows if name == row["row"] or name.startswith(f"{row['row']} ")]
        if not matching:
            raise MissingArray(f"{self.name} has no row '{name}'")
        return max(matching, key=lambda row: len(row["row"]))

    def located(self, folder: str) -> Path:
        """A folder of rows.json: relative to where the command ran, be it here or beside the results."""
        here = Path(folder)
        return here if here.exists() else self.root / folder


def studies(results: Path, root: Path | None = None) -> list[Study]:
    """Everything under ``results/``, in the order of the paper's story, smallest scale first."""
    scales = {"nano": 0, "mini": 1, "paper": 2}
    found = [Study.load(path.parent, root) for path in Path(results).glob("*/*/cells.csv")]
    order = {name: position for position, name in enumerate(_ORDER)}
    return sorted(found, key=lambda s: (order.get(s.name, len(order)), s.name, scales.get(s.scale, 3)))


_ORDER = (
    "table1", "imagenet32", "released", "frontier", "speedup", "langevin_steps", "ablations", "guidance", "compose",
    "inpaint", "ood", "toy", "chains",
)  # fmt: skip


def _cells(path: Path, rows: list[dict[str, Any]]) -> pd.DataFrame:
    if not path.exists():
        raise UserError(f"there is no {path}; run the experiment first")
    cells = pd.read_csv(path, dtype={"row": str, "published": str, "runs": str, "commit": str})
    lost = [column for column in COLUMNS if column not in cells]
    if lost:
        raise UserError(f"{path} lacks the columns {', '.join(lost)}; run the experiment again")
    facts = {row["row"]: row for row in rows}
    for column in ("label", "method"):
        known = [facts.get(row, {}).get(column, row) for row in cells["row"]]
        cells[column] = cells[column].fillna(pd.Series(known)) if column in cells else known
    return cells


def _json(path: Path, default: Any) -> Any:
    return read_json(path) if path.exists() else default


def _at_scale(manifest: dict[str, Any], scale: str) -> dict[str, Any]:
    """A manifest's changes for a scale, which may have been changed further ("nano-1f3a5c")."""
    return (manifest.get("scales") or {}).get(scale.partition("-")[0]) or {}


def _manifest(name: str) -> dict[str, Any]:
    path = MANIFESTS / f"{name}.yaml"
    return yaml.safe_load(path.read_text())["experiment"] if path.exists() else {}
