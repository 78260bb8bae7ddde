"""Where work on folders is done: this machine, a Ray cluster, or a SLURM queue. All take the same orders.

An engine has `experiments.runs.work.attempt` called somewhere for every order and hands back one handle for each. What
happens in between stands in the folders; what an engine adds is processes, devices and retries. Who works in a folder
asks it for the wish to stop, so stopping is the same everywhere; and since work resumes, so is every retry.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from cdrl.errors import UserError
from experiments.runs.folder import WorkFolder
from experiments.runs.machine import cpu_cores, resolve_device, visible_gpus
from experiments.runs.processes import Processes, attempt_together, server
from experiments.runs.work import Ended, Order

_PATIENCE = 60.0
"""Seconds that work has to keep a checkpoint when it is asked to stop."""


class Handle(Protocol):
    """An order that was handed in."""

    def done(self) -> bool: ...

    def result(self) -> Ended:
        """How it ended; waits until it has."""
        ...

    def cancel(self) -> bool:
        """Take it back if it has not begun; true where it never will."""
        ...


class Engine(Protocol):
    """A place that carries out orders.

    Attributes:
        description: where, and how many at a time, for people.
        stays: whether work goes on when the command that ordered it ends.
    """

    description: str
    stays: bool

    def submit(self, orders: Sequence[Order]) -> list[Handle]:
        """Hand orders in, the first ones to be begun first."""
        ...

    def close(self) -> None:
        """Ask everything that runs here to stop, wait for it, and free what the engine holds."""
        ...


def engine(launcher: Mapping[str, Any], device: str, orders: int) -> Engine:
    """The engine of a ``launcher`` configuration.

    Args:
        launcher: a resolved file of ``conf/launcher``.
        device: auto | cpu | cuda | cuda:<number>; auto is decided where the work is done.
        orders: how many there will be.

    Raises:
        UserError: its package is not installed, it cannot be reached, or there is no such device.
    """
    if launcher["name"] == "ray":
        return Ray(launcher, device)
    if launcher["name"] == "slurm":
        return Slurm(launcher, device)
    return Local(launcher, resolve_device(device), orders)


class Local:
    """Processes of this machine, forked from a server that has imported everything: one per order, or as many as it
    asks for.

    A process that dies takes only its own order with it. One whose command has died keeps a checkpoint and leaves. On
    several GPUs every process sees one of them; on a CPU it has one thread, so that numbers do not depend on the cores.
    """

    stays = False

    def __init__(self, launcher: Mapping[str, Any], device: str, orders: int) -> None:
        gpus = visible_gpus() if device == "cuda" else []
        each = launcher["gpus_per_run"]
        if each > 1 and device.startswith("cuda") and len(gpus) < each:
            there = f"this machine shows {len(gpus)}" if device == "cuda" else f"device={device} is one"
            raise UserError(f"launcher.gpus_per_run={each} needs as many GPUs, and {there}; take fewer")
        workers = launcher["workers"]
        if workers == "auto":
            workers = (len(gpus) or (1 if device.startswith("cuda") else cpu_cores())) // each
        workers = max(1, min(workers, orders))
        threads = launcher["threads"]
        if threads == "auto":
            threads = max(1, cpu_cores() // (workers * each)) if device.startswith("cuda") else 1
        where = f"{len(gpus)} GPUs" if len(gpus) > 1 else device
        by = f" by {each} processes each" if each > 1 else ""
        self.description = f"on {where}, {workers} at a time{by}, {_counted(threads, 'CPU thread')} each"
        self._device, self._threads = device, threads
        self._slots = ThreadPoolExecutor(workers, thread_name_prefix="slot")
        self._running: dict[Path, Processes] = {}
        self._closing = False
        self._gpus: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        for number in range(workers):  # a token per worker: more workers than GPUs share them evenly
            ranks = range(number * each, (number + 1) * each)
            self._gpus.put([gpus[rank % len(gpus)] if gpus else "" for rank in ranks])
        self._context = server(threads)

    def submit(self, orders: Sequence[Order]) -> list[Handle]:
        local = [replace(order, device=self._device, threads=self._threads) for order in orders]
        return [self._slots.submit(self._carry_out, order) for order in local]

    def close(self) -> None:
        self._closing = True
        self._slots.shutdown(wait=False, cancel_futures=True)
        running = list(self._running.values())
        for processes in running:
            processes.terminate()
        deadline = time.monotonic() + _PATIENCE
        for processes in running:
            processes.end(max(0.1, deadline - time.monotonic()))
        self._slots.shutdown(wait=True)

    def _carry_out(self, order: Order) -> Ended:
        """Its processes, from start to end, in a slot's thread."""
        gpus = self._gpus.get()
        try:
            processes = Processes(self._context, order, gpus)
            processes.start()
            self._running[order.folder] = processes
            if self._closing:  # too late to be seen by `close`
                processes.terminate()
            return processes.outcome()
        finally:
            self._running.pop(order.folder, None)
            self._gpus.put(gpus)


