"""Where work on folders is done: this machine, a Ray cluster, or a SLURM queue. All take the same orders.

An engine starts `experiments.runs.work.attempt` somewhere for every order and hands back one handle for each. What
happens in between stands in the folders; what an engine adds is processes, devices and retries. Who works in a folder
asks it for the wish to stop, so stopping is the same everywhere; and since work resumes, so is every retry.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import queue
import shlex
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

from cdrl.errors import UserError
from experiments.runs.folder import WorkFolder
from experiments.runs.machine import cpu_cores, resolve_device, visible_gpus
from experiments.runs.work import Ended, Order, attempt

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
    """Processes of this machine: one per order, forked from a server that has imported everything.

    A process that dies takes only its own order with it. One whose command has died keeps a checkpoint and leaves. On
    several GPUs every process sees one of them; on a CPU it has one thread, so that numbers do not depend on the cores.
    """

    stays = False

    def __init__(self, launcher: Mapping[str, Any], device: str, orders: int) -> None:
        gpus = visible_gpus() if device == "cuda" else []
        workers = launcher["workers"]
        if workers == "auto":
            workers = len(gpus) or (1 if device.startswith("cuda") else cpu_cores())
        workers = max(1, min(workers, orders))
        threads = launcher["threads"]
        if threads == "auto":
            threads = max(1, cpu_cores() // workers) if device.startswith("cuda") else 1
        where = f"{len(gpus)} GPUs" if len(gpus) > 1 else device
        self.description = f"on {where}, {workers} at a time, {_counted(threads, 'CPU thread')} each"
        self._device, self._threads = device, threads
        self._slots = ThreadPoolExecutor(workers, thread_name_prefix="slot")
        self._processes: dict[Path, Any] = {}
        self._closing = False
        self._gpus: queue.SimpleQueue[str] = queue.SimpleQueue()
        for number in range(workers):  # a token per worker: more workers than GPUs share them evenly
            self._gpus.put(gpus[number % len(gpus)] if gpus else "")

        # The server is started with the threads' environment, which OpenMP reads once. Nothing that it imports opens a
        # parallel region or asks for a GPU, so forking it is safe.
        self._context = multiprocessing.get_context("forkserver")
        late = ["sklearn.datasets", "torch._dynamo", "experiments.evaluate.samples"]  # seconds each, else in every run
        self._context.set_forkserver_preload([__name__, *late])
        with mock.patch.dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads)):
            forkserver.ensure_running()

    def submit(self, orders: Sequence[Order]) -> list[Handle]:
        local = [replace(order, device=self._device, threads=self._threads) for order in orders]
        return [self._slots.submit(self._carry_out, order) for order in local]

    def close(self) -> None:
        self._closing = True
        self._slots.shutdown(wait=False, cancel_futures=True)
        running = list(self._processes.values())
        for process in running:
            process.terminate()  # which it takes for the wish to stop
        deadline = time.monotonic() + _PATIENCE
        for process in running:
            process.join(max(0.1, deadline - time.monotonic()))
            process.kill()
        self._slots.shutdown(wait=True)

    def _carry_out(self, order: Order) -> Ended:
        """One process, from start to end, in a slot's thread."""
        gpu = self._gpus.get()
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_local_process, args=(order, sender, gpu))
        try:
            process.start()
            self._processes[order.folder] = process
            if self._closing:  # too late to be seen by `close`
                process.terminate()
            sender.close()  # so that the pipe ends with the process
            try:
                ended: Ended = receiver.recv()
                process.join()
            except EOFError:
                process.join()
                ended = Ended("crash", _death(process.exitcode))
                WorkFolder(order.folder).fail(ended.message, mistake=False)
            return ended
        finally:
            self._processes.pop(order.folder, None)
            self._gpus.put(gpu)
            receiver.close()


def _local_process(order: Order, sender: Any, gpu: str) -> None:
    """The body of a local process; it keeps a checkpoint and leaves when it is terminated or its command dies."""
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before anything asks for a GPU
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command, which then stops its work in order
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    parent = multiprocessing.parent_process()

    def notice_the_command_dying() -> None:
        if parent is not None:
            wait([parent.sentinel])
            stop.set()

    threading.Thread(target=notice_the_command_dying, daemon=True).start()
    ended = attempt(order, stop.is_set)
    with suppress(BrokenPipeError):
        sender.send(ended)


def _death(code: int | None) -> str:
    """Why a process is gone that said nothing."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        memory = "; the system does that when memory runs out" if name == "SIGKILL" else ""
        return f"killed by signal {-code}, {name}{memory}"
    return f"its process ended with code {code} and no message"


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
        self.threads = _cpus(launcher["threads"], gpus)
        self._task = ray.remote(num_cpus=self.threads, num_gpus=gpus, max_retries=launcher["retries"])(_attempt_in)
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        self.description = f"on a Ray cluster of {_counted(nodes, 'node')}, {_counted(self.threads, 'CPU thread')} each"

    def start(self, tasks: Sequence[_Task]) -> None:
        for task in tasks:
            task.reference = self._task.remote(os.getcwd(), task.order)

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
    """`attempt` where relative paths mean what they mean to the command; SLURM's jobs begin there by themselves."""
    os.chdir(directory)
    return attempt(order)


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
        gpus = 0 if device == "cpu" else launcher["gpus"]
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
                cpus_per_task=self.threads,
                gpus_per_node=gpus,
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
        return attempt(order)

    def checkpoint(self, order: Order) -> Any:
        """Asked when the job is pre-empted or out of time: the same order again; its folder says where to go on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, order)


def _cpus(threads: int | str, gpus: float) -> int:
    """CPUs per run: as configured, or four to feed a GPU, and one without."""
    return int(threads) if threads != "auto" else 4 if gpus else 1


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _python_path() -> str:
    """Lets a process elsewhere import this very checkout."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
