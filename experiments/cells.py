"""From evaluations to cells: means over seeds with intervals, the published number beside them, and a verdict."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cdrl.errors import UserError
from experiments.evaluate import Measurement
from experiments.files import read_json, write_json, write_text
from experiments.plan import Evaluation, Plan, Row
from experiments.provenance import commit, device_name, provenance, resolve_device
from experiments.report import published
from experiments.statistics import interval

COLUMNS = (
    "experiment", "scale", "row", "dataset", "metric", "protocol", "value", "low", "high", "seeds", "samples",
    "published", "published_status", "verdict", "grad_evals", "train_seconds", "sample_seconds", "device", "commit",
    "runs", "label", "method", "budget", "note",
)  # fmt: skip
_TOLERANCE = 0.05
"""A number within this share of the published one reproduces it; so does an interval no wider that holds it."""


def write_results(plan: Plan, command: Sequence[str]) -> Path:
    """Write cells.csv, rows.json and provenance.json of a plan; returns their folder."""
    cells = [cell for row in plan.rows for cell in _row_cells(plan, row)]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    write_text(plan.results / "cells.csv", text.getvalue())
    write_json(plan.results / "rows.json", [_row_facts(row) for row in plan.rows])
    write_json(plan.results / "provenance.json", provenance(plan, command))
    return plan.results


def check_writable(plan: Plan) -> None:
    """Raises `UserError` unless results can be written: asked before hours are spent on them."""
    try:
        plan.results.mkdir(parents=True, exist_ok=True)
        (plan.results / ".writable").touch()
        (plan.results / ".writable").unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {plan.results} ({error.strerror}); choose another folder: results=…"
        ) from error


def _row_cells(plan: Plan, row: Row) -> Iterable[dict[str, Any]]:
    found: dict[tuple[str, str, str, str], list[tuple[Evaluation, Measurement]]] = {}
    results = [_facts(evaluation.folder / "result.json") for evaluation in row.evaluations]
    for evaluation, result in zip(row.evaluations, results, strict=True):
        for measurement in result.get("measurements", ()):
            dataset = measurement.get("dataset", evaluation.run.config["data"]["name"])
            key = (measurement.get("row", ""), dataset, measurement["metric"], measurement["protocol"])
            found.setdefault(key, []).append((evaluation, measurement))
    shared = _shared_facts(plan, row, results)
    if not found:
        yield {**shared, **_nothing_measured(plan, row, diverged=bool(shared["note"]))}
    for (suffix, dataset, metric, protocol), pairs in found.items():
        value, low, high = map(float, interval([measurement["value"] for _, measurement in pairs]))
        named = published.find(row.published, dataset, metric) if row.published else None
        yield {
            **shared,
            "row": f"{row.id} {suffix}".strip(),
            "label": f"{row.label} {suffix}".strip(),
            "dataset": dataset,
            "metric": metric,
            "protocol": protocol,
            "value": value,
            "low": low,
            "high": high,
            "seeds": len(pairs),
            "samples": pairs[0][1]["samples"],
            **_beside(named),
            "verdict": verdict(plan, (value, low, high), named, protocol),
            "grad_evals": round(pairs[0][1]["grad_evals"], 1) if "grad_evals" in pairs[0][1] else "",
            "sample_seconds": round(float(np.mean([m.get("seconds", math.nan) for _, m in pairs])), 3),
        }


def _nothing_measured(plan: Plan, row: Row, diverged: bool) -> dict[str, Any]:
    """The one cell of a row without a number: not run yet, or diverged, which is an outcome too."""
    dataset, protocol = row.evaluations[0].run.config["data"]["name"], plan.config["metrics"]["name"]
    named = published.find(row.published, dataset, "fd") if row.published else None
    about = {"dataset": dataset, "metric": "fd", "protocol": protocol, "value": math.nan}
    if not diverged:
        return about
    return {**about, **_beside(named), "verdict": verdict(plan, (math.nan, math.nan, math.nan), named, protocol)}


def _beside(named: published.Number | None) -> dict[str, Any]:
    return {"published": named.text if named else "", "published_status": named.status if named else ""}


def _shared_facts(plan: Plan, row: Row, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    statuses = [_facts(evaluation.run.folder / "status.json") for evaluation in row.evaluations]
    diverged = [f"seed {e.run.seed} diverged at iteration {s['iterations']}"
                for e, s in zip(row.evaluations, statuses, strict=True) if s.get("status") == "diverged"]  # fmt: skip
    seconds = [status["seconds"] for status in statuses if "seconds" in status]
    made = [*statuses, *results]  # a run and a look at it may be of different commits
    return {
        "experiment": plan.name,
        "scale": plan.scale,
        "row": row.id,
        "label": row.label,
        "method": row.method,
        "seeds": 0,
        "verdict": "not-run",
        "budget": row.evaluations[0].run.config["budget"] if seconds else 0,
        "train_seconds": round(float(np.mean(seconds)), 1) if seconds else 0.0,
        "device": _all_of("device", made) or device_name(resolve_device(plan.config["device"])),
        "commit": _all_of("commit", made, " ") or commit(),
        "runs": " ".join(str(evaluation.run.folder) for evaluation in row.evaluations),
        "note": "; ".join(diverged),
    }


def _all_of(name: str, made: Sequence[dict[str, Any]], between: str = ", ") -> str:
    return between.join(sorted({facts[name] for facts in made if name in facts}))


def verdict(plan: Plan, measured: tuple[float, float, float], named: published.Number | None, protocol: str) -> str:
    """What a number (mean, low, high; NaN for a run that diverged) says of the published one.

    Nothing is reproduced or off unless all that determines the number, protocol and scale among it, is the published
    one's. An interval that holds the published number counts only where it is narrow enough to mean something.
    """
    same = plan.scale == "paper" and not plan.changed
    if named is None or not named.comparable or not same or protocol not in named.protocols:
        return "different-scale"
    value, low, high = measured
    if named.value is None or math.isnan(value):  # "does not converge"
        return "reproduced" if named.value is None and math.isnan(value) else "off"
    allowed = _TOLERANCE * abs(named.value)
    held = low <= named.value <= high and high - low <= 2 * allowed
    return "reproduced" if held or abs(value - named.value) <= allowed else "off"


def _facts(path: Path) -> dict[str, Any]:
    """What a run or an evaluation left; nothing where it has not ended."""
    return read_json(path) if path.exists() else {}


def _row_facts(row: Row) -> dict[str, Any]:
    return {
        "row": row.id,
        "label": row.label,
        "method": row.method,
        "evaluations": [
            {"seed": e.run.seed, "folder": str(e.folder), "run": str(e.run.folder)} for e in row.evaluations
        ],
    }
