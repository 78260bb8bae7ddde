"""From a manifest to what has to be done: rows, runs and evaluations, what of it is missing, and what it costs.

A run is a pure function of (data, method, budget, seed), and an evaluation of (run, its settings, protocol): both live
in folders named by the hash of exactly that. So experiments share what they can, and the same command finds its own
work.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cdrl import precision
from cdrl.errors import UserError
from experiments import checks, evaluate
from experiments.configuration import digest, merged, plain, resolve
from experiments.data import DataSettings, at_hand
from experiments.evaluate import scores_samples
from experiments.files import misfit
from experiments.metrics import Protocol, Statistics, protocols
from experiments.runs import loggers
from experiments.runs.folder import EvaluationFolder, RunFolder, RunSettings
from experiments.runs.machine import commit
from experiments.runs.trained import planned_iterations, training_cost


@dataclass(frozen=True)
class Evaluation:
    """One way of looking at a run."""

    run: RunFolder
    run_settings: RunSettings
    settings: dict[str, Any]

    @property
    def folder(self) -> EvaluationFolder:
        return self.run.evaluation(self.settings)

    @property
    def seed(self) -> int:
        return self.run_settings.seed


@dataclass(frozen=True)
class Job:
    """What one process does: finish a run, then evaluate it."""

    run: RunFolder
    settings: RunSettings
    evaluations: tuple[Evaluation, ...]

    def want(self) -> None:
        """Write what is wanted into the run's folder. Raises `UserError` where it cannot be written."""
        self.run.want(self.settings)
        for evaluation in self.evaluations:
            evaluation.folder.want(evaluation.settings)


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
    """An experiment at a scale.

    Attributes:
        name, scale: of the experiment.
        title, question, figures, order: as in its manifest.
        rows: of its table.
        results: where tables and figures go.
        config: the resolved configuration.
        changed: settings that are not the experiment's own at this scale, as ``key=value``.
    """

    name: str
    scale: str
    title: str
    question: str
    figures: tuple[str, ...]
    order: int
    rows: tuple[Row, ...]
    results: Path
    config: dict[str, Any]
    changed: tuple[str, ...] = ()

    def jobs(self) -> list[Job]:
        """Every run with its distinct evaluations, in the manifest's order, seeds interleaved."""
        depth = max((len(row.evaluations) for row in self.rows), default=0)
        return one_per_run(
            Job(evaluation.run, evaluation.run_settings, (evaluation,))
            for position in range(depth)
            for row in self.rows
            for evaluation in row.evaluations[position : position + 1]
        )

    def missing(self, again: bool = True) -> list[Job]:
        """The jobs that are not done; a run that diverged stays as it is, and nothing is measured on it.

        Args:
            again: what went wrong is not done either, where it is worth another try: an evaluation that failed
                (`Result.stands`), and with ``retry=true`` a run that diverged.
        """
        pending, code = [], commit() if again else ""
        for job in self.jobs():
            state = job.run.state if job.settings.recipe.trains else "finished"
            evaluations = tuple(
                one for one in job.evaluations if not (one.folder.stands(code) if again else one.folder.done)
            )
            given_up = state == "diverged" and not (again and self.config["retry"])
            if not given_up and (state != "finished" or evaluations):
                pending.append(Job(job.run, job.settings, evaluations))
        return pending

    def statistics(self) -> list[Statistics]:
        """The reference statistics that evaluations need and nobody has made."""
        needed: dict[Path, Statistics] = {}
        for job in self.missing():
            for evaluation in job.evaluations:
                if scores_samples(evaluation.settings["kind"]):
                    protocol = Protocol.from_config(evaluation.settings["metrics"])
                    made = Statistics(protocol, job.settings.data, Path(self.config["cache"]))
                    needed.setdefault(made.folder.path, made)
        return [made for made in needed.values() if not made.done]


def one_per_run(jobs: Iterable[Job]) -> list[Job]:
    """The same work in its order, one job per run with its distinct evaluations."""
    merged_jobs: dict[Path, Job] = {}
    for job in jobs:
        known = merged_jobs.setdefault(job.run.path, Job(job.run, job.settings, ()))
        folders = {evaluation.folder for evaluation in known.evaluations}
        new = tuple(evaluation for evaluation in job.evaluations if evaluation.folder not in folders)
        merged_jobs[job.run.path] = Job(job.run, job.settings, known.evaluations + new)
    return list(merged_jobs.values())


