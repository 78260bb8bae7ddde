"""The processes of one order on one machine: one for most, several that train one model together.

Each gets its place by the variables that torchrun sets (RANK, WORLD_SIZE, MASTER_ADDR …) and a GPU of its own where
there are any. Every engine starts them by this: the local one, and a task of Ray or a job of SLURM that has several.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.connection import wait
from typing import Any
from unittest import mock

from experiments.runs.folder import WorkFolder
from experiments.runs.work import Ended, Order, attempt

_NOTICE = 5.0
"""Seconds that processes have to leave by themselves when one of them has died."""


def server(threads: int) -> Any:
    """A server that has imported everything, from which processes with so many threads are forked.

    It is started with the threads' environment, which OpenMP reads once. Nothing that it imports opens a parallel
    region or asks for a GPU, so forking it is safe.
    """
    context = multiprocessing.get_context("forkserver")
    late = ["sklearn.datasets", "torch._dynamo", "experiments.evaluate.samples"]  # seconds each, else in every run
    context.set_forkserver_preload([__name__, *late])
    with mock.patch.dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads)):
        forkserver.ensure_running()
    return context


class Processes:
    """The processes of one order, from `start` to what `wait` answers.

    Args:
        context: of `server`.
        order: says how many.
        gpus: for each process the GPU that it sees; "" leaves it all that there are.
    """

    def __init__(self, context: Any, order: Order, gpus: Sequence[str]) -> None:
        self._order, self._started = order, []
        place = {"WORLD_SIZE": str(order.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
        for rank, gpu in zip(range(order.processes), gpus, strict=False):
            receiver, sender = context.Pipe(duplex=False)
            environment = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
            if order.processes > 1:
                environment |= {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = context.Process(target=_body, args=(order, sender, environment))
            self._started.append((process, receiver, sender))

    def start(self) -> None:
        for process, _, sender in self._started:
            process.start()
            sender.close()  # so that the pipe ends with the process

    def terminate(self) -> None:
        """Ask to stop: a checkpoint is kept, and all leave."""
        for process, _, _ in self._started:
            process.terminate()  # which it takes for the wish to stop

    def end(self, patience: float) -> None:
        """Make sure that nobody is left after so many seconds."""
        deadline = time.monotonic() + patience
        for process, _, _ in self._started:
            process.join(max(0.1, deadline - time.monotonic()))
            process.kill()

    def wait(self) -> Ended:
        """How the order ended: the first process's answer, or why one of them could not go on.

        When one dies or fails, the others notice by themselves or are made to leave within seconds.
        """
        answers: dict[int, Ended] = {}
        deaths: dict[int, str] = {}
        waiting = {receiver: rank for rank, (_, receiver, _) in enumerate(self._started)}
        killed_at, names = float("inf"), "process {} of " + str(len(self._started))
        while waiting:
            # Whoever has something to say, or has died.
            for receiver in wait(list(waiting), timeout=max(0.0, min(1.0, killed_at - time.monotonic()))):
                rank = waiting.pop(receiver)
                process = self._started[rank][0]
                try:
                    answers[rank] = receiver.recv()
                except EOFError:
                    process.join()
                    if killed_at == float("inf") or killed_at > time.monotonic():
                        deaths[rank] = _death(process.exitcode)
                receiver.close()
            # One that died or failed takes the others with it.
            if killed_at == float("inf") and (deaths or any(one.outcome in ("mistake", "crash") for one in answers.values())):
                killed_at = time.monotonic() + _NOTICE
                self.terminate()
            if time.monotonic() > killed_at:
                for process, _, _ in self._started:
                    process.kill()

