"""From a manifest to what has to be done: rows, training runs, evaluations, and what of it is missing.

A training run is a pure function of (data, method, budget, seed), and an evaluation of (run, its settings, protocol):
both live in folders named by the hash of exactly that. So experiments share what they can, and the same command finds
its own work.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cdrl.errors import UserError
from experiments import checks
from experiments.configuration import digest, merged, plain, resolve
from experiments.data import at_hand, place
from experiments.files import read_json
from experiments.methods import UNTRAINED


@dataclass(frozen=True)
class Run:
    """One method trained once: its folder and everything that determines it."""

    folder: Path
    config: dict[str, Any]
    seed: int

    @property
    def status(self) -> str:
        """``missing``, ``started``, ``finished`` or ``diverged``."""
        if self.config["method"]["kind"] in UNTRAINED:
            return "finished"
        path = self.folder / "status.json"
        if path.exists():
            return read_json(path)["status"]
        return "started" if (self.folder / "config.json").exists() else "missing"

    @property
    def done(self) -> bool:
        return self.status in ("finished", "diverged")


@dataclass(frozen=True)
class Evaluation:
    """One way of looking at a run."""

    run: Run
    settings: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.run.folder / "eval" / f"{self.settings['kind']}-{digest(self.settings)}"

    @property
    def done(self) -> bool:
        return (self.folder / "result.json").exists()


@dataclass(frozen=True)
class Job:
    """What one process does: finish a run, then look at it."""

    run: Run
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True)
class Row:
    """A row of a table: one evaluation per seed."""

    id: str
    label: str
    method: str
    published: dict[str, Any] | None
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True)
class Plan:
    """An experiment at a scale."""

    name: str
    scale: str
    title: str
    question: str
    figures: tuple[str, ...]
    rows: tuple[Row, ...]
    results: Path
    config: dict[str, Any]
    changed: tuple[str, ...] = ()
    """Settings that are not the experiment's own at this scale, as ``key=value``."""

    def jobs(self) -> list[Job]:
        """Every run with its distinct evaluations, in the manifest's order, seeds interleaved."""
        depth = max((len(row.evaluations) for row in self.rows), default=0)
        return one_a_run(
            Job(evaluation.run, (evaluation,))
            for position in range(depth)
            for row in self.rows
            for evaluation in row.evaluations[position : position + 1]
        )

    def missing(self) -> list[Job]:
        """What is left to do; a run that diverged stays as it is, and nothing is measured on it."""
        left = [Job(job.run, tuple(e for e in job.evaluations if not e.done)) for job in self.jobs()]
        return [job for job in left if not job.run.done or (job.evaluations and job.run.status == "finished")]


def one_a_run(jobs: Iterable[Job]) -> list[Job]:
    """The same work in their order, one job a run with its distinct evaluations."""
    found: dict[Path, tuple[Run, dict[Path, Evaluation]]] = {}
    for job in jobs:
        _, known = found.setdefault(job.run.folder, (job.run, {}))
        for evaluation in job.evaluations:
            known.setdefault(evaluation.folder, evaluation)
    return [Job(run, tuple(known.values())) for run, known in found.values()]


def make_plan(config: DictConfig) -> Plan:
    """Expand a resolved configuration.

    Raises:
        UserError: a row names an unknown method or setting, or a setting does not fit.
    """
    checks.machinery(plain(config.scale), plain(config.launcher))  # before what is interpolated from the scale
    everything = plain(config)
    experiment = everything["experiment"]
    own = _own(experiment["name"], everything["scale"]["name"])
    for group in ("experiment", "data", "metrics"):
        checks.like(group, everything[group], own[group])
    changed = changes(everything)
    rows = [row for name, row in experiment["rows"].items() if row for row in _expanded(name, row)]
    return Plan(
        name=experiment["name"],
        scale=everything["scale"]["name"],
        title=experiment["title"],
        question=experiment["question"],
        figures=tuple(experiment["figures"]),
        rows=tuple(_row(everything, name, row) for name, row in rows),
        results=_results(everything, changed),
        config=everything,
        changed=changed,
    )


def changes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What of a configuration is not its experiment's own at its scale, as ``key=value``; null is "none".

    Where data, runs and results are, and what they are computed on, does not count.
    """
    own = _determining(_own(config["experiment"]["name"], config["scale"]["name"]))
    asked = _determining(config)
    gone = tuple(f"{key}." for key, value in asked.items() if value is None and key not in own)
    keys = [key for key in {**asked, **own} if (key in own, own.get(key)) != (key in asked, asked.get(key))]
    return tuple(f"{key}={json.dumps(asked.get(key))}" for key in keys if not key.startswith(gone))


@lru_cache
def _own(experiment: str, scale: str) -> dict[str, Any]:
    """An experiment's configuration at a scale with nothing changed."""
    return plain(resolve([f"experiment={experiment}", f"scale={scale}"]))