def make_plan(config: DictConfig) -> Plan:
    """Expand a resolved configuration.

    Raises:
        UserError: a row names an unknown method or setting, or a setting does not fit.
    """
    # The scale comes first: the rest may be interpolated from it.
    checks.scale(plain(config.scale))
    checks.launcher(plain(config.launcher))
    everything = plain(config)
    checks.shape(everything)
    loggers.check(everything["logger"])
    if not isinstance(everything["retry"], bool):
        raise UserError(f"retry must be true or false, not {everything['retry']}")
    experiment = everything["experiment"]
    for group in ("experiment", "scale", "data", "metrics"):
        checks.word(f"{group}.name", everything[group]["name"])
    checks.lines("", everything)
    own = _own(experiment["name"], everything["scale"]["name"])
    for group in ("experiment", "data", "metrics"):
        checks.like(group, everything[group], own[group])

    changed = changes(everything)
    rows = [row for name, row in experiment["rows"].items() if row for row in _swept(name, row)]
    return Plan(
        name=experiment["name"],
        scale=everything["scale"]["name"],
        title=experiment["title"],
        question=experiment["question"],
        figures=tuple(experiment["figures"]),
        order=experiment["order"],
        rows=tuple(_row(config, everything, name, row) for name, row in rows),
        results=_results(everything, changed),
        config=everything,
        changed=changed,
    )


def changes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings that are not the experiment's own at its scale, as ``key=value``; null is "none".

    Where data, runs and results are, and what they are computed on, does not count.
    """
    own = _determining(_own(config["experiment"]["name"], config["scale"]["name"]))
    asked = _determining(config)
    nulls = tuple(f"{key}." for key, value in asked.items() if value is None and key not in own)
    absent = object()
    different = [key for key in {**asked, **own} if own.get(key, absent) != asked.get(key, absent)]
    return tuple(f"{key}={json.dumps(asked.get(key))}" for key in different if not key.startswith(nulls))


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
    # Where things lie; the authors' weights are a file that this one experiment is about.
    places = {
        "data.data_cache",
        "methods.released.checkpoint",
        *(["data.root"] if config["data"]["name"] != "folder" else []),
    }
    return {key: value for key, value in flat.items() if key not in places}


def _results(config: Mapping[str, Any], changed: tuple[str, ...]) -> Path:
    """Where the tables go: what was changed must not take the place of the experiment's own results."""
    name, scale = config["experiment"]["name"], config["scale"]["name"]
    if config["results"]:
        return Path(config["results"]) / name / scale
    return Path("results") / name / (f"{scale}-{digest(changed)[:6]}" if changed else scale)


