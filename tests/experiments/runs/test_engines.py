"""Engines: the same folders, the same bits, and nothing lost when a process dies, whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from experiments import configuration
from experiments.plan import Job
from experiments.runs import engines
from experiments.runs.engines import Engine, Handle, Local
from experiments.runs.folder import RunFolder
from experiments.runs.work import Ended, Order, work

MakeJob = Callable[..., Job]
MakeEngine = Callable[[], Engine]
ROOT = Path(__file__).parents[3]
PACKAGES = {"local": None, "ray": "ray", "slurm": "submitit"}


def launcher(name: str, tmp_path: Path) -> dict[str, Any]:
    own = {"slurm": ["launcher.cluster=local", f"launcher.logs={tmp_path}/logs"], "ray": ["launcher.workers=2"]}
    line = [f"launcher={name}", *own.get(name, [])]
    return configuration.plain(configuration.resolve(line))["launcher"]


@pytest.fixture(
    params=["local", pytest.param("ray", marks=pytest.mark.slow), pytest.param("slurm", marks=pytest.mark.slow)]
)
def make_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeEngine]:
    """Starts the engine; all that are started are closed."""
    if PACKAGES[request.param]:
        pytest.importorskip(PACKAGES[request.param])
    opened: list[Engine] = []

    def make() -> Engine:
        opened.append(engines.engine(launcher(request.param, tmp_path), "cpu", 2))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


def order(job: Job, **changes: Any) -> Order:
    facts = {"folder": job.run.path, "evaluations": (), "device": "cpu", "commit": "abc", **changes}
    return Order(**facts)


def until(condition: Callable[[], object], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def ended(handles: list[Handle]) -> list[Ended]:
    until(lambda: all(handle.done() for handle in handles))
    return [handle.result() for handle in handles]


def processes() -> dict[int, tuple[str, int]]:
    """State and parent of every process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
            found[int(path.parent.name)] = (state, int(parent))
    return found


def alive(pid: int) -> bool:
    return processes().get(pid, ("Z", 0))[0] != "Z"


def descendants(pid: int) -> set[int]:
    """A process with all that it has started."""
    family, parents = {pid}, {child: parent for child, (_, parent) in processes().items()}
    while new := {child for child, parent in parents.items() if parent in family} - family:
        family |= new
    return family


def pid_at_work(run: RunFolder, after: int = 0) -> int:
    """The process that trains, once it has reached iteration ``after``."""

    def progress() -> bool:
        seen = run.progress()
        return seen is not None and seen.phase == "training" and seen.done >= after

    until(progress)
    seen = run.progress()
    assert seen is not None
    return seen.pid


def test_every_engine_gives_the_same_bits(
    make_engine: MakeEngine, job: MakeJob, fingerprint: Callable[[Path], str]
) -> None:
    jobs = [job("cdrl"), job("drl")]
    assert ended(make_engine().submit([order(one) for one in jobs])) == [Ended("done")] * 2
    for one in jobs:
        alone = job(one.run.path.parts[-3], runs="alone").run
        work(Order(alone.path, (), "cpu"))
        assert fingerprint(one.run.path) == fingerprint(alone.path)


def test_a_killed_process_resumes_and_ends_in_the_same_bits(
    make_engine: MakeEngine, job: MakeJob, fingerprint: Callable[[Path], str]
) -> None:
    """Under Ray by its own retry; elsewhere by the same order again."""
    killed, other = job(budget=30_000), job("drl")
    engine = make_engine()
    handles = engine.submit([order(killed, checkpoint_seconds=0.0), order(other)])
    os.kill(pid_at_work(killed.run, after=10), signal.SIGKILL)
    first, second = ended(handles)
    assert second == Ended("done")
    if first != Ended("done"):
        assert first.outcome == "crash"
        failure = killed.run.failure()
        assert failure is not None
        assert failure.message == first.message
        before = killed.run.metrics.lines()
        assert ended(engine.submit([order(killed)])) == [Ended("done")]
        assert killed.run.metrics.lines()[:2] == before[:2]  # seconds and all: these were not made again
    alone = job(budget=30_000, runs="alone").run
    work(Order(alone.path, (), "cpu"))
    assert fingerprint(killed.run.path) == fingerprint(alone.path)


def test_a_mistake_comes_back_in_its_own_words(make_engine: MakeEngine, job: MakeJob) -> None:
    made = job()
    (made.run.path / "config.json").write_text("{}")
    (answer,) = ended(make_engine().submit([order(made)]))
    assert answer.outcome == "mistake"
    assert "config.json is damaged (data: Field required)" in answer.message


def test_a_local_death_is_told_by_its_signal(job: MakeJob, tmp_path: Path) -> None:
    engine = engines.engine(launcher("local", tmp_path), "cpu", 1)
    made = job(budget=300_000)
    handles = engine.submit([order(made)])
    os.kill(pid_at_work(made.run), signal.SIGKILL)
    (answer,) = ended(handles)
    engine.close()
    assert answer.outcome == "crash"
    assert "signal 9, SIGKILL" in answer.message
    assert "memory" in answer.message


