"""The processes of one order on one machine: one for most, several that train one model together.

Each gets its place by the variables that torchrun sets (RANK, WORLD_SIZE, MASTER_ADDR …) and a GPU of its own where
there are any. Every engine starts them by this: the local one, and a task of Ray or a job of SLURM that has several.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from typing import Any
from unittest import mock

from cdrl.cli import stop_signals
from experiments.runs.folder import WorkFolder
from experiments.runs.machine import visible_gpus
from experiments.runs.stopping import Wish, heeded
from experiments.runs.work import Ended, Order, attempt, in_words

_NOTICE = 5.0
"""Seconds that processes have to leave by themselves when one of them has died or failed."""
_PATIENCE = 30.0
"""Seconds that they have to keep a checkpoint when their job is taken from them."""


def server(threads: int) -> Any:
    """A server that has imported everything, from which processes with so many threads are forked.

    It is started with the threads' environment, which OpenMP reads once. Nothing that it imports opens a parallel
    region or asks for a GPU, so forking it is safe.
    """
    context = multiprocessing.get_context("forkserver")
    late = ["sklearn.datasets", "torch._dynamo", "experiments.evaluate.samples"]  # seconds each, else in every run
    context.set_forkserver_preload([__name__, *late])
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals())  # the server outlives one to the whole group
    try:
        with mock.patch.dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads)):
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


class Processes:
    """The processes of one order, from `start` to what `outcome` answers.

    Args:
        context: of `server`.
        order: says how many.
        gpus: for each process the GPU that it sees; "" leaves it all that there are.
    """

    def __init__(self, context: Any, order: Order, gpus: Sequence[str]) -> None:
        self._order, self._members = order, []
        self._asked = False
        place = {"WORLD_SIZE": str(order.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
        for rank, gpu in zip(range(order.processes), gpus, strict=False):
            environment = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
            if order.processes > 1:
                environment |= {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_body, args=(order, sender, environment))
            self._members.append((process, receiver, sender))

    def start(self) -> None:
        """Start all of them."""
        for process, _, sender in self._members:
            process.start()
            sender.close()  # so that the pipe ends with the process

    @property
    def pids(self) -> list[int]:
        """Of those that were started, by rank."""
        return [process.pid for process, _, _ in self._members if process.pid is not None]

    def terminate(self) -> None:
        """Ask to stop: the first process keeps a checkpoint, and all leave."""
        self._asked = True
        for process, _, _ in self._members:
            process.terminate()  # which it takes for the wish to stop

    def end(self, patience: float) -> None:
        """Wait so many seconds for them to leave, and then leave nobody."""
        deadline = time.monotonic() + patience
        for process, _, _ in self._members:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()

    def outcome(self) -> Ended:
        """How the order ended: waits for the first process's answer, or for the first that cannot go on.

        Where one died or failed, the others notice and leave, or are killed a few seconds later.
        """
        waiting: dict[Any, int] = {receiver: rank for rank, (_, receiver, _) in enumerate(self._members)}
        answers: dict[int, Ended] = {}
        told: Ended | None = None
        death: str | None = None
        kill_at = math.inf
        while waiting:
            # Whoever has something to say, or has died by itself.
            ready: list[Any] = wait(list(waiting), timeout=None if kill_at == math.inf else _NOTICE)
            for receiver in ready:
                rank = waiting.pop(receiver)
                try:
                    answers[rank] = answer = receiver.recv()
                    if answer.outcome == "interrupted" and answer.message:
                        if self._asked:
                            answers[rank] = Ended("interrupted")
                        else:
                            told = answer  # by a signal that was not ours; what the others say follows from it
                except EOFError:
                    process = self._members[rank][0]
                    process.join()
                    if death is None and kill_at == math.inf:
                        death = in_words(_death(process.exitcode), rank, len(self._members))
                receiver.close()

            # It takes the others with it.
            failed = death is not None or any(one.outcome in ("mistake", "crash") for one in answers.values())
            if failed and kill_at == math.inf:
                kill_at = time.monotonic() + _NOTICE
                self.terminate()
            if time.monotonic() >= kill_at:
                for process, _, _ in self._members:
                    process.kill()
        self.end(0.0 if death is not None else _NOTICE)
        if told is not None:
            return told

        # The cause stands in the folder: whoever failed first put it there, the others only noticed.
        folder = WorkFolder(self._order.folder)
        if death is not None:
            folder.fail(death, mistake=False)
            return Ended("crash", death)
        failures = [one for one in answers.values() if one.outcome in ("mistake", "crash")]
        kept = folder.failure() if failures else None
        causes = [one for one in failures if kept is not None and kept.message.startswith(one.message)]
        return (causes or failures or [answers[0]])[0]


def attempt_together(order: Order) -> Ended:
    """`attempt` inside a task or job that has the GPUs of all the order's processes."""
    if order.processes == 1:
        return attempt(order)
    gpus = visible_gpus() if order.device != "cpu" else []
    processes = Processes(server(order.threads or 1), order, gpus or [""] * order.processes)
    try:
        processes.start()
        return processes.outcome()
    finally:  # also when the job is pre-empted
        processes.terminate()
        processes.end(_PATIENCE)


def _body(order: Order, sender: Any, environment: Mapping[str, str]) -> None:
    """What a process does; it keeps a checkpoint and leaves when a signal asks it to, or its command dies."""
    os.environ.update(environment)  # before anything asks for a GPU or for the others
    for name in (signal.SIGINT, signal.SIGUSR2):  # for the command, which then stops its work in order
        signal.signal(name, signal.SIG_IGN)
    parent, wish = multiprocessing.parent_process(), Wish()

    def notice_the_command_dying() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os.kill(os.getpid(), signal.SIGTERM)

    def tell_the_first() -> None:
        if os.environ.get("RANK", "0") != "0":
            WorkFolder(order.folder).ask_to_stop()

    def answer(ended: Ended) -> None:
        if ended.outcome == "interrupted" and wish.number is not None:
            ended = Ended("interrupted", f"asked to stop by {signal.Signals(wish.number).name}")
        with suppress(BrokenPipeError):
            sender.send(ended)

    with heeded(wish, tell_the_first, at_end=lambda _: answer(Ended("interrupted"))):
        threading.Thread(target=notice_the_command_dying, daemon=True).start()
        ended = attempt(order, wish)
    answer(ended)


def _death(code: int | None) -> str:
    """Why a process is gone that said nothing."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        memory = "; the system does that when memory runs out" if name == "SIGKILL" else ""
        return f"killed by signal {-code}, {name}{memory}"
    return f"its process ended with code {code} and no message"


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
