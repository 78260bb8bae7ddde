"""Make a folder's wishes true: train or resume its run, then every evaluation that has no result yet.

    work(Order(Path("runs/digits/cdrl/<hash>/seed0")))        # cdrl work runs/digits/cdrl/<hash>/seed0

Several processes may do it together, each by the same call (torchrun, or `experiments.runs.processes`). The first one
holds the folder's lock and writes what belongs in it; the others read. They train and draw samples with it, and leave
before it does the rest. Whoever of them fails first says so in the folder.

`work` is idempotent: whoever calls it, an engine or a person, however often and wherever, the folder ends the same.
What is being done stands in the folder's progress; what stopped it, in its failure.
"""

from __future__ import annotations

import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import cdrl
from cdrl import checkpoint, fast, precision
from cdrl.errors import UserError, storage_trouble
from cdrl.fast import Engine
from cdrl.guard import STANDARD
from cdrl.method import Batch, Method
from cdrl.parallel import ALONE, Group, joined, place
from cdrl.recipe import ImageShape
from cdrl.trainer import ANCHOR, train
from experiments import metrics
from experiments.configuration import digest
from experiments.data import ImageSet
from experiments.evaluate import (
    Diverged,
    DrawingFailed,
    TrainedRun,
    evaluator,
    of_the_machine,
    scores_samples,
    shared,
)
from experiments.evaluate import protocols as measured_by
from experiments.measurement import by_key
from experiments.methods import Reference
from experiments.metrics import Statistics
from experiments.progress import OnProgress, announce, listening
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
        processes: that do it together, for engines; each process is told by its environment, see `cdrl.parallel`.
        exact: see `cdrl.parallel.Group`.
        retry: take up a run that ended diverged.
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
    processes: int = 1
    exact: bool = True
    retry: bool = False


@dataclass(frozen=True)
class Ended:
    """How a process left a folder.

    Attributes:
        outcome: "done", "interrupted" (there is something left), "mistake" (that the user can mend), or "crash".
        message: what went wrong; of an interrupted one "asked to stop by SIGTERM", where a signal asked that process.
    """

    outcome: str
    message: str = ""


def attempt(order: Order, stop: Stop = lambda: False) -> Ended:
    """`work` for engines: whatever happens becomes an answer that can travel between processes."""
    _keep_compiled_code_in(Path(order.cache).absolute() / "inductor")
    try:
        return Ended(work(order, stop))
    except KeyboardInterrupt:
        return Ended("interrupted")
    except UserError as error:
        return Ended("mistake", str(error))
    except Exception as error:
        return Ended("crash", _in_words(error).splitlines()[0])


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
    over_at = time.monotonic() + order.deadline - time.time()  # the time of day may jump
    first = place()[0] == 0
    if not folder.path.is_dir():
        raise UserError(f"there is no folder {folder.path}; name one such as runs/digits/cdrl/<hash>/seed0")
    if order.threads is not None:
        torch.set_num_threads(order.threads)

    def should_stop() -> bool:
        nonlocal asked_at
        if stop() or lost.is_set() or time.monotonic() > over_at:
            return True
        if time.monotonic() - asked_at < 0.5:  # shared storage is not asked before every iteration
            return False
        asked_at = time.monotonic()
        return folder.stop_asked

    with folder.lock(wait=_HANDOVER, on_lost=lost.set) if first else nullcontext():
        if first:
            folder.begin()
        try:
            order = replace(order, device=_own_device(resolve_device(order.device)), commit=order.commit or commit())
            if Statistics.at(folder.path):
                if first:
                    report = _reporter(folder, "statistics", 0, 1, should_stop)
                    Statistics.open(folder.path).make(torch.device(order.device), report)
                return "done"
            run = RunFolder.open(folder.path)
            known = {evaluation.name: evaluation for evaluation in run.evaluations()}
            names = known if order.evaluations is None else order.evaluations  # in the order that the plan wants them
            pending = [known[name] for name in names if name in known and not known[name].stands(str(order.commit))]
            with precision.products(run.settings.recipe.precision):
                return _work_on_run(run, pending, order, should_stop)
        except KeyboardInterrupt:
            return "interrupted"
        except Exception as error:
            words = str(error) if isinstance(error, UserError) else storage_trouble(error)
            if folder.failure() is None:  # else another process failed, and this one noticed
                details = traceback.format_exc() if words is None else ""
                folder.fail(_in_words(error) if words is None else words, mistake=words is not None, traceback=details)
            if words is None or isinstance(error, UserError):
                raise
            raise UserError(words) from error


def _keep_compiled_code_in(folder: Path) -> None:
    """Where PyTorch keeps what it compiles, unless somebody has chosen; elsewhere where that cannot be written."""
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def in_words(message: str, rank: int, size: int) -> str:
    """A message of one process of several, by its number."""
    return message if size == 1 else f"process {rank} of {size}: {message}"


def _in_words(error: Exception) -> str:
    return in_words(f"{type(error).__name__}: {error}", *place())