@pytest.mark.parametrize("name", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_closing_keeps_checkpoints(name: str, job: MakeJob, tmp_path: Path) -> None:
    if PACKAGES[name]:
        pytest.importorskip(name)
    engine = engines.engine(launcher(name, tmp_path), "cpu", 3)
    running, waiting = job(budget=3_000_000), [job("drl", 3_000_000), job("short_run", 3_000_000)]
    handles = engine.submit([order(one) for one in (running, *waiting)])
    pid = pid_at_work(running.run, after=3)
    engine.close()
    until(lambda: not alive(pid), 20)
    assert (running.run.state, running.run.status()) == ("started", None)
    assert (running.run.path / "checkpoint.json").exists()
    assert handles[0].done()


@pytest.mark.slow
def test_a_preempted_job_is_requeued_and_goes_on(
    job: MakeJob, tmp_path: Path, fingerprint: Callable[[Path], str]
) -> None:
    pytest.importorskip("submitit")
    engine = engines.engine(launcher("slurm", tmp_path), "cpu", 1)
    made = job(budget=30_000)
    handles = engine.submit([order(made, checkpoint_seconds=0.0)])
    first = pid_at_work(made.run, after=10)
    os.kill(first, signal.SIGUSR2)  # what SLURM sends before it pre-empts a job
    until(lambda: pid_at_work(made.run) != first)
    assert ended(handles) == [Ended("done")]
    logs = "".join(path.read_text() for path in (tmp_path / "logs").rglob("*.err"))
    assert "Requeued job" in logs + "".join(path.read_text() for path in (tmp_path / "logs").rglob("*.out"))
    alone = job(budget=30_000, runs="alone").run
    work(Order(alone.path, (), "cpu"))
    assert fingerprint(made.run.path) == fingerprint(alone.path)


@pytest.mark.slow
def test_a_submitted_job_is_not_submitted_again(job: MakeJob, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    made = job(budget=30_000)
    first = engines.engine(launcher("slurm", tmp_path), "cpu", 1)
    handles = first.submit([order(made)])
    pid_at_work(made.run)
    submission = made.run.submission()
    assert ended(handles) == [Ended("done")]
    again = engines.engine(launcher("slurm", tmp_path), "cpu", 1)
    assert ended(again.submit([order(made)])) == [Ended("done")]
    assert made.run.submission() != submission  # the first had ended


def test_the_death_of_the_command_leaves_no_orphans(job: MakeJob) -> None:
    made = job(budget=3_000_000)
    script = f"""
from pathlib import Path
from experiments import configuration
from experiments.runs.engines import engine
from experiments.runs.work import Order
import time
if __name__ == "__main__":
    launcher = configuration.plain(configuration.resolve([]))["launcher"]
    engine(launcher, "cpu", 1).submit([Order(folder=Path({str(made.run.path)!r}), evaluations=(), device="cpu")])
    time.sleep(600)
"""
    command = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)})
    worker = pid_at_work(made.run, after=2)
    family = descendants(command.pid)
    assert worker in family
    command.kill()
    command.wait()
    until(lambda: not any(alive(pid) for pid in family), 30)
    assert (made.run.path / "checkpoint.json").exists()


def test_every_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engines, "visible_gpus", lambda: ["3", "GPU-5"])
    at_work: set[str] = set()
    seen: list[str] = []

    class Process:
        """In place of a process: holds its GPU for a moment."""

        exitcode = 0

        def __init__(self, target: Any, args: tuple[Order, Any, dict[str, str]]) -> None:
            _, self.sender, environment = args
            self.gpu = environment["CUDA_VISIBLE_DEVICES"]

        def start(self) -> None:
            assert self.gpu not in at_work
            at_work.add(self.gpu)
            seen.append(self.gpu)
            self.sender.send(Ended("done"))

        def join(self, *_: float) -> None:
            time.sleep(0.05)
            at_work.discard(self.gpu)

        def kill(self) -> None: ...

    engine = Local(launcher("local", tmp_path), "cuda", 6)
    monkeypatch.setattr(engine._context, "Process", Process, raising=False)
    assert "on 2 GPUs, 2 at a time" in engine.description
    answers = ended(engine.submit([Order(folder=tmp_path / str(number)) for number in range(6)]))
    engine.close()
    assert answers == [Ended("done")] * 6
    assert {gpu: seen.count(gpu) for gpu in seen} == {"3": 3, "GPU-5": 3}


def test_workers_and_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engines, "cpu_cores", lambda: 8)
    own = launcher("local", tmp_path)

    def description(jobs: int, **changes: Any) -> str:
        engine = Local({**own, **changes}, "cpu", jobs)
        engine.close()
        return engine.description

    assert description(20) == "on cpu, 8 at a time, 1 CPU thread each"
    assert description(3) == "on cpu, 3 at a time, 1 CPU thread each"
    assert description(20, workers=2, threads=4) == "on cpu, 2 at a time, 4 CPU threads each"