def _swept(name: str, row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """A row, or one per value of its sweep."""
    if not (sweep := row.get("sweep")):
        return [(name, row)]
    rows = []
    for value in sweep["values"]:
        node = OmegaConf.create(copy.deepcopy({key: item for key, item in row.items() if key != "sweep"}))
        try:
            OmegaConf.update(node, sweep["key"], value, force_add=True)
            single = plain(node)
            single["label"] = sweep.get("label", "{}").format(value)
            if single.get("published"):
                single["published"] = {
                    key: text.format(value) if isinstance(text, str) else text
                    for key, text in single["published"].items()
                }
        except (OmegaConfBaseException, LookupError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"row '{name}': the sweep over {checks.shown(sweep['key'])} fails: {error}") from None
        if wrong := misfit(single, checks.Row):
            raise UserError(f"row '{name}': the sweep makes a row in which {wrong}")
        rows.append((f"{name}-{value}", single))
    return rows


def _row(config: DictConfig, everything: Mapping[str, Any], name: str, row: dict[str, Any]) -> Row:
    if row["method"] not in config.methods:
        raise UserError(f"row '{name}': unknown method '{row['method']}'; there are {', '.join(config.methods)}")

    # What the row trains, and on what.
    own = _own(config.experiment.name, config.scale.name)["methods"]
    method = merged(config.methods[row["method"]], row.get("train") or {}, f"row '{name}'")
    checks.like(f"methods.{row['method']}", method, own.get(row["method"]))
    checks.count(f"row '{name}': batch_size", method.get("batch_size", 1))
    data_settings = merged(config.data, row.get("data") or {}, f"row '{name}'")
    checks.data(f"row '{name}': ", data_settings)
    data = DataSettings(**data_settings)
    method_settings = {"data": data, "method": method}
    budget = _budget(config, everything, f"row '{name}'", row.get("budget", 1.0), method_settings)

    # Who trains it: nobody may be without a shard.
    each, shards = config.launcher.gpus_per_run, method.get("shards")
    if shards is not None and each > shards:
        raise UserError(
            f"row '{name}' has {shards} shard{'s' * (shards != 1)} for launcher.gpus_per_run={each}: take no more GPUs "
            f"than shards, or another run by methods.{row['method']}.shards={each}"
        )

    # How it is evaluated, once per seed.
    evaluation = _evaluation(everything, row["evaluate"])
    evaluate.check(evaluation)
    seeds = everything["scale"]["seeds"]
    if (own_seeds := row.get("seeds")) is not None:
        checks.seeds(f"row '{name}': seeds", own_seeds)
        if seeds == _own(config.experiment.name, config.scale.name)["scale"]["seeds"]:  # else the command line's count
            seeds = own_seeds
    evaluations = []
    for seed in seeds:
        settings = RunSettings(
            data=data,
            method=method,
            budget=budget,
            reports=everything["scale"]["reports"],
            milestones=tuple(everything["scale"]["milestones"]),
            seed=seed,
            rollbacks=everything["scale"]["rollbacks"],
        )
        precision.check(settings.recipe.precision)
        folder = settings.folder(Path(everything["runs"]), row["method"])
        evaluations.append(Evaluation(folder, settings, evaluation))
    return Row(
        id=name,
        label=row.get("label") or method["label"],
        method=row["method"],
        published=row.get("published"),
        evaluations=tuple(evaluations),
    )


def _budget(
    config: DictConfig, everything: Mapping[str, Any], where: str, wanted: Any, trained: Mapping[str, Any]
) -> int | dict[str, float]:
    """A row's share of the scale's budget; or ``{iterations: n}``, or ``{iterations_of: row}``, at its own cost.

    Args:
        config, everything: resolved, and as plain data.
        where: the row in words.
        wanted: as configured.
        trained: the row's data and method, as in `RunSettings`.
    """
    scale = everything["scale"]
    if not isinstance(wanted, Mapping):
        checks.positive(f"{where}: budget", wanted)
        if isinstance(scale["budget"], Mapping):
            return {"seconds": scale["budget"]["seconds"] * wanted}
        checks.count(f"{where}: scale.budget", round(scale["budget"] * wanted))
        return round(scale["budget"] * wanted)

    # As many iterations as were named, or as another row's budget pays for.
    if set(wanted) == {"iterations"}:
        iterations = wanted["iterations"]
        checks.count(f"{where}: budget.iterations", iterations)
    elif set(wanted) == {"iterations_of"}:
        name = wanted["iterations_of"]
        other = everything["experiment"]["rows"].get(name) if isinstance(name, str) else None
        if other is None or isinstance(other.get("budget"), Mapping):
            raise UserError(f"{where}: budget.iterations_of must name a row with a share of the budget, not '{name}'")
        settings = _row(config, everything, name, other).evaluations[0].run_settings
        if not isinstance(settings.budget, int):
            raise UserError(
                f"{where}: its length is that of '{name}', which a budget in seconds leaves open; leave it out"
            )
        iterations = planned_iterations(settings)
    else:
        raise UserError(f"{where}: budget must be a share, {{iterations: n}} or {{iterations_of: row}}, not {wanted}")
    own = RunSettings(budget=1, reports=1, milestones=(), seed=0, **trained)
    return math.ceil(iterations * training_cost(own) * own.recipe.batch_size)


def _evaluation(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation's settings with the scale's sample counts and the protocol."""
    scale = config["scale"]
    shared = {"samples": scale["samples"], "batch": scale["sample_batch"]}
    metrics = {**config["metrics"], **settings.get("metrics", {})}
    if "optional" in settings:  # what is at hand now, by name: an evaluation without them is another one
        others = at_hand(settings["optional"], config["data"]["data_cache"])
        settings = {key: value for key, value in settings.items() if key != "optional"}
        settings["outside"] = [*settings["outside"], *others]
    if settings.get("classes_by"):  # another protocol by name, of which what it says of classes is measured beside
        checks.word("evaluate.classes_by", settings["classes_by"])
        judge = asdict(protocols.load(settings["classes_by"]).judge)
        settings = {**settings, "classes_by": json.loads(json.dumps(judge))}
    if settings.get("curve"):
        shared["milestone_samples"] = scale["milestone_samples"]
    return {**shared, **settings, "metrics": metrics}