def _own_device(device: str) -> str:
    """The GPU of this process among several on a machine, unless it sees only one anyway."""
    if place()[1] == 1 or not device.startswith("cuda"):
        return device
    rank, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device != "cuda":
        raise UserError(f"device={device} is one GPU, and several processes need one each; use device=cuda")
    if there == 1:  # its own, as whoever started it says by CUDA_VISIBLE_DEVICES
        rank = 0
    if rank >= there:
        raise UserError(f"process {rank} needs a GPU of its own, and this machine shows {there}; take fewer processes")
    torch.cuda.set_device(rank)
    return f"cuda:{rank}"


def _reporter(folder: WorkFolder, phase: str, before: float, total: float, stop: Stop, where: str = "") -> OnProgress:
    """Puts the progress of a part of the work into the folder, and is where that part can be stopped."""

    def report(done: float, text: str) -> None:
        folder.report(phase, before + done, total, where + text)
        if stop():
            raise KeyboardInterrupt

    return report


def _silence(done: float, text: str) -> None:
    """The progress of a process that is not the first."""


@contextmanager
def _agreed_stop(group: Group) -> Iterator[None]:
    """All processes come out of it alike: where the first one is to stop inside, all of them are."""
    stopped = False
    try:
        yield
    except KeyboardInterrupt:
        stopped = True
    if group.decided(stopped):
        raise KeyboardInterrupt


def _in_step(report: OnProgress, group: Group) -> OnProgress:
    """Progress that all processes report at the same points of their work, where all of them can then be stopped."""

    def report_in_step(done: float, text: str) -> None:
        with _agreed_stop(group):
            report(done, text)

    return report_in_step


def _work_on_run(run: RunFolder, pending: Sequence[EvaluationFolder], order: Order, stop: Stop) -> str:
    """The story of a run."""
    settings, device, cache = run.settings, torch.device(order.device), Path(order.cache)
    recipe = settings.recipe
    with ExitStack() as together:
        group = together.enter_context(joined(recipe.shards, device, order.exact))

        # The images: a run does not go on with others than it began with. Weights of feature extractors are looked for
        # now too, not after hours of training.
        protocols = {one.name: measured_by(one.settings) for one in pending}
        with _agreed_stop(group), listening(_reporter(run, "data", 0, 1, stop) if group.first else _silence):
            announce("loading data")
            training = settings.data.load("train")
            if group.first:
                run.check_images(training)
            for evaluation in pending:
                if scores_samples(evaluation.settings["kind"]):
                    for protocol in protocols[evaluation.name]:
                        protocol.check_fits(training.channels, training.image_size)
                        metrics.build(protocol.extractor, cache, device, protocol.weights, protocol.weights_sha256)
        group.agree(
            {
                "version": f"{cdrl.__version__} ({order.commit})",
                "PyTorch": torch.__version__,
                "configuration": digest(asdict(settings)),
                "list of evaluations": [one.name for one in pending],
                "training data": training.checksum,
                "kind of device": device.type,
                "number of threads": torch.get_num_threads(),
                "exact": order.exact,
            }
        )

        # Training, from where it stands.
        method = None
        if not isinstance(recipe, Reference):
            with opened(run, order.logger if group.first else "none") as reports:
                method = _trained(run, settings, training, device, order, stop, group, reports)
            if method is None:
                return "done" if group.decided(run.state == "diverged") else "interrupted"

        # Evaluations, each kept as soon as it is made: first those in which all processes take part, then the others'.
        held_out = settings.data.load("test")
        in_order = sorted(pending, key=lambda one: not shared(one.settings["kind"])) if group.size > 1 else pending
        for number, evaluation in enumerate(in_order):
            kind, protocol = evaluation.settings["kind"], protocols[evaluation.name][0]
            if group.size > 1 and not shared(kind):
                together.close()
                if not group.first:
                    return "done"
                group = ALONE

            # How far it is.
            position = f" ({number + 1} of {len(pending)})" if len(pending) > 1 else ""
            report: OnProgress = _silence
            if group.first:
                report = _reporter(run, kind, number, len(pending), stop, f"{kind}{position}: ")
            if scores_samples(kind):
                with _agreed_stop(group):
                    if group.first:
                        Statistics(protocol, settings.data, cache).make(device, report)
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
                group=group,
            )
            begin, details = time.monotonic(), ""
            found: dict[str, Any] = {"measurements": ()}
            try:
                with listening(report if group.size == 1 else _silence):
                    measured = evaluator(kind)(trained, evaluation.settings, evaluation.path, _in_step(report, group))
                if unclear := [one.metric for one in by_key(measured).values() if not math.isfinite(one.value)]:
                    raise Diverged(f"{', '.join(dict.fromkeys(unclear))} is not finite")
                found = {"measurements": tuple(measured)}
            except Diverged as error:
                found |= {"outcome": "diverged", "reason": str(error)}
            except Exception as error:
                # What lies in the evaluation is its outcome, and the others go on. What lies in the machine, or was not
                # told to all processes, ends this attempt.
                if of_the_machine(error) or (group.size > 1 and not isinstance(error, DrawingFailed)):
                    raise
                mistake = isinstance(error, UserError)
                reason = (str(error) if mistake else f"{type(error).__name__}: {error}").splitlines()[0]
                found |= {"outcome": "failed", "reason": reason, "mistake": mistake}
                details = "" if mistake else traceback.format_exc()
            if group.first:
                result = Result(
                    **found,
                    seconds=time.monotonic() - begin,
                    commit=str(order.commit),
                    device=device_name(order.device),
                    outside=trained.health.outside / max(1, trained.health.images),
                )
                evaluation.keep(result, details)
    return "done"


