"""Make a folder's wishes true: train or resume its run, then every evaluation that has no result yet.

    work(Order(Path("runs/digits/cdrl/<hash>/seed0")))        # cdrl work runs/digits/cdrl/<hash>/seed0

`work` is idempotent: whoever calls it, an engine or a person, however often and wherever, the folder ends the same.
What is being done stands in the folder's progress; what stopped it, in its failure.
"""

from __future__ import annotations

import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cdrl import checkpoint, fast, precision
from cdrl.errors import UserError
from cdrl.fast import Engine
from cdrl.method import Batch, Method
from cdrl.parallel import Group
from cdrl.recipe import ImageShape
from cdrl.trainer import train
from experiments import metrics
from experiments.data import ImageSet
from experiments.evaluate import TrainedRun, evaluator, scores_samples
from experiments.methods import Reference
from experiments.metrics import Protocol, Statistics
from experiments.progress import OnProgress, listening
from experiments.runs.folder import EvaluationFolder, Result, RunFolder, RunSettings, Status, WorkFolder
from experiments.runs.loggers import Reports, opened
from experiments.runs.machine import commit, device_name, resolve_device
from experiments.runs.trained import image_shape, planned_iterations, training_batches

Stop = Callable[[], bool]
_SECONDS_BETWEEN_REPORTS = 1.0
_HANDOVER = 5.0
"""Seconds that the processes of a command that was killed have to keep a checkpoint and leave."""
_PROBE_SHARE = 0.05
"""Of a budget in seconds: how long the pace is measured."""


@dataclass(frozen=True)
class Order:
    """What is to be done, and how; nothing here changes a number, but for its last bits.

    Attributes:
        folder: of a run or of reference statistics, as the plan wrote it.
        evaluations: names of the run's evaluations to do; None for all that are wanted.
        device: auto | cpu | cuda | cuda:<number>.
        engine: the form of the hot loop, see `cdrl.fast`.
        threads: CPU threads; None leaves PyTorch's.
        cache: folder of extractor weights and statistics.
        commit: of the code; None asks git.
        checkpoint_seconds: between checkpoints; one is also kept at every stop.
        deadline: seconds since the epoch after which to keep a checkpoint and stop.
        logger: where training can be seen, see `experiments.runs.loggers`.
    """

    folder: Path
    evaluations: tuple[str, ...] | None = None
    device: str = "auto"
    engine: str = "eager"
    threads: int | None = None
    cache: str = ".cache"
    commit: str | None = None
    checkpoint_seconds: float = 30.0
    deadline: float = math.inf
    logger: str = "none"


@dataclass(frozen=True)
class Ended:
    """How a process left a folder.

    Attributes:
        outcome: "done", "interrupted" (there is something left), "mistake" (that the user can mend), or "crash".
        message: what went wrong.
    """

    outcome: str
    message: str = ""


