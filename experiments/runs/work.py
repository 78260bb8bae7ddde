"""Make a folder's wishes true: train or resume its run, then every evaluation that has no result yet.

`work` is idempotent: whoever calls it, an engine or a person (``cdrl work runs/…/seed0``), however often and wherever,
the folder ends the same. What is being done stands in the folder's progress; what stopped it, in its failure.
"""

from __future__ import annotations

import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cdrl import checkpoint, fast, precision
from cdrl.errors import UserError
from cdrl.fast import Engine
from cdrl.method import Method
from cdrl.recipe import ImageShape
from cdrl.trainer import Outcome, train
from experiments import metrics
from experiments.data import ImageSet
from experiments.evaluate import TrainedRun, evaluator, scores_samples
from experiments.methods import Reference
from experiments.metrics import Protocol
from experiments.metrics.reference import Statistics
from experiments.progress import OnProgress, listening
from experiments.runs.folder import EvaluationFolder, Result, RunFolder, RunSettings, Status, WorkFolder
from experiments.runs.machine import commit, device_name, resolve_device
from experiments.runs.trained import image_shape, planned_iterations, training_batches

Stop = Callable[[], bool]
_SECONDS_BETWEEN_REPORTS = 1.0
_HANDOVER = 5.0
"""Seconds that the processes of a command that was killed have to keep a checkpoint and leave."""
_PROBE_SHARE = 0.05
"""Of a budget in seconds: how long the pace is measured."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What an engine hands to a process.

    Attributes:
        folder: of a run, or of reference statistics.
        evaluations: names of the run's evaluations to do; None for all that are wanted.
        device, engine, threads: see `work`.
        cache: folder of extractor weights and statistics.
        commit: of the code.
        checkpoint_seconds: between checkpoints.
        deadline: seconds since the epoch after which to keep a checkpoint and stop.
    """

    folder: str
    evaluations: tuple[str, ...] | None = None
    device: str = "auto"
    engine: str = "eager"
    threads: int | None = None
    cache: str = ".cache"
    commit: str | None = None
    checkpoint_seconds: float = 30.0
    deadline: float = math.inf


@dataclass(frozen=True)
class Ended:
    """How a process left a folder.

    Attributes:
        outcome: "done", "interrupted" (there is something left), "mistake" (that the user can mend), or "crash".
        message: what went wrong.
    """

    outcome: str
    message: str = ""


@dataclass(frozen=True)
class _How:
    """What no number depends on but its last bits: device, form of the hot loop, places, times."""

    device: torch.device
    engine: str
    cache: Path
    commit: str
    checkpoint_seconds: float
    stop: Stop


def work(
    folder: Path | str,
    evaluations: Sequence[str] | None = None,
    *,
    device: str = "auto",
    engine: str = "eager",
    cache: Path | str = ".cache",
    threads: int | None = None,
    seconds: float | None = None,
    made_by: str | None = None,
    checkpoint_seconds: float = 30.0,
    stop: Stop = lambda: False,
) -> str:
    """Do what is wanted in a folder and not done.

    Args:
        folder: of a run or of reference statistics, as the plan wrote it.
        evaluations: names below ``eval/``; None for all.
        device: auto | cpu | cuda | cuda:<number>.
        engine: the form of the hot loop, see `cdrl.fast`.
        cache: of extractor weights and statistics.
        threads: CPU threads; None leaves PyTorch's.
        seconds: keep a checkpoint and stop after so long.
        made_by: the code's commit; None asks git.
        checkpoint_seconds: between checkpoints; one is also kept at every stop.
        stop: asked often; true keeps a checkpoint and stops.

    Returns:
        "done", or "interrupted" when there is something left.

    Raises:
        UserError: what the user has to mend; it is also kept in the folder, unless another process works there.
    """
    owner, deadline = WorkFolder(Path(folder)), time.monotonic() + (math.inf if seconds is None else seconds)
    lost = threading.Event()
    if not owner.path.is_dir():
        raise UserError(f"there is no folder {folder}; name one such as runs/digits/cdrl/<hash>/seed0")
    if threads is not None:
        torch.set_num_threads(threads)
    asked_at = 0.0

    def should_stop() -> bool:
        nonlocal asked_at
        if stop() or lost.is_set() or time.monotonic() > deadline:
            return True
        if time.monotonic() - asked_at < 0.5:  # shared storage is not asked before every iteration
            return False
        asked_at = time.monotonic()
        return owner.stop_asked

    with owner.lock(wait=_HANDOVER, on_lost=lost.set):
        owner.begin()
        try:
            target = torch.device(resolve_device(device))
            if Statistics.at(owner.path):
                Statistics.open(owner.path).make(target, _reporter(owner, "statistics", 0, 1, should_stop))
                return "done"
            run = RunFolder.open(owner.path)
            wanted = [one for one in run.evaluations() if evaluations is None or one.name in evaluations]
            with precision.products(run.settings.recipe.precision):
                how = _How(target, engine, Path(cache), made_by or commit(), checkpoint_seconds, should_stop)
                return _work_on_run(run, wanted, how)
        except KeyboardInterrupt:
            return "interrupted"
        except UserError as error:
            owner.fail(str(error), mistake=True)
            raise
        except Exception as error:
            owner.fail(f"{type(error).__name__}: {error}", mistake=False, traceback=traceback.format_exc())
            raise