def _trained(
    run: RunFolder,
    settings: RunSettings,
    training: ImageSet,
    device: torch.device,
    order: Order,
    stop: Stop,
    group: Group,
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
        seconds = settings.budget["seconds"]
        if group.first:
            run.report("measuring", 0, 1, "measuring the pace")
        each = iteration_seconds(settings, shape, batches, device, engine, _PROBE_SHARE * seconds, group)
        iterations = max(1, int(seconds / each))
        if group.first:
            run.keep_length(iterations=iterations, iteration_seconds=each, device=device_name(order.device))

    # A run that has ended is only loaded; unless it is to be tried again, or what is kept of it is damaged: then it is
    # trained on from what is left.
    method = recipe.build(shape, seed=settings.seed, iterations=iterations, device=device, engine=engine)
    status = run.status()
    if status is not None and status.status == "diverged":
        if not order.retry:
            return None
        if group.first:
            run.note(f"tried again at iteration {status.iterations}, after it had been given up: {status.reason}")
            run.take_up()
    elif status is not None:
        try:
            tensors, _ = checkpoint.load(run.path)
        except UserError:
            if not checkpoint.exists(run.path, ANCHOR):
                raise
        else:
            method.load_state(tensors)
            return method

    # What happens along the way.
    reported_at = 0.0

    def shard(iteration: int, first: int, count: int) -> Batch:
        nonlocal reported_at
        if group.first and time.monotonic() - reported_at > _SECONDS_BETWEEN_REPORTS:
            reported_at = time.monotonic()
            run.report("training", iteration, iterations, f"iteration {iteration} of {iterations}")
        return batches.batch(iteration, first, count)

    def keep_averages(iteration: int) -> None:
        reports.picture(method, iteration)
        averages = {
            f"{name}/{key}": value
            for name, learner in method.learners.items()
            for key, value in learner.ema.synchronised().state_dict().items()
        }
        checkpoint.save(run.milestone(iteration), averages, {"iteration": iteration})

    def resume(iteration: int) -> None:
        if not iteration and (lines := run.metrics.lines()):
            run.note(
                f"no checkpoint beside metrics up to iteration {lines[-1]['iteration']}: trained from the beginning"
            )
        if damaged := reports.resume(iteration):
            run.note(f"metrics.jsonl had {damaged} damaged lines; those reports are lost")

    outcome = train(
        method,
        shard,
        group=group,
        guard=replace(STANDARD, rollbacks=settings.rollbacks),
        batch_size=recipe.batch_size,
        iterations=iterations,
        on_report=reports.report,
        report_every=max(1, math.ceil(iterations / settings.reports)),
        folder=run.path,
        checkpoint_seconds=order.checkpoint_seconds,
        milestones=[max(1, round(share * iterations)) for share in settings.milestones],
        on_milestone=keep_averages,
        on_resume=resume,
        on_trip=run.keep_trip,
        on_damage=run.note,
        should_stop=stop,
        retry=order.retry,
    )
    if outcome.status == "interrupted":
        return None
    if outcome.status == "finished" and group.first:
        reports.picture(method, outcome.iteration)
    status = Status(
        status=outcome.status,
        iterations=outcome.iteration,
        seconds=outcome.seconds,
        grad_evals=round(outcome.iteration * method.training_cost * recipe.batch_size),
        commit=str(order.commit),
        device=device_name(order.device),
        reason=outcome.reason,
        rollbacks=outcome.rollbacks,
        lost=outcome.lost,
    )
    if group.first:
        run.finish(status)
    return method if outcome.status == "finished" else None


def iteration_seconds(
    settings: RunSettings,
    shape: ImageShape,
    batches: Any,
    device: torch.device,
    engine: Engine,
    at_least: float,
    group: Group,
) -> float:
    """Seconds per training iteration, over ``at_least`` so long, after a few that choose algorithms and compile.

    All processes of the group measure together, and get the first one's answer.
    """
    method = settings.recipe.build(shape, seed=settings.seed, iterations=1000, device=device, engine=engine)

    def step(iteration: int) -> None:
        size = batches.batch_size // group.shards
        method.train_step((batches.batch(iteration, number * size, size) for number in group.share()), iteration, group)
        if iteration % 10 == 0 and device.type == "cuda":  # kernels are queued faster than they run
            torch.cuda.synchronize(device)

    for iteration in range(3):
        step(iteration)
    begin, done = time.perf_counter(), 0
    while group.decided(done == 0 or time.perf_counter() - begin < at_least):
        step(done)
        done += 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return group.gathered((time.perf_counter() - begin) / done)[0]