def attempt(order: Order, stop: Stop = lambda: False) -> Ended:
    """`work` for engines: whatever happens becomes an answer that can travel between processes."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(order.cache).absolute() / "inductor"))
    try:
        return Ended(work(order, stop))
    except UserError as error:
        return Ended("mistake", str(error))
    except Exception as error:
        return Ended("crash", f"{type(error).__name__}: {error}".splitlines()[0])


def work(order: Order, stop: Stop = lambda: False) -> str:
    """Do what is wanted in a folder and not done.

    Args:
        order: where, what and how.
        stop: asked often; true keeps a checkpoint and stops.

    Returns:
        "done", or "interrupted" when there is something left.

    Raises:
        UserError: what the user has to mend; it is also kept in the folder, unless another process works there.
    """
    folder, lost, asked_at = WorkFolder(order.folder), threading.Event(), 0.0
    if not folder.path.is_dir():
        raise UserError(f"there is no folder {folder.path}; name one such as runs/digits/cdrl/<hash>/seed0")
    if order.threads is not None:
        torch.set_num_threads(order.threads)

    def should_stop() -> bool:
        nonlocal asked_at
        if stop() or lost.is_set() or time.time() > order.deadline:
            return True
        if time.monotonic() - asked_at < 0.5:  # shared storage is not asked before every iteration
            return False
        asked_at = time.monotonic()
        return folder.stop_asked

    with folder.lock(wait=_HANDOVER, on_lost=lost.set):
        folder.begin()
        try:
            order = replace(order, device=resolve_device(order.device), commit=order.commit or commit())
            if Statistics.at(folder.path):
                report = _reporter(folder, "statistics", 0, 1, should_stop)
                Statistics.open(folder.path).make(torch.device(order.device), report)
                return "done"
            run = RunFolder.open(folder.path)
            known = {evaluation.name: evaluation for evaluation in run.evaluations()}
            names = known if order.evaluations is None else order.evaluations  # in the order that the plan wants them
            pending = [known[name] for name in names if name in known and not known[name].done]
            with precision.products(run.settings.recipe.precision):
                return _work_on_run(run, pending, order, should_stop)
        except KeyboardInterrupt:
            return "interrupted"
        except UserError as error:
            folder.fail(str(error), mistake=True)
            raise
        except Exception as error:
            folder.fail(f"{type(error).__name__}: {error}", mistake=False, traceback=traceback.format_exc())
            raise


def _reporter(folder: WorkFolder, phase: str, before: float, total: float, stop: Stop, where: str = "") -> OnProgress:
    """Puts the progress of a part of the work into the folder, and is where that part can be stopped."""

    def report(done: float, text: str) -> None:
        folder.report(phase, before + done, total, where + text)
        if stop():
            raise KeyboardInterrupt

    return report


def _work_on_run(run: RunFolder, pending: Sequence[EvaluationFolder], order: Order, stop: Stop) -> str:
    """The story of a run."""
    settings, recipe, device, cache = run.settings, run.settings.recipe, torch.device(order.device), Path(order.cache)

    # The images: a run does not go on with others than it began with. Weights of feature extractors are looked for now
    # too, not after hours of training.
    protocols = {one.name: Protocol.from_config(one.settings["metrics"]) for one in pending}
    run.report("data", 0, 1, "loading data")
    with listening(_reporter(run, "data", 0, 1, stop)):
        training = settings.data.load("train")
        run.check_images(training)
        for evaluation in pending:
            if scores_samples(evaluation.settings["kind"]):
                protocol = protocols[evaluation.name]
                protocol.check_fits(training.channels, training.image_size)
                metrics.build(protocol.extractor, cache, device, protocol.weights, protocol.weights_sha256)

    # Training, from where it stands.
    method = None
    if not isinstance(recipe, Reference):
        with opened(run, order.logger) as reports:
            method = _trained(run, settings, training, device, order, stop, reports)
        if method is None:
            return "done" if run.state == "diverged" else "interrupted"

    # Evaluations, each kept as soon as it is made.
    held_out = settings.data.load("test")
    for number, evaluation in enumerate(pending):
        kind, protocol = evaluation.settings["kind"], protocols[evaluation.name]
        position = f" ({number + 1} of {len(pending)})" if len(pending) > 1 else ""
        progress = _reporter(run, kind, number, len(pending), stop, f"{kind}{position}: ")
        if scores_samples(kind):
            Statistics(protocol, settings.data, cache).make(device, progress)
        trained = TrainedRun(
            recipe=recipe,
            data=settings.data,
            method=method,
            milestones=tuple(run.milestones()),
            seed=settings.seed,
            device=device,
            train=training,
            test=held_out,
            protocol=protocol,
            cache=cache,
        )
        begin = time.monotonic()
        with listening(progress):
            measured = evaluator(kind)(trained, evaluation.settings, evaluation.path, progress)
        seconds, where = time.monotonic() - begin, device_name(order.device)
        evaluation.keep(Result(measurements=tuple(measured), seconds=seconds, commit=str(order.commit), device=where))
    return "done"


def _trained(
    run: RunFolder,
    settings: RunSettings,
    training: ImageSet,
    device: torch.device,
    order: Order,
    stop: Stop,
    reports: Reports,
) -> Method | None:
    """The run's method with its trained weights, or None when it diverged or was interrupted."""
    recipe, shape = settings.recipe, image_shape(settings, training)
    engine = fast.engine(order.engine, device, recipe.precision)
    if not recipe.trains:
        return recipe.build(shape, seed=settings.seed, device=device, engine=engine)

    # The length: what the budget pays for, or what the device does in a budget of seconds. That is measured once and
    # written down: from then on it is a number.
    batches = training_batches(settings, training, device)
    if isinstance(settings.budget, int):
        iterations = planned_iterations(settings, shape)
    elif (length := run.length()) is not None:
        iterations = int(length["iterations"])
    else:
        run.report("measuring", 0, 1, "measuring the pace")
        seconds = settings.budget["seconds"]
        each = iteration_seconds(settings, shape, batches, device, engine, _PROBE_SHARE * seconds)
        iterations = max(1, int(seconds / each))
        run.keep_length(iterations=iterations, iteration_seconds=each, device=device_name(order.device))

    # A run that has ended is only loaded.
    method = recipe.build(shape, seed=settings.seed, iterations=iterations, device=device, engine=engine)
    if (status := run.status()) is not None:
        method.load_state(checkpoint.load(run.path)[0])
        return method if status.status == "finished" else None

    # What happens along the way.
    reported_at = 0.0

    def shard(iteration: int, first: int, count: int) -> Batch:
        nonlocal reported_at
        if time.monotonic() - reported_at > _SECONDS_BETWEEN_REPORTS:
            reported_at = time.monotonic()
            run.report("training", iteration, iterations, f"iteration {iteration} of {iterations}")
        return batches.batch(iteration, first, count)

    def keep_averages(iteration: int) -> None:
        reports.picture(
            method, iteration
        )  # first: what it does to the averages' spectral vectors is undone by the next
        averages = {
            f"{name}/{key}": value
            for name, learner in method.learners.items()
            for key, value in learner.ema.synchronised().state_dict().items()
        }
        checkpoint.save(run.milestone(iteration), averages, {"iteration": iteration})

    outcome = train(
        method,
        shard,
        group=Group(shards=recipe.shards),
        batch_size=recipe.batch_size,
        iterations=iterations,
        on_report=reports.report,
        report_every=max(1, math.ceil(iterations / settings.reports)),
        folder=run.path,
        checkpoint_seconds=order.checkpoint_seconds,
        milestones=[max(1, round(share * iterations)) for share in settings.milestones],
        on_milestone=keep_averages,
        on_resume=reports.resume,
        should_stop=stop,
    )
    if outcome.status == "interrupted":
        return None
    if outcome.status == "finished":
        reports.picture(method, outcome.iteration)
    run.finish(
        Status(
            status=outcome.status,
            iterations=outcome.iteration,
            seconds=outcome.seconds,
            grad_evals=round(outcome.iteration * method.training_cost * recipe.batch_size),
            commit=str(order.commit),
            device=device_name(order.device),
            reason=outcome.reason,
        )
    )
    return method if outcome.status == "finished" else None


def iteration_seconds(
    settings: RunSettings, shape: ImageShape, batches: Any, device: torch.device, engine: Engine, at_least: float
) -> float:
    """Seconds per training iteration, over ``at_least`` so long, after a few that choose algorithms and compile."""
    method = settings.recipe.build(shape, seed=settings.seed, iterations=1000, device=device, engine=engine)

    def step(iteration: int) -> None:
        size = batches.batch_size // settings.recipe.shards
        shards = (batches.batch(iteration, number * size, size) for number in range(settings.recipe.shards))
        method.train_step(shards, iteration)
        if iteration % 10 == 0 and device.type == "cuda":  # kernels are queued faster than they run
            torch.cuda.synchronize(device)

    for iteration in range(3):
        step(iteration)
    begin, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - begin < at_least:
        step(done)
        done += 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) / done