def attempt(order: Order, stop: Stop = lambda: False) -> Ended:
    """`work` for engines: whatever happens becomes an answer that can travel between processes."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(order.cache).absolute() / "inductor"))
    try:
        outcome = work(
            order.folder,
            order.evaluations,
            device=order.device,
            engine=order.engine,
            cache=order.cache,
            threads=order.threads,
            seconds=order.deadline - time.time(),
            made_by=order.commit,
            checkpoint_seconds=order.checkpoint_seconds,
            stop=stop,
        )
        return Ended(outcome)
    except UserError as error:
        return Ended("mistake", str(error))
    except Exception as error:
        return Ended("crash", f"{type(error).__name__}: {error}".splitlines()[0])


def _reporter(folder: WorkFolder, phase: str, before: float, total: float, stop: Stop, where: str = "") -> OnProgress:
    """Puts the progress of a part of the work into the folder, and is where that part can be stopped."""

    def report(done: float, text: str) -> None:
        folder.report(phase, before + done, total, where + text)
        if stop():
            raise KeyboardInterrupt

    return report


def _work_on_run(run: RunFolder, wanted: Sequence[EvaluationFolder], how: _How) -> str:
    """The story of a run."""
    settings, recipe = run.settings, run.settings.recipe
    pending = [evaluation for evaluation in wanted if not evaluation.done]

    # The images: a run does not go on with others than it began with. Weights of feature extractors are looked for now
    # too, not after hours of training.
    protocols = {one.name: Protocol.from_config(one.settings["metrics"]) for one in pending}
    run.report("data", 0, 1, "loading data")
    with listening(_reporter(run, "data", 0, 1, how.stop)):
        training = settings.data.load("train")
        run.check_images(training)
        for evaluation in pending:
            if scores_samples(evaluation.settings["kind"]):
                protocol = protocols[evaluation.name]
                protocol.check_fits(training.channels, training.image_size)
                metrics.build(protocol.extractor, how.cache, how.device, protocol.weights, protocol.weights_sha256)
    shape = image_shape(settings, training)

    # Training, from where it stands.
    method = None
    if not isinstance(recipe, Reference):
        method = _trained(run, settings, training, shape, how)
        if method is None:
            status = run.status()
            return "done" if status is not None and status.status == "diverged" else "interrupted"

    # Evaluations, each kept as soon as it is made.
    held_out = settings.data.load("test")
    for number, evaluation in enumerate(pending):
        kind, protocol = evaluation.settings["kind"], protocols[evaluation.name]
        position = f" ({number + 1} of {len(pending)})" if len(pending) > 1 else ""
        progress = _reporter(run, kind, number, len(pending), how.stop, f"{kind}{position}: ")
        if scores_samples(kind):
            Statistics(protocol, settings.data, how.cache).make(how.device, progress)
        trained = TrainedRun(
            recipe=recipe,
            data=settings.data,
            method=method,
            milestones=tuple(run.milestones()),
            seed=settings.seed,
            device=how.device,
            train=training,
            test=held_out,
            protocol=protocol,
            cache=how.cache,
        )
        begin = time.monotonic()
        with listening(progress):
            measured = evaluator(kind)(trained, evaluation.settings, evaluation.path, progress)
        evaluation.keep(
            Result(
                measurements=tuple(measured),
                seconds=time.monotonic() - begin,
                commit=how.commit,
                device=device_name(str(how.device)),
            )
        )
    return "done"


def _trained(run: RunFolder, settings: RunSettings, training: ImageSet, shape: ImageShape, how: _How) -> Method | None:
    """The run's method with its trained weights, or None when it diverged or was interrupted."""
    recipe, seed = settings.recipe, settings.seed
    engine = fast.engine(how.engine, how.device, recipe.precision)
    if not recipe.trains:
        return recipe.build(shape, seed=seed, device=how.device, engine=engine)

    # The length: what the budget pays for, or what the device does in a budget of seconds.
    batches = training_batches(settings, training, how.device)
    iterations = _iterations(run, settings, shape, batches, how.device, engine)
    method = recipe.build(shape, seed=seed, iterations=iterations, device=how.device, engine=engine)
    if (status := run.status()) is not None:
        method.load_state(checkpoint.load(run.path)[0])
        return method if status.status == "finished" else None

    # What happens along the way.
    reported_at = 0.0

    def batch(iteration: int) -> Any:
        nonlocal reported_at
        if time.monotonic() - reported_at > _SECONDS_BETWEEN_REPORTS:
            reported_at = time.monotonic()
            run.report("training", iteration, iterations, f"iteration {iteration} of {iterations}")
        return batches.batch(iteration)

    def keep_averages(iteration: int) -> None:
        averages = {
            f"{name}/{key}": value
            for name, learner in method.learners.items()
            for key, value in learner.ema.synchronised().state_dict().items()
        }
        checkpoint.save(run.milestone(iteration), averages, {"iteration": iteration})

    outcome: Outcome = train(
        method,
        batch,
        batch_size=recipe.batch_size,
        iterations=iterations,
        on_report=run.metrics.append,
        report_every=max(1, math.ceil(iterations / settings.reports)),
        folder=run.path,
        checkpoint_seconds=how.checkpoint_seconds,
        milestones=[max(1, round(share * iterations)) for share in settings.milestones],
        on_milestone=keep_averages,
        on_resume=run.metrics.truncate,
        should_stop=how.stop,
    )
    if outcome.status == "interrupted":
        return None
    run.finish(
        Status(
            status=outcome.status,
            iterations=outcome.iteration,
            seconds=outcome.seconds,
            grad_evals=round(outcome.iteration * method.training_cost * recipe.batch_size),
            commit=how.commit,
            device=device_name(str(how.device)),
            reason=outcome.reason,
        )
    )
    return method if outcome.status == "finished" else None


def _iterations(
    run: RunFolder, settings: RunSettings, shape: ImageShape, batches: Any, device: torch.device, engine: Engine
) -> int:
    """The planned length. A budget in seconds is measured once and written down: from then on it is a number."""
    if not isinstance(settings.budget, dict):
        return planned_iterations(settings, shape)
    if (length := run.length()) is not None:
        return int(length["iterations"])
    seconds = settings.budget["seconds"]
    run.report("measuring", 0, 1, "measuring the pace")
    each = iteration_seconds(settings, shape, batches, device, engine, _PROBE_SHARE * seconds)
    iterations = max(1, int(seconds / each))
    run.keep_length({"iterations": iterations, "iteration_seconds": each, "device": device_name(str(device))})
    return iterations


def iteration_seconds(
    settings: RunSettings, shape: ImageShape, batches: Any, device: torch.device, engine: Engine, at_least: float
) -> float:
    """Seconds per training iteration, over ``at_least`` so long, after a few that choose algorithms and compile."""
    method = settings.recipe.build(shape, seed=settings.seed, iterations=1000, device=device, engine=engine)

    def step(iteration: int) -> None:
        images, label = batches.batch(iteration)
        method.train_step(images, label, iteration)
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
