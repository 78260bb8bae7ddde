"""A results folder with runs, small and made up, in a temporary directory."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.measurement import COLUMNS, Measurement
from experiments.report import build_experiment, page
from experiments.runs.folder import EvaluationFolder, Result, RunFolder, Status

METHODS = {
    "cdrl": ("CDRL", [1.0, 1.1, 1.2]),
    "drl": ("DRL", [2.0, 2.2, 2.4]),
    "short_run": ("Short-run_EBM & co", [4.0, 4.0, 4.3]),
    "real": ("Real (held out)", [0.1, 0.1, 0.1]),
    "noise": ("Gaussian noise", [20.0, 20.1, 20.2]),
}
PUBLISHED = {"cdrl": ("4.31", "confirmed"), "drl": ("9.58", "unconfirmed"), "short_run": ("44.5", "conflicting")}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """``results/`` with table1 at nano, and its ``runs/`` beside it."""
    return make_results(tmp_path)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of such a folder; to be read only."""
    results = make_results(tmp_path_factory.mktemp("report"))
    build_experiment(results / "table1" / "nano")
    return page.build(results)


def make_results(root: Path) -> Path:
    folder = root / "results" / "table1" / "nano"
    folder.mkdir(parents=True)
    with (folder / "cells.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row, (label, values) in METHODS.items():
            writer.writerows(_cells(row, label, values))
    facts = {
        "name": "table1", "title": "Table 1: sample quality", "question": "How good?", "figures": ["table1"],
        "order": 10, "rows": [_row(root, row) for row in METHODS],
    }  # fmt: skip
    (folder / "experiment.json").write_text(json.dumps(facts))
    provenance = {"command": "python -m experiments experiment=table1 scale=nano", "packages": {"torch": "2.6"}}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return root / "results"


def _cells(row: str, label: str, values: list[float]) -> list[dict[str, object]]:
    mean, spread = float(np.mean(values)), float(np.std(values))
    published, status = PUBLISHED.get(row, ("", ""))
    shared = {
        "experiment": "table1", "scale": "nano", "row": row, "label": label, "method": row, "dataset": "digits",
        "seeds": 3, "samples": 1000, "verdict": "different-scale", "grad_evals": 31, "train_seconds": 123.4,
        "sample_seconds": 1.234, "device": "a CPU", "commit": "0123456789ab", "runs": f"runs/{row}", "updates": 900,
        "train_cost": 500000, "diverged": "0 of 3", "chain_steps": 5, "sampling_steps": 15, "step_variance": 0.012,
    }  # fmt: skip
    first = {"metric": "fd", "protocol": "fd-digits", "value": mean, "low": mean - spread, "high": mean + spread,
             "values": " ".join(map(str, values)), "published": published, "published_status": status}  # fmt: skip
    second = {"metric": "precision", "protocol": "fd-digits", "value": 0.51234, "low": 0.49, "high": 0.53}
    return [{**shared, **first}, {**shared, **second}]


def _row(root: Path, row: str) -> dict[str, object]:
    evaluations = []
    for seed in range(3):
        run = RunFolder(root / "runs" / row / f"seed{seed}")
        evaluation = EvaluationFolder(run.path / "eval" / "samples")
        evaluation.path.mkdir(parents=True)
        rng = np.random.default_rng(seed)
        np.save(evaluation.path / "grid.npy", rng.integers(0, 256, (70, 8, 8, 1), dtype=np.uint8))
        if row not in ("real", "noise"):
            curve = rng.uniform(1, 2, 3) / [1, 3, 9]
            np.savez(evaluation.path / "curve.npz", grad_evals=[1000, 10000, 100000], value=curve)
            run.finish(Status(status="finished", iterations=9, seconds=123.4, grad_evals=9, commit="a", device="a CPU"))
        value = METHODS[row][1][seed]
        measurement = Measurement(metric="fd", protocol="fd-digits", value=value, samples=1000)
        evaluation.keep(Result(measurements=(measurement,), seconds=1.0, commit="a", device="a CPU"))
        run.metrics.append({"iteration": 1, "loss": [0.5]})
        places = {"folder": evaluation.path, "run": run.path}
        evaluations.append({"seed": seed, **{name: str(path.relative_to(root)) for name, path in places.items()}})
    label = METHODS[row][0]
    return {"row": row, "label": label, "method": row, "method_label": label, "evaluations": evaluations}