class _Task:
    """The handle of an order that another system carries out, begun when its engine has room."""

    def __init__(self, engine: _Cluster, order: Order) -> None:
        self.engine, self.order = engine, order
        self.reference: Any = None
        """What the system calls it; None before it has begun."""
        self.cancelled = self.ended = False

    def done(self) -> bool:
        self.engine.begin()
        if not self.ended and self.reference is not None:
            self.ended = self.engine.has_ended(self.reference)
        return self.ended or self.cancelled

    def result(self) -> Ended:
        while not self.done():
            time.sleep(0.05)
        if self.cancelled:
            return Ended("interrupted")
        ended = self.engine.outcome(self.reference)
        if ended.outcome == "crash":
            WorkFolder(self.order.folder).fail(ended.message, mistake=False)
        return ended

    def cancel(self) -> bool:
        self.cancelled = self.cancelled or self.reference is None
        return self.cancelled


class _Cluster(ABC):
    """What Ray and SLURM have in common: at most ``limit`` orders are begun at a time."""

    threads: int

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.tasks: list[_Task] = []

    def submit(self, orders: Sequence[Order]) -> list[Handle]:
        made = [_Task(self, replace(order, threads=self.threads)) for order in orders]
        self.tasks += made
        self.begin()
        return list(made)

    def begin(self) -> None:
        """Hands on what there is room for."""
        running = sum(task.reference is not None and not task.ended for task in self.tasks)
        waiting = [task for task in self.tasks if task.reference is None and not task.cancelled]
        room = int(min(len(waiting), max(0, self.limit - running)))
        if room:
            self.start(waiting[:room])

    @abstractmethod
    def start(self, tasks: Sequence[_Task]) -> None:
        """Begin tasks: give each its reference."""

    @abstractmethod
    def has_ended(self, reference: Any) -> bool: ...

    @abstractmethod
    def outcome(self, reference: Any) -> Ended: ...


