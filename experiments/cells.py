"""From evaluations to cells: what was run and measured, on record; means over seeds with intervals; verdicts.

    plan → experiment.json (`recorded`: every status and every result) → cells.csv (`derived`)

The record holds all that cells depend on, so that they can be derived again wherever it is (`experiments.verify`).
provenance.json has the hash of each file that the record was taken from.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import checksums, published
from experiments.data import DataSettings
from experiments.files import csv_text, json_text, sha256
from experiments.measurement import COLUMNS, Measurement, by_key, interval
from experiments.metrics import metric
from experiments.published import Number
from experiments.runs.folder import Result, Status
from experiments.runs.machine import commit, device_name, resolve_device, versions

if TYPE_CHECKING:
    from experiments.plan import Evaluation, Plan, Row

FILES = ("cells.csv", "experiment.json", "provenance.json")
"""What is written here."""
_NO_NUMBERS = ("diverged", "failed")
"""Outcomes of evaluations of which nothing was measured."""
_TOLERANCE = 0.05
"""A number within this share of the published one reproduces it; so does an interval no wider that holds it."""


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What decides whether a measured number may be compared with a published one.

    Attributes:
        scale: "nano", "mini" or "paper".
        changed: whether a setting is not the experiment's own.
        protocol: that measured it.
        model: the published model that the row reproduces, as in published.csv; empty where it is none of them.
        images: where the pixels came from, in words.
    """

    scale: str
    changed: bool
    protocol: str
    model: str
    images: str = ""

    def same_model(self, number: Number) -> bool:
        """Whether the row is the model that the number is of."""
        return bool(self.model) and self.model == number.identity

    def same(self, number: Number) -> bool:
        """Whether nothing that determines a number differs: model, data, protocol, scale and settings."""
        measured_alike = self.protocol in number.protocols and number.comparable
        same_images = all(word in self.images for word in number.images.split())
        paper = self.scale == "paper" and not self.changed
        return self.same_model(number) and measured_alike and same_images and paper


def write_results(plan: Plan, command: Sequence[str]) -> Path:
    """Write cells.csv, experiment.json and provenance.json of a plan, and their checksums; returns their folder.

    Raises `UserError` where one of them cannot be written: then all are as they were.
    """
    record, origin = recorded(plan), provenance(plan, command)
    contents = (as_csv(derived(record, origin)), json_text(record), json_text(origin))
    checksums.write(plan.results, dict(zip(FILES, contents, strict=True)), anew=True)
    return plan.results


def recorded(plan: Plan) -> dict[str, Any]:
    """experiment.json: the experiment in words, its rows, and each run's status and result as their files have them."""

    def row_record(row: Row) -> dict[str, Any]:
        first = row.evaluations[0]
        method = first.run_settings.method
        return {
            "row": row.id,
            "label": row.label,
            "method": row.method,
            "method_label": method.get("label") or row.method,
            "published": row.published,
            "data": {"name": first.run_settings.data.name, "image_size": first.run_settings.data.image_size},
            "chain": _chain(method, first.settings),
            "asked": {name: first.settings[name] for name in ("steps", "weight", "guidance") if name in first.settings},
            "evaluations": [
                {
                    "seed": one.seed,
                    "folder": str(one.folder.path),
                    "run": str(one.run.path),
                    "status": one.run.content("status.json", Status),
                    "result": one.folder.content("result.json", Result),
                }
                for one in row.evaluations
            ],
        }

    facts = {name: getattr(plan, name) for name in ("name", "title", "question", "figures", "order", "scale")}
    protocol = plan.config["metrics"]
    return {
        **facts,
        "changed": list(plan.changed),
        "protocol": {"name": protocol["name"], "metrics": list(protocol.get("metrics", ["fd"]))},
        "device": device_name(resolve_device(plan.config["device"])),
        "commit": commit(),
        "rows": [row_record(row) for row in plan.rows],
    }


def provenance(plan: Plan, command: Sequence[str]) -> dict[str, Any]:
    """Where numbers come from: command, commit, machine, versions, data, settings of every run, and the hashes of the
    files that cells and figures come from."""
    training = DataSettings(**plan.config["data"]).load("train")
    evaluations = [evaluation for row in plan.rows for evaluation in row.evaluations]
    return {
        "command": " ".join(command),
        "commit": commit(),
        "changed": list(plan.changed),
        "device": device_name(resolve_device(plan.config["device"])),
        **versions(),
        "data": {"name": training.name, "source": training.source, "sha256": training.checksum},
        "protocol": plan.config["metrics"],
        "configs": {str(job.run.path): asdict(job.settings) for job in plan.jobs()},
        "inputs": {str(path): sha256(path) for evaluation in evaluations for path in _inputs(evaluation)},
    }


