"""Carry out plans: start what is missing, a few processes at a time, show progress, survive interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cdrl.errors import UserError
from experiments.plan import Job, Plan, one_a_run
from experiments.provenance import commit, resolve_device

EVALUATION_SHARE = 0.1
"""What an evaluation is taken to cost, as a share of the longest training."""
_PLAIN_EVERY = 15.0
_PATIENCE = 60.0
"""Seconds that a worker has to keep a checkpoint."""


@dataclass
class _Active:
    """A job that a worker is doing."""

    job: Job
    task: TaskID
    training: float
    """Work to train, see `_training`; ``size``, ``done`` and ``started_at`` are in its units."""
    size: float
    """All work to do."""
    done: float = 0.0
    started_at: float | None = None
    """What was done when the worker first reported: work of an earlier call."""
    text: str = ""
    over: bool = False
    error: str | None = None


@dataclass(eq=False)
class _Worker:
    """A process that does one job after another: starting one takes as long as a small evaluation."""

    process: subprocess.Popen[str]
    active: _Active | None = None
    errors: list[str] = field(default_factory=list)
    """The last lines of its standard error."""
    listeners: list[threading.Thread] = field(default_factory=list)

    @property
    def idle(self) -> bool:
        return self.active is None and self.process.poll() is None


def carry_out(plans: Sequence[Plan], complete: Callable[[Plan], None]) -> None:
    """Run every missing job of plans that share everything but their experiment.

    Args:
        complete: called for each plan as soon as nothing of it is left to do.

    Raises:
        UserError: a job failed. After a mistake that the user can mend no other is started; after a crash all are.
        KeyboardInterrupt: after the running jobs have kept their checkpoints.
    """
    left = list(plans)

    def look() -> None:
        for plan in [plan for plan in left if not plan.missing()]:
            left.remove(plan)
            complete(plan)

    look()
    if not left:
        return
    jobs, config = one_a_run(job for plan in left for job in plan.missing()), plans[0].config
    device = resolve_device(config["device"])
    workers, threads = parallelism(config["launcher"], device, len(jobs))
    title = f"{plans[0].name if len(plans) == 1 else 'all'} ({plans[0].scale})"
    _Pool(title, jobs, config, device, workers, threads, look).run()
    look()
    if left:
        raise UserError(f"{left[0].name} is not complete: something took its results away; the same command goes on")


def parallelism(launcher: dict[str, Any], device: str, jobs: int) -> tuple[int, int]:
    """(runs at a time, CPU threads each)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = launcher["workers"]
    if workers == "auto":
        workers = 1 if device.startswith("cuda") else cores
    workers = max(1, min(int(workers), jobs))
    threads = launcher["threads"]
    return workers, max(1, cores // workers) if threads == "auto" else int(threads)


class _Pool:
    """The jobs, at most ``workers`` of them alive; ``look`` is called after each."""

    def __init__(
        self,
        title: str,
        jobs: Sequence[Job],
        config: Mapping[str, Any],
        device: str,
        workers: int,
        threads: int,
        look: Callable[[], None],
    ) -> None:
        self.title, self.config, self.device, self.look = title, config, device, look
        self.most, self.threads, self.commit = workers, threads, commit()
        self.total, self.finished = len(jobs), 0
        self.waiting = deque(zip(jobs, _training(jobs), strict=True))
        self.workers: list[_Worker] = []
        self.mistakes: list[str] = []
        self.crashes: list[str] = []
        self.begin = time.monotonic()
        self.first_heard: float | None = None
        """When work began: starting the first processes says nothing of the time that is left."""
        self.work_done = 0.0
        self.console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.overall = self.bars.add_task(self.title, total=self.total, text="")

    @property
    def active(self) -> list[_Active]:
        return [worker.active for worker in self.workers if worker.active is not None]

    def run(self) -> None:
        self.console.print(
            f"{self.title}: {self.total} runs to do on {self.device}, "
            f"{self.most} at a time, {self.threads} CPU threads each; Ctrl-C keeps everything",
            highlight=False,
        )
        printed = time.monotonic()
        with self.bars:
            try:
                while self.waiting or self.active:
                    self._start_some()
                    self._collect()
                    if not self.console.is_terminal and time.monotonic() - printed > _PLAIN_EVERY:
                        printed = time.monotonic()
                        self._print_plain()
                    time.sleep(0.1)
            except KeyboardInterrupt:
                self.console.print("stopping: the running jobs keep a checkpoint …", highlight=False)
                raise
            finally:
                self._dismiss(self.workers)
        if failed := self.mistakes + self.crashes:
            raise UserError(failed[0] + (f" ({len(failed)} runs failed)" if len(failed) > 1 else ""))

    def _start_some(self) -> None:
        if self.mistakes:
            self.waiting.clear()
        while self.waiting and len(self.active) < self.most:
            worker = next((worker for worker in self.workers if worker.idle), None) or self._hire()
            self._give(worker, *self.waiting.popleft())
        if not self.waiting:
            self._dismiss([worker for worker in self.workers if worker.idle])

    def _hire(self) -> _Worker:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment(),
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then stops its children in order
        )
        worker = _Worker(process)
        for listen in (self._listen, self._listen_errors):
            worker.listeners.append(threading.Thread(target=listen, args=(worker,), daemon=True))
            worker.listeners[-1].start()
        self.workers.append(worker)
        return worker

    def _give(self, worker: _Worker, job: Job, training: float) -> None:
        description = described(job, self.config, self.commit, self.device, self.threads)
        try:
            job.run.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write to {job.run.folder} ({error.strerror}); choose another folder: runs=…"
            ) from error
        name, size = f"  {job.run.folder.parts[-3]} seed {job.run.seed}", _size(job, training)
        worker.active = _Active(job, self.bars.add_task(name, total=size, text="starting"), training, size)
        worker.errors.clear()
        assert worker.process.stdin is not None
        worker.process.stdin.write(json.dumps(description) + "\n")
        worker.process.stdin.flush()

    def _environment(self) -> dict[str, str]:
        cache = Path(self.config["cache"]).absolute() / "inductor"
        threads = str(self.threads)
        return {
            "TORCHINDUCTOR_CACHE_DIR": str(cache),
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])),
        }

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            try:
                facts = json.loads(line)
            except json.JSONDecodeError:
                worker.errors.append(line.rstrip())
                continue
            if worker.active is not None:
                self._hear(worker.active, facts)

    def _listen_errors(self, worker: _Worker) -> None:
        assert worker.process.stderr is not None
        for line in worker.process.stderr:
            worker.errors.append(line.rstrip())
            del worker.errors[:-200]

    def _hear(self, active: _Active, facts: dict[str, Any]) -> None:
        if "error" in facts:
            active.error = facts["error"]
            return
        if "over" in facts:
            active.over = True
            return
        if "iteration" in facts:
            active.done = active.training * facts["iteration"] / facts["iterations"]
            active.text = f"iteration {facts['iteration']} of {facts['iterations']}"
        elif "evaluating" in facts:
            left = len(active.job.evaluations) - facts["number"] - facts["done"]
            active.done = active.size - EVALUATION_SHARE * left
            active.text = f"{facts['evaluating']}: {facts['text']}"
        if active.started_at is None:
            active.started_at = active.done
        self.first_heard = self.first_heard or time.monotonic()
        self.bars.update(active.task, completed=active.done, text=active.text)

    def _collect(self) -> None:
        for worker in list(self.workers):
            active = worker.active
            if active is None or not (active.over or worker.process.poll() is not None):
                continue
            self.bars.remove_task(active.task)
            if active.over:
                worker.active = None
                self.finished += 1
                self.work_done += active.size - (active.started_at or 0.0)
                self.look()
            else:
                self._dismiss([worker])  # and hear all that it said
                if active.error is not None:
                    self.mistakes.append(active.error)
                else:
                    self.crashes.append(self._crash(worker, active.job))
                    self.console.print(self.crashes[-1], style="red", markup=False, highlight=False, soft_wrap=True)
        completed = self.finished + sum(one.done / one.size for one in self.active)
        title = f"{self.title} {self.finished}/{self.total}"
        self.bars.update(self.overall, completed=completed, description=title, text=self._eta())

    def _crash(self, worker: _Worker, job: Job) -> str:
        log = job.run.folder / "error.log"
        log.write_text("\n".join(worker.errors) + "\n")
        last = next((line for line in reversed(worker.errors) if line.strip()), "no message")
        return f"a run stopped unexpectedly ({last.strip()}); details in {log}; the same command tries again"

    def _eta(self) -> str:
        done = self.work_done + sum(one.done - (one.started_at or 0.0) for one in self.active)
        left = sum(_size(*one) for one in self.waiting) + sum(one.size - one.done for one in self.active)
        if self.first_heard is None or done < 0.02:
            return "time left: measuring"
        seconds = left * (time.monotonic() - self.first_heard) / done
        return f"time left: about {_clock(seconds)}"

    def _print_plain(self) -> None:
        running = "; ".join(
            f"{one.job.run.folder.parts[-3]} seed {one.job.run.seed}: {one.text}" for one in self.active
        )
        self.console.print(
            f"[{_clock(time.monotonic() - self.begin)}] {self.finished} of {self.total} done, "
            f"{self._eta()} ({running})",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )

    def _dismiss(self, workers: Sequence[_Worker]) -> None:
        """Tell workers to keep what they have and leave, and wait until they have left."""
        for worker in workers:
            assert worker.process.stdin is not None
            with suppress(BrokenPipeError):
                worker.process.stdin.close()
        deadline = time.monotonic() + _PATIENCE
        for worker in workers:
            try:
                worker.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.send_signal(signal.SIGKILL)
            for listener in worker.listeners:
                listener.join(1.0)
        self.workers = [worker for worker in self.workers if worker not in workers]


def described(job: Job, config: Mapping[str, Any], commit: str, device: str, threads: int) -> dict[str, Any]:
    """What a worker is told of a job; ``config`` is its plan's."""
    return {
        "folder": str(job.run.folder),
        "config": job.run.config,
        "seed": job.run.seed,
        "commit": commit,
        "device": device,
        "engine": config["engine"],
        "threads": threads,
        "cache": config["cache"],
        "evaluations": [{"folder": str(e.folder), "settings": e.settings} for e in job.evaluations],
    }


def _training(jobs: Sequence[Job]) -> list[float]:
    """How long each job will train, in units of the largest budget on its data set."""
    budgets: list[tuple[str, float]] = [
        (job.run.config["data"]["name"], 0.0 if job.run.done else job.run.config["budget"]) for job in jobs
    ]
    return [budget and budget / max(other for data, other in budgets if data == name) for name, budget in budgets]


def _size(job: Job, training: float) -> float:
    return training + EVALUATION_SHARE * len(job.evaluations)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