def _determining(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that numbers depend on, by dotted key."""
    flat: dict[str, Any] = {}

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict) and node:
            for name, value in node.items():
                walk(value, f"{key}.{name}")
        else:
            flat[key] = node

    for group in ("experiment", "scale", "data", "methods", "metrics"):
        walk(config[group], group)
    places = {"data.data_cache", *(["data.root"] if config["data"]["name"] != "folder" else [])}
    return {key: value for key, value in flat.items() if key not in places}


def _results(config: Mapping[str, Any], changed: tuple[str, ...]) -> Path:
    """Where the tables go: what was changed must not take the place of the experiment's own results."""
    name, scale = config["experiment"]["name"], config["scale"]["name"]
    if config["results"]:
        return Path(config["results"]) / name / scale
    return Path("results") / name / (f"{scale}-{digest(changed)[:6]}" if changed else scale)


def _expanded(name: str, row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """A row, or one per value of its sweep."""
    sweep = row.get("sweep")
    if not sweep:
        return [(name, row)]
    rows = []
    for value in sweep["values"]:
        single = copy.deepcopy({key: item for key, item in row.items() if key != "sweep"})
        node = OmegaConf.create(single)
        OmegaConf.update(node, sweep["key"], value, force_add=True)
        single = plain(node)
        single["label"] = sweep.get("label", "{}").format(value)
        if single.get("published"):
            single["published"] = {key: text.format(value) for key, text in single["published"].items()}
        rows.append((f"{name}-{value}", single))
    return rows


def _row(config: Mapping[str, Any], name: str, row: dict[str, Any]) -> Row:
    if row["method"] not in config["methods"]:
        raise UserError(f"row '{name}': unknown method '{row['method']}'; there are {', '.join(config['methods'])}")
    scale, own = config["scale"], _own(config["experiment"]["name"], config["scale"]["name"])["methods"]
    method = merged(config["methods"][row["method"]], row.get("train") or {}, f"row '{name}'")
    checks.like(f"methods.{row['method']}", method, own.get(row["method"]))
    data = merged(config["data"], row.get("data") or {}, f"row '{name}'")
    checks.positive(f"row '{name}': budget", row.get("budget", 1.0))
    budget = round(scale["budget"] * row.get("budget", 1.0))
    checks.count(f"row '{name}': scale.budget", budget)
    checks.count(f"row '{name}': batch_size", method.get("batch_size", 1))
    settings = _evaluation(config, row["evaluate"])
    seeds = row.get("seeds") or scale["seeds"]
    checks.seeds(f"row '{name}': seeds", seeds)
    runs = [_run(config, row["method"], method, data, budget, seed) for seed in seeds]
    return Row(
        id=name,
        label=row.get("label") or method["label"],
        method=row["method"],
        published=row.get("published"),
        evaluations=tuple(Evaluation(run, settings) for run in runs),
    )


def _evaluation(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation's settings with the scale's sample counts and the protocol."""
    scale = config["scale"]
    shared = {"samples": scale["samples"], "batch": scale["sample_batch"], "metrics": config["metrics"]}
    if "optional" in settings:  # what is at hand now, by name: an evaluation without them is another one
        cache = config["data"]["data_cache"]
        settings = {**settings, "outside": [*settings["outside"], *at_hand(settings["optional"], cache)]}
        settings.pop("optional")
    if settings.get("curve"):
        shared["milestone_samples"] = scale["milestone_samples"]
    return {**shared, **settings}


def _run(
    config: Mapping[str, Any], name: str, method: dict[str, Any], data: dict[str, Any], budget: int, seed: int
) -> Run:
    location = {key: value for key, value in data.items() if key not in ("root", "data_cache")}
    if data["name"] == "folder":  # any other name is one known data set, wherever it lies
        location["root"] = str(place("folder", data["root"]).root.absolute())
    scale = {key: config["scale"][key] for key in ("reports", "milestones")}
    settings = {key: value for key, value in method.items() if key != "label"}
    identity = {"data": location, "method": settings, "budget": budget, "scale": scale}
    if method["kind"] in UNTRAINED:
        identity = {"data": location, "method": settings}
    folder = Path(config["runs"]) / data["name"] / name / digest(identity) / f"seed{seed}"
    return Run(folder, {"data": data, "method": method, "budget": budget, "scale": scale}, seed)