def _inputs(evaluation: Evaluation) -> list[Path]:
    """The files that cells and figures are made from."""
    run, folder = evaluation.run, evaluation.folder.path
    arrays = sorted(path for path in folder.glob("*") if path.suffix in (".npy", ".npz"))
    every = [run.path / "status.json", run.metrics.path, folder / "result.json", *arrays]
    return [path for path in every if path.exists()]


def _chain(method: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """K and b² of a row: of its training chain, and the K that its samples are drawn with."""
    chain, sampling = method.get("chain") or {}, method.get("sampling") or {}
    steps = chain.get("steps", method.get("steps"))
    sampled = settings.get("steps", sampling.get("steps", steps))
    return {"steps": steps, "sampling_steps": sampled, "step_variance": chain.get("step_variance")}


def derived(record: Mapping[str, Any], origin: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cells of a record, a dict of `COLUMNS` each.

    Args:
        record: as `recorded` gives it, also after a way through JSON.
        origin: as `provenance` gives it; only where the images came from counts.
    """
    return [cell for row in record["rows"] for cell in _row_cells(record, row, origin.get("data", {}))]


def rows_without_survivors(folder: Path) -> list[str]:
    """The rows of a results folder of which every seed diverged, but where that is the published outcome."""
    with (folder / "cells.csv").open(newline="") as file:
        lost = [line["row"] for line in csv.DictReader(file) if line["verdict"] == "diverged" and line["seeds"] == "0"]
    return list(dict.fromkeys(lost))


def as_csv(cells: Sequence[Mapping[str, Any]]) -> str:
    """cells.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_text(value) for name, value in cell.items()} for cell in cells)
    return text.getvalue()


def verdict(measured: tuple[float, float, float], number: Number | None, about: Circumstances) -> str:
    """The verdict of a measured number (mean, low, high) on the published one.

    Nothing is reproduced or off unless all that determines the number is the published one's. An interval that holds
    the published number counts only where it is narrow enough to mean something.
    """
    if number is not None and not about.same_model(number):
        return "other-model"
    if number is None or not about.same(number):
        return "different-scale"
    if number.value is None:  # "does not converge"
        return "off"
    value, low, high = measured
    allowed = _TOLERANCE * abs(number.value)
    inside = low <= number.value <= high and high - low <= 2 * allowed
    return "reproduced" if inside or abs(value - number.value) <= allowed else "off"


def diverged_verdict(number: Number | None, about: Circumstances) -> str:
    """The verdict where every run diverged: an outcome, which may be the published one."""
    return "reproduced" if number is not None and number.value is None and about.same(number) else "diverged"


def outcome(evaluation: Mapping[str, Any]) -> str:
    """How an evaluation on record ended, its run included: "done", "diverged" or "failed"; "trained" before it was
    made, "" before anything was."""
    status, result = evaluation["status"], evaluation["result"]
    if status and status["status"] == "diverged":
        return "diverged"
    if result:
        return str(result.get("outcome", "done"))
    return "trained" if status else ""


def _note(evaluation: Mapping[str, Any]) -> str:
    """Why a run has no number."""
    seed, status, result = (evaluation[name] for name in ("seed", "status", "result"))
    if status and status["status"] == "diverged":
        return f"seed {seed} diverged at iteration {status['iterations']}"
    how = "diverged" if result["outcome"] == "diverged" else "failed"
    return f"seed {seed}: evaluation {how}: {result['reason']}"


