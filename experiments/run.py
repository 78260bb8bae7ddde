"""Carry out plans: write what is wanted into folders, hand them to an engine, write results as folders fill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from cdrl import parallel
from cdrl.cli import DIVERGED, UNFINISHED, note
from cdrl.errors import UserError
from experiments import configuration
from experiments.cells import rows_without_survivors, write_results
from experiments.estimate import print_plan
from experiments.files import check_folder
from experiments.plan import Job, Plan, make_plan, one_per_run
from experiments.report import build_experiment
from experiments.runs.engines import engine
from experiments.runs.machine import commit
from experiments.runs.progress import Board, Item
from experiments.runs.work import Order

_SECONDS_BETWEEN_ANSWERS, _SECONDS_BETWEEN_LOOKS = 0.2, 1.0
"""How often the engine is asked for what has ended, and the folders, perhaps on shared storage, for progress."""


def run(overrides: Sequence[str], *, show_config: bool = False, detach: bool = False) -> int:
    """``cdrl run``: everything from a command line to tables and figures.

    Args:
        overrides: e.g. ``["experiment=table1", "scale=nano"]``.
        show_config: print the resolved configuration and stop.
        detach: hand the work to a queue and leave.

    Returns:
        The exit code: 0 done (or submitted), `DIVERGED` where every seed of a row did, `UNFINISHED` when time was over
        or a run was asked to stop, 1 where a figure could not be drawn.

    Raises:
        UserError: a mistake in the command line, or a run or an evaluation that failed.
    """
    if detach and "launcher=slurm" not in overrides:
        raise UserError("--detach leaves the work to a queue; add launcher=slurm")
    detached = ["launcher.detach=true"] if detach else []
    commands = configuration.expand([*overrides, *detached])
    configs = [configuration.resolve(command) for command in commands]
    if show_config:
        for config in configs:
            print(configuration.text(config))
        return 0
    plans = [make_plan(config) for config in configs]
    if plans[0].config["plan"]:
        for one in plans:
            print_plan(one)
        return 0

    for one in plans:
        check_folder(one.results, "results")
    written: list[str] = []
    undrawn: list[str] = []
    lost: list[str] = []

    def write(one: Plan) -> None:  # numbers, then tables, then figures
        command = ["cdrl", "run", *commands[plans.index(one)]]
        folder = write_results(one, command)
        written.append(f"{build_experiment(folder, undrawn.append)}\nwritten to {folder}")
        lost.extend(rows_without_survivors(folder))

    try:
        finished = carry_out(plans, write)
    finally:  # not while progress is on the screen
        for text in written:
            Console().print(text, markup=False, highlight=False, soft_wrap=True)
        for line in undrawn:
            note(line)
    if not finished:
        return 0 if plans[0].config["launcher"].get("detach") else UNFINISHED

    # Everything is tried and in tables. What has no number is said, and in the exit code.
    if lost:
        note(
            f"diverged in every seed: {', '.join(lost)}; retry=true trains once more what diverged in training, and "
            "other settings are another run"
        )
    failures = [
        (f"{job.run.name}, {evaluation.settings['kind']}: {result.reason}", evaluation.folder.path, result.mistake)
        for job in one_per_run(job for one in plans for job in one.jobs())
        for evaluation in job.evaluations
        if (result := evaluation.folder.result()) is not None and result.outcome == "failed"
    ]
    if failures:
        what, where, mistake = failures[0]
        more = f" ({len(failures)} evaluations failed)" if len(failures) > 1 else ""
        remedy = "mend that" if mistake else f"details in {where / 'error.log'}; change its settings or the code"
        raise UserError(f"{what}{more}; {remedy}, and the same command tries again")
    return 1 if undrawn else DIVERGED if lost else 0


def plan(overrides: Sequence[str]) -> int:
    """``cdrl plan``: what there is to do and what it costs; nothing is written."""
    return run([*overrides, "plan=true"])


def carry_out(plans: Sequence[Plan], complete: Callable[[Plan], None]) -> bool:
    """Do what is missing of plans that share everything but their experiment.

    Args:
        complete: called for each plan as soon as it is complete.

    Returns:
        Whether all is done; else time was over, a run was asked to stop, or the work was left to a queue.

    Raises:
        UserError: torchrun started this several times, or a job failed. After a mistake that the user can mend no other
            is begun; after a crash all are.
        KeyboardInterrupt: after the running jobs have kept their checkpoints.
    """
    if (size := parallel.place()[1]) > 1:
        raise UserError(
            f"cdrl run starts its processes itself: leave torchrun out and say launcher.gpus_per_run={size}, or let "
            "torchrun start cdrl work FOLDER"
        )
    incomplete = list(plans)
    config = plans[0].config

    def write_complete_ones(to_come: Collection[Path] | None = None) -> None:
        """``to_come``: the folders that are worked on; None before work begins. What fails in it is not tried twice."""
        for one in list(incomplete):
            at_work = to_come is not None and any(job.run.path in to_come for job in one.jobs())
            if not at_work and not one.missing(again=to_come is None):
                incomplete.remove(one)
                complete(one)

    write_complete_ones()
    if not incomplete:
        return True

    # What is wanted goes into the folders; reference statistics come first, for all runs need them.
    for setting in ("runs", "cache"):
        check_folder(Path(config[setting]), setting)
    launcher = config["launcher"]
    jobs = one_per_run(job for one in incomplete for job in one.missing())
    statistics = {made.folder.path: made for one in incomplete for made in one.statistics()}
    for made in statistics.values():
        made.want()
    for job in jobs:
        job.want()
    seconds = launcher["seconds"] or math.inf
    deadline, over_at = time.time() + seconds, time.monotonic() + seconds  # elsewhere, and here, where no clock jumps
    common = Order(
        folder=Path(),
        device=config["device"],
        engine=config["engine"],
        cache=config["cache"],
        commit=commit(),
        checkpoint_seconds=config["checkpoint_seconds"],
        deadline=deadline,
        logger=config["logger"],
        exact=launcher["exact"],
        retry=config["retry"],
    )
    orders = [replace(common, folder=path) for path in statistics]
    for job in jobs:
        names = tuple(evaluation.folder.name for evaluation in job.evaluations)
        processes = launcher["gpus_per_run"] if job.settings.recipe.trains else 1
        orders.append(replace(common, folder=job.run.path, evaluations=names, processes=processes))
    items = [Item(made.name, made.folder) for made in statistics.values()]
    items += [
        Item(job.run.name, job.run, training, len(job.evaluations))
        for job, training in zip(jobs, _training_shares(jobs), strict=True)
    ]

    # An engine does it; what happens is read from the folders.
    name = plans[0].name if len(plans) == 1 else "all"
    board = Board(f"{name} ({plans[0].scale})", items)
    place = engine(launcher, config["device"], len(orders))
    board.say(f"{board.title}: {len(jobs)} runs to do {place.description}; Ctrl-C keeps everything")
    noted = {item.folder.path: len(item.folder.notes()) for item in items}
    pending = list(zip(place.submit(orders), items, strict=True))
    if launcher.get("detach"):
        board.say(f"{len(orders)} jobs are submitted and go on by themselves; the same command later collects")
        return False
    mistakes: list[str] = []
    crashes: list[str] = []
    stopped: list[str] = []
    looked_at = -math.inf
    try:
        with board:
            while pending:
                for handle, item in [pair for pair in pending if pair[0].done()]:
                    pending.remove((handle, item))
                    ended = handle.result()
                    board.end(item)
                    for text in item.folder.notes()[noted[item.folder.path] :]:
                        board.say(f"{item.name}: {text}", style="yellow")
                    if ended.outcome == "done":
                        write_complete_ones({item.folder.path for _, item in pending})
                    elif ended.outcome == "mistake":
                        mistakes.append(ended.message)
                    elif ended.outcome == "crash":
                        log = item.folder.path / "error.log"
                        details = f"details in {log}; " if log.exists() else ""
                        crashes.append(
                            f"{item.name} stopped unexpectedly ({ended.message}); {details}the same command tries again"
                        )
                        board.say(crashes[-1], style="red")
                    elif time.monotonic() <= over_at and not mistakes:
                        kept = "its checkpoint is kept; the same command goes on"
                        stopped.append(f"{item.name} was {ended.message or 'asked to stop'}; {kept}")
                if mistakes or time.monotonic() > over_at:
                    pending = [(handle, item) for handle, item in pending if not handle.cancel()]
                    if place.stays and time.monotonic() > over_at:
                        break
                if time.monotonic() - looked_at >= _SECONDS_BETWEEN_LOOKS:
                    looked_at = time.monotonic()
                    board.refresh()
                time.sleep(_SECONDS_BETWEEN_ANSWERS)
    except KeyboardInterrupt:
        board.say(
            "leaving; the jobs stay in their queue" if place.stays else "stopping: the running jobs keep a checkpoint …"
        )
        raise
    finally:
        place.close()

    if failed := mistakes + crashes:
        raise UserError(failed[0] + (f" ({len(failed)} runs failed)" if len(failed) > 1 else ""))
    write_complete_ones(())
    if incomplete and stopped:
        board.say("\n".join(stopped))
        return False
    if incomplete and deadline == math.inf:
        raise UserError(
            f"{incomplete[0].name} is not complete: something took its results away; the same command goes on"
        )
    if incomplete:
        board.say(f"{launcher['seconds']} seconds are over; the same command goes on")
    return not incomplete


def _training_shares(jobs: Sequence[Job]) -> list[float]:
    """How long each job will train, as a share of the longest training on its data set."""
    budgets = []
    for job in jobs:
        budget = job.settings.budget
        cost = float(budget if isinstance(budget, int) else budget["seconds"])
        trains = job.settings.recipe.trains and job.run.state not in ("finished", "diverged")
        budgets.append((job.settings.data.name, cost if trains else 0.0))
    longest = {name: max(cost for other, cost in budgets if other == name) for name, _ in budgets}
    return [cost / longest[name] if cost else 0.0 for name, cost in budgets]
