"""From evaluations to cells: means over seeds with intervals, the published number beside them, and a verdict."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdrl.errors import UserError
from experiments import published
from experiments.data import DataSettings
from experiments.files import write_json, write_text
from experiments.measurement import COLUMNS, Measurement, interval
from experiments.metrics import metric
from experiments.published import Number
from experiments.runs.machine import commit, device_name, resolve_device, versions

if TYPE_CHECKING:
    from experiments.plan import Plan, Row

_TOLERANCE = 0.05
"""A number within this share of the published one reproduces it; so does an interval no wider that holds it."""


def write_results(plan: Plan, command: Sequence[str]) -> Path:
    """Write cells.csv, experiment.json and provenance.json of a plan; returns their folder."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(cell for row in plan.rows for cell in _row_cells(plan, row))
    write_text(plan.results / "cells.csv", text.getvalue())
    write_json(plan.results / "experiment.json", _facts(plan))
    write_json(plan.results / "provenance.json", provenance(plan, command))
    return plan.results


def provenance(plan: Plan, command: Sequence[str]) -> dict[str, Any]:
    """Where numbers come from: command, commit, machine, versions, data, settings of every run."""
    training = DataSettings(**plan.config["data"]).load("train")
    return {
        "command": " ".join(command),
        "commit": commit(),
        "changed": list(plan.changed),
        "device": device_name(resolve_device(plan.config["device"])),
        **versions(),
        "data": {"name": training.name, "source": training.source, "sha256": training.checksum},
        "protocol": plan.config["metrics"],
        "configs": {str(job.run.path): asdict(job.settings) for job in plan.jobs()},
    }


def check_writable(plan: Plan) -> None:
    """Raises `UserError` unless results can be written: asked before hours are spent on them."""
    try:
        plan.results.mkdir(parents=True, exist_ok=True)
        (plan.results / ".writable").touch()
        (plan.results / ".writable").unlink()
    except OSError as error:
        reason = f"cannot write to {plan.results} ({error.strerror})"
        raise UserError(f"{reason}; choose another folder: results=…") from error


def verdict(plan: Plan, measured: tuple[float, float, float], number: Number | None, protocol: str) -> str:
    """The verdict of a measured number (mean, low, high; NaN for a run that diverged) on the published one.

    Nothing is reproduced or off unless all that determines the number, protocol and scale among it, is the published
    one's. An interval that holds the published number counts only where it is narrow enough to mean something.
    """
    same = plan.scale == "paper" and not plan.changed
    if number is None or not number.comparable or not same or protocol not in number.protocols:
        return "different-scale"
    value, low, high = measured
    if number.value is None or math.isnan(value):  # "does not converge"
        return "reproduced" if number.value is None and math.isnan(value) else "off"
    allowed = _TOLERANCE * abs(number.value)
    inside = low <= number.value <= high and high - low <= 2 * allowed
    return "reproduced" if inside or abs(value - number.value) <= allowed else "off"


def _row_cells(plan: Plan, row: Row) -> Iterator[dict[str, Any]]:
    # What is there: training, evaluations, and their numbers by what they are about.
    statuses = [evaluation.run.status() for evaluation in row.evaluations]
    results = [evaluation.folder.result() for evaluation in row.evaluations]
    data, settings = row.evaluations[0].run_settings.data, row.evaluations[0].settings
    groups: dict[tuple[Any, ...], list[Measurement]] = {}
    for measurement in (measurement for result in results if result for measurement in result.measurements):
        key = (measurement.dataset, measurement.metric, measurement.protocol, *measurement.about().values())
        groups.setdefault(key, []).append(measurement)

    # What all cells share. A run and its evaluation may be of different commits and devices.
    ended = [status for status in statuses if status]
    sources = [source for source in (*statuses, *results) if source]
    devices, commits = {source.device for source in sources}, {source.commit for source in sources}
    diverged = [
        f"seed {evaluation.seed} diverged at iteration {status.iterations}"
        for evaluation, status in zip(row.evaluations, statuses, strict=True)
        if status and status.status == "diverged"
    ]
    budget = row.evaluations[0].run_settings.budget if ended else 0
    if not isinstance(budget, int):  # seconds: what they paid for
        budget = round(float(np.mean([status.grad_evals for status in ended])))
    shared = {
        **{"experiment": plan.name, "scale": plan.scale, "row": row.id, "label": row.label, "method": row.method},
        "seeds": 0,
        "budget": budget,
        "train_seconds": round(float(np.mean([status.seconds for status in ended])), 1) if ended else 0.0,
        "device": ", ".join(sorted(devices)) or device_name(resolve_device(plan.config["device"])),
        "commit": " ".join(sorted(commits)) or commit(),
        "runs": " ".join(str(evaluation.run.path) for evaluation in row.evaluations),
        "note": "; ".join(diverged),
    }

    def beside_published(about: Measurement, value: float, low: float, high: float) -> dict[str, Any]:
        dataset = about.dataset or data.name
        number = published.find(row.published, dataset, about) if row.published else None
        return {
            **shared, **about.about(), "dataset": dataset, "metric": about.metric, "protocol": about.protocol,
            "image_size": about.image_size or data.image_size, "value": value,
            "published": number.text if number else "", "published_status": number.status if number else "",
            "verdict": verdict(plan, (value, low, high), number, about.protocol),
        }  # fmt: skip

    # One cell for each.
    for measurements in groups.values():
        first = measurements[0]
        value, low, high = map(float, interval([measurement.value for measurement in measurements]))
        smallest, largest = metric(first.metric).bounds
        seconds = [math.nan if m.seconds is None else m.seconds for m in measurements]
        yield {
            **beside_published(first, value, low, high),
            "low": max(low, smallest) if math.isfinite(low) else low,
            "high": min(high, largest) if math.isfinite(high) else high,
            "seeds": len(measurements),
            "samples": first.samples,
            "grad_evals": "" if first.grad_evals is None else round(first.grad_evals, 1),
            "sample_seconds": round(float(np.mean(seconds)), 3),
        }

    # Nothing is measured: not run yet, or diverged, which is an outcome too.
    if not groups:
        protocol, weight = plan.config["metrics"], settings.get("guidance", settings.get("weight"))
        nothing = Measurement(
            metric=protocol.get("metrics", ["fd"])[0], protocol=protocol["name"], value=math.nan, samples=0,
            steps=settings.get("steps"), weight=weight,
        )  # fmt: skip
        cell = beside_published(nothing, math.nan, math.nan, math.nan)
        yield cell if shared["note"] else {**cell, "published": "", "published_status": "", "verdict": "not-run"}


def _facts(plan: Plan) -> dict[str, Any]:
    """experiment.json: title, question, figures and order, and where each row's runs are."""
    rows = [
        {
            "row": row.id,
            "label": row.label,
            "method": row.method,
            "method_label": row.evaluations[0].run_settings.method.get("label") or row.method,
            "evaluations": [
                {"seed": one.seed, "folder": str(one.folder.path), "run": str(one.run.path)} for one in row.evaluations
            ],
        }
        for row in plan.rows
    ]
    facts = {name: getattr(plan, name) for name in ("name", "title", "question", "figures", "order")}
    return {**facts, "rows": rows}