def _row_cells(
    record: Mapping[str, Any], row: Mapping[str, Any], images: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    # What is there: training, evaluations, and their numbers by what they are about, one place for each run.
    evaluations = row["evaluations"]
    statuses = [evaluation["status"] for evaluation in evaluations]
    results = [evaluation["result"] for evaluation in evaluations]
    groups: dict[tuple[Any, ...], list[Measurement | None]] = {}
    for place, result in enumerate(results):
        own = by_key(map(Measurement.from_json, result["measurements"] if result else ()))
        for key, measurement in own.items():
            groups.setdefault(key, [None] * len(evaluations))[place] = measurement

    # How training and evaluations ended. What training took is the mean of the runs that the numbers are of.
    outcomes = list(map(outcome, evaluations))
    ended = [status for status in statuses if status]
    sound = [status for status, how in zip(statuses, outcomes, strict=True) if status and how not in _NO_NUMBERS]
    sound = sound or ended
    diverged = outcomes.count("diverged")
    notes = [_note(evaluation) for evaluation, how in zip(evaluations, outcomes, strict=True) if how in _NO_NUMBERS]
    survivors = sum(how not in ("", *_NO_NUMBERS) for how in outcomes)
    rolled_back = [
        f"seed {evaluation['seed']} went back {status['rollbacks']}x, which took {status['lost']} iterations"
        for evaluation, status in zip(evaluations, statuses, strict=True)
        if status and status.get("rollbacks")
    ]
    if notes and survivors:
        notes.insert(0, f"mean of the {survivors} that finished" if survivors > 1 else "of the one that finished")

    def mean_of(name: str) -> float:
        return float(np.mean([status[name] for status in sound])) if sound else 0.0

    # What all cells share. A run and its evaluation may be of different commits and devices.
    sources = [source for source in (*statuses, *results) if source]
    shared = {
        **{"experiment": record["name"], "scale": record["scale"]},
        **{name: row[name] for name in ("row", "label", "method")},
        "seeds": 0,
        "values": " ".join(["nan"] * len(evaluations)),
        "diverged": f"{diverged} of {len(ended) or len(evaluations)}" if ended or diverged else "",
        "rollbacks": " ".join(str(status.get("rollbacks", 0) if status else 0) for status in statuses) if ended else "",
        "updates": round(mean_of("iterations")),
        "train_cost": round(mean_of("grad_evals")),
        "train_seconds": round(mean_of("seconds"), 1),
        "chain_steps": row["chain"]["steps"],
        "sampling_steps": row["chain"]["sampling_steps"],
        "step_variance": row["chain"]["step_variance"],
        "device": ", ".join(sorted({source["device"] for source in sources})) or record["device"],
        "commit": " ".join(sorted({source["commit"] for source in sources})) or record["commit"],
        "runs": " ".join(evaluation["run"] for evaluation in evaluations),
        "note": "; ".join([*notes, *rolled_back]),
    }

    def beside_published(about: Measurement, measured: tuple[float, float, float] | None) -> dict[str, Any]:
        """A cell but for its number; ``measured`` is None where there is none."""
        dataset = about.dataset or row["data"]["name"]
        number = published.find(row["published"], dataset, about) if row["published"] else None
        circumstances = Circumstances(
            scale=record["scale"], changed=bool(record["changed"]), protocol=about.protocol,
            model=(row["published"] or {}).get("reproduces") or "",
            images=images.get("source", "") if images.get("name") == dataset else "",
        )  # fmt: skip
        # A mean of survivors agrees with nothing.
        if diverged == len(outcomes):
            judged = diverged_verdict(number, circumstances)
        elif notes or measured is None:
            judged = "diverged" if diverged else "not-run"
        else:
            judged = verdict(measured, number, circumstances)
        return {
            **shared, **about.about(), "dataset": dataset, "metric": about.metric, "protocol": about.protocol,
            "image_size": about.image_size or row["data"]["image_size"],
            "published": number.text if number else "", "published_status": number.status if number else "",
            "verdict": judged,
        }  # fmt: skip

    # One cell for each.
    for places in groups.values():
        measurements = [measurement for measurement in places if measurement]
        first = measurements[0]
        values = [measurement.value for measurement in measurements]
        value, low, high = map(float, interval(values, metric(first.metric).bounds))
        seconds = [math.nan if m.seconds is None else m.seconds for m in measurements]
        sampling = first.steps if first.steps is not None else shared["sampling_steps"]
        yield {
            **beside_published(first, (value, low, high)),
            **{"value": value, "low": low, "high": high, "seeds": len(values)},
            "values": " ".join("nan" if measurement is None else repr(measurement.value) for measurement in places),
            "samples": first.samples,
            "sampling_steps": sampling,
            "grad_evals": "" if first.grad_evals is None else round(first.grad_evals, 1),
            "sample_seconds": round(float(np.mean(seconds)), 3),
        }

    # Nothing is measured: not run yet, or diverged, which is an outcome too.
    if not groups:
        asked, protocol = row["asked"], record["protocol"]
        nothing = Measurement(
            metric=protocol["metrics"][0], protocol=protocol["name"], value=math.nan, samples=0,
            steps=asked.get("steps"), weight=asked.get("guidance", asked.get("weight")),
        )  # fmt: skip
        cell = {**beside_published(nothing, None), **dict.fromkeys(("value", "low", "high"), math.nan)}
        yield cell if diverged else {**cell, "published": "", "published_status": ""}