class Ray(_Cluster):
    """Tasks of a Ray cluster, on one machine without any set-up or joined by its address.

    A task whose worker or node dies is retried, elsewhere if need be, and resumes from the checkpoint.
    """

    stays = False

    def __init__(self, launcher: Mapping[str, Any], device: str) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("launcher=ray needs the package ray; install it: pip install 'cdrl[ray]'") from None
        limit = math.inf if launcher["workers"] == "auto" else launcher["workers"]
        super().__init__(limit)
        self._ray, self._ours = ray, not ray.is_initialized()
        if self._ours:
            try:
                ray.init(
                    address=launcher["address"],
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    runtime_env={"env_vars": {"PYTHONPATH": _python_path()}},
                    include_dashboard=None if launcher["address"] else False,
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(f"cannot reach a Ray cluster ({error}); set launcher.address, or null") from None
        gpus = launcher["gpus"]
        if gpus == "auto":
            gpus = 1 if device != "cpu" and ray.cluster_resources().get("GPU") else 0
        _check_whole(launcher["gpus_per_run"], gpus)
        self.threads, self._gpus = _cpus(launcher["threads"], gpus), gpus
        self._task = ray.remote(max_retries=launcher["retries"])(_attempt_in)
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        self.description = f"on a Ray cluster of {_counted(nodes, 'node')}, {_counted(self.threads, 'CPU thread')} each"

    def start(self, tasks: Sequence[_Task]) -> None:
        for task in tasks:
            needs = {"num_cpus": task.order.processes * self.threads, "num_gpus": task.order.processes * self._gpus}
            task.reference = self._task.options(**needs).remote(os.getcwd(), task.order)

    def has_ended(self, reference: Any) -> bool:
        ready, _ = self._ray.wait([reference], timeout=0)
        return bool(ready)

    def outcome(self, reference: Any) -> Ended:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Ended("crash", str(error).strip().splitlines()[0])

    def close(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while left := [task for task in self.tasks if not task.cancel() and not task.done()]:
            for task in left:  # again and again: one that has just begun forgets earlier wishes
                WorkFolder(task.order.folder).ask_to_stop()
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        if self._ours:
            self._ray.shutdown()


def _attempt_in(directory: str, order: Order) -> Ended:
    """`attempt_together` where relative paths mean what they mean to the command; SLURM's jobs begin there anyway."""
    os.chdir(directory)
    return attempt_together(order)


class Slurm(_Cluster):
    """A job array of a SLURM cluster (through submitit), which goes on when the command that submitted it ends.

    A job that is pre-empted or runs out of time is requeued with the same folder and resumes from its checkpoint.
    """

    stays = True

    def __init__(self, launcher: Mapping[str, Any], device: str) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError(
                "launcher=slurm needs the package submitit; install it: pip install 'cdrl[slurm]'"
            ) from None
        queued = launcher["cluster"] != "local"  # a queue bounds its arrays itself
        super().__init__(math.inf if queued else launcher["workers"])
        self._job_class = submitit.SlurmJob if queued else submitit.LocalJob
        gpus, each = 0 if device == "cpu" else launcher["gpus"], launcher["gpus_per_run"]
        _check_whole(each, gpus)
        self.threads = _cpus(launcher["threads"], gpus)
        try:
            self._executor = submitit.AutoExecutor(
                Path(launcher["logs"]).absolute() / "%j",
                cluster=launcher["cluster"],
                **{f"{launcher['cluster']}_max_num_timeout": launcher["requeues"]},
            )
            self._executor.update_parameters(
                name="cdrl",
                timeout_min=launcher["minutes"],
                nodes=1,
                tasks_per_node=1,  # which starts the processes of a run itself
                cpus_per_task=each * self.threads,
                gpus_per_node=each * gpus,
                mem_gb=launcher["memory_gb"],
                slurm_partition=launcher["partition"],
                slurm_account=launcher["account"],
                slurm_setup=[f"export PYTHONPATH={shlex.quote(_python_path())}", *launcher["setup"]],
                local_setup=[f"export PYTHONPATH={shlex.quote(_python_path())}"],
                slurm_array_parallelism=launcher["workers"],
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"no SLURM queue here ({error}); run this where sbatch is, or use launcher=local") from None
        self.description = f"as jobs of a SLURM queue (cluster={launcher['cluster']}), logs in {launcher['logs']}"

    def start(self, tasks: Sequence[_Task]) -> None:
        """What an earlier command submitted, and still waits or runs, is waited for instead of submitted again."""
        for task in tasks:
            if (facts := WorkFolder(task.order.folder).submission()) is not None:
                job: Any = self._job_class(facts["logs"], facts["job"])
                task.reference = None if job.done() else job
        new = [task for task in tasks if task.reference is None]
        with self._executor.batch():
            for task in new:
                task.reference = self._executor.submit(SlurmWork(), task.order)
        for task in new:
            job = task.reference
            WorkFolder(task.order.folder).keep_submission(job.job_id, str(job.paths.folder))

    def has_ended(self, reference: Any) -> bool:
        return reference.done()

    def outcome(self, reference: Any) -> Ended:
        exception = reference.exception()
        if exception is None:
            return reference.result()
        lines = [line for line in str(exception).splitlines() if line.strip()] or ["no message"]
        return Ended("crash", f"job {reference.job_id}: {lines[-1].strip()}; its log is {reference.paths.stderr}")

    def close(self) -> None:
        """Jobs stay in their queue."""


class SlurmWork:
    """What a job of the queue calls."""

    def __call__(self, order: Order) -> Ended:
        return attempt_together(order)

    def checkpoint(self, order: Order) -> Any:
        """Asked when the job is pre-empted or out of time: the same order again; its folder says where to go on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, order)


def _check_whole(each: int, gpus: float) -> None:
    """Raises `UserError` for processes of one run that would share a GPU."""
    if each > 1 and gpus not in (0, 1):
        raise UserError(f"launcher.gpus_per_run={each} takes one GPU for each process; leave launcher.gpus={gpus} out")


def _cpus(threads: int | str, gpus: float) -> int:
    """CPUs per process: as configured, or four to feed a GPU, and one without."""
    return int(threads) if threads != "auto" else 4 if gpus else 1


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _python_path() -> str:
    """Lets a process elsewhere import this very checkout."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
