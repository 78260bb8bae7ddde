"""``cdrl plan``: what there is to do, what it costs in time and disk, and what is missing for it."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from cdrl.cost import operations
from cdrl.errors import UserError
from cdrl.networks import EnergyNet
from cdrl.recipe import ImageShape, network
from experiments import doctor, methods
from experiments.configuration import digest
from experiments.evaluate import protocols
from experiments.memory import Footprint, footprint_of
from experiments.plan import Job, Plan
from experiments.runs.folder import RunFolder, RunSettings
from experiments.runs.machine import cpu_cores, device_name, memory_bytes, resolve_device
from experiments.runs.progress import EVALUATION_SHARE, clock
from experiments.runs.trained import configured_shape

ASSUMED_FLOPS = {"cpu": 4e10, "cuda": 2e13}
"""Floating-point operations per second and run where nothing like it has been trained: a CPU thread, a large GPU."""
_NETWORKS = ("_target_", "conditional", "energy", "initializer", "network", "precision")
"""Settings of methods that the memory of a shard depends on, but for a few images."""


def print_plan(plan: Plan) -> None:
    """The rows, then the sums."""
    console = Console(highlight=False)
    table = Table(title=f"{plan.title} ({plan.scale})")
    for name in ("row", "seed", "budget (gradient evaluations × images)", "run", "evaluation"):
        table.add_column(name, overflow="fold")
    for row in plan.rows:
        for evaluation in row.evaluations:
            settings, budget = evaluation.run_settings, evaluation.run_settings.budget
            cost, state = f"{budget:,}" if isinstance(budget, int) else f"{budget['seconds']:g} s", evaluation.run.state
            training = (cost, state) if settings.recipe.trains else ("–", "–")
            done = "done" if evaluation.folder.done else "missing"
            table.add_row(row.label, str(evaluation.seed), *training, f"{evaluation.settings['kind']}: {done}")
    console.print(table)
    for line in summary(plan):
        console.print(line, soft_wrap=True, markup=False)


def summary(plan: Plan) -> list[str]:
    """Work, time, disk, and missing data or weights, a line each."""
    missing = plan.missing()
    training = [job for job in missing if job.settings.recipe.trains and job.run.state not in ("finished", "diverged")]
    cost = sum(job.settings.budget for job in training if isinstance(job.settings.budget, int))
    evaluations = sum(len(job.evaluations) for job in missing)
    lines = [
        f"{len(plan.rows)} rows; {len(training)} runs to train ({cost:,} energy-gradient evaluations × images), "
        f"{evaluations} evaluations to do"
    ]
    if missing:
        # Checkpoint, anchor and what is being written: weights, averages and Adam's two moments. And milestones.
        floats = sum(_size(job.settings)[0] * (3 * 4 + len(job.settings.milestones)) for job in training)
        disk = f"about {4 * floats / 1e9:.2g} GB for checkpoints and milestones" if floats else "nothing to train"
        lines += [_time(plan, missing, training), f"disk: {disk}"]
    lines += _too_large(plan)
    # Rows and seeds share data and protocols: each pair is looked for once.
    looks = [(job.settings.data, by) for job in missing for one in job.evaluations for by in protocols(one.settings)]
    pairs = {digest([data.identity(), asdict(by)]): (data, by) for data, by in looks}
    needs = [need for pair in pairs.values() for need in doctor.missing_for(*pair, Path(plan.config["cache"]))]
    return lines + [f"missing: {need}" for need in dict.fromkeys(needs)]


def _time(plan: Plan, missing: list[Job], training: list[Job]) -> str:
    """Hours on this machine, from measured paces where there are any."""
    config = plan.config
    try:
        device = resolve_device(config["device"])
    except UserError as error:
        return f"time: unknown ({error})"
    times = [0.0]
    sources: dict[str, None] = {}
    for job in training:
        budget = job.settings.budget
        if isinstance(budget, int):
            pace, source = _pace(job, device)
            times.append(pace * budget)
        else:
            source = "the budget is in seconds"
            times.append(budget["seconds"])
        sources.setdefault(source)
    longest = max(times)
    seconds = sum(times) + EVALUATION_SHARE * longest * sum(len(job.evaluations) for job in missing)
    workers = config["launcher"]["workers"]
    if workers == "auto":
        workers = 1 if device.startswith("cuda") else max(1, cpu_cores() // config["launcher"]["gpus_per_run"])
    wall = max(longest, seconds / max(1, min(workers, len(missing))))
    known = "; ".join(sources) or "nothing to train: evaluations are not estimated"
    return f"time: about {clock(wall)} on {device_name(device)}, {workers} at a time ({known})"


def _too_large(plan: Plan) -> list[str]:
    """A line for every row whose shards cannot be trained on this machine."""
    try:
        available = memory_bytes(resolve_device(plan.config["device"]))
    except UserError:  # which the time says already
        return []
    lines = []
    for row in plan.rows:
        settings = row.evaluations[0].run_settings
        recipe = settings.recipe
        shard = recipe.batch_size // recipe.shards
        if not recipe.trains or shard * _size(settings)[1] < available:  # small: a byte for every operation would do
            continue
        if shard <= _footprint(settings).largest_shard(available):
            continue
        needed, remedy = _footprint(settings).needed(shard), f"more shards (methods.{row.method}.shards=…)"
        lines.append(
            f"row {row.id} needs about {needed / 1e9:.2g} GB for its shards of {shard} images; "
            f"{available / 1e9:.2g} GB here: {remedy}"
        )
    return lines


def _pace(job: Job, device: str) -> tuple[float, str]:
    """Seconds per unit of cost, and where that is known from: the same settings, else the same method and data."""
    name, folder = device_name(device), job.run.path
    for path in (*sorted(folder.parent.glob("seed*")), *sorted(folder.parent.parent.glob("*/seed*"))):
        status = RunFolder(path).status()
        if status is None or status.device != name or not status.grad_evals:
            continue
        if {**RunFolder(path).settings.method, "label": ""} == {**job.settings.method, "label": ""}:
            return status.seconds / status.grad_evals, f"pace measured in {path}"
    assumed = ASSUMED_FLOPS["cuda" if device.startswith("cuda") else "cpu"]
    return _size(job.settings)[1] / assumed, f"assuming {assumed:.0e} FLOP/s per run, not measured"


def _size(settings: RunSettings) -> tuple[int, float]:
    """Trained parameters, and floating-point operations per unit of cost; runs that differ in their seed share it."""
    return _size_of(json.dumps(settings.method, sort_keys=True), configured_shape(settings))


def _footprint(settings: RunSettings) -> Footprint:
    """The memory of its training; runs of the same networks share it."""
    networks = {name: value for name, value in settings.method.items() if name in _NETWORKS}
    return _footprint_of(json.dumps(networks, sort_keys=True), configured_shape(settings))


@lru_cache
def _footprint_of(method: str, shape: ImageShape) -> Footprint:
    return footprint_of(methods.recipe(json.loads(method)), shape)


@lru_cache
def _size_of(method: str, shape: ImageShape) -> tuple[int, float]:
    recipe = methods.recipe(json.loads(method))
    networks = [learner.network for learner in recipe.build(shape, device="meta").learners.values()]
    parameters = sum(parameter.numel() for network in networks for parameter in network.parameters())
    unit = network(EnergyNet, shape._replace(classes=0), getattr(recipe, "energy", {}), torch.device("meta"))
    return parameters, 2.0 * operations(unit, unit.shape)
