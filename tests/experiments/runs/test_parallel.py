"""One run by several processes, through every engine and torchrun: the same bits as by one, and nothing hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cdrl.errors import UserError
from experiments import configuration
from experiments.__main__ import main
from experiments.plan import Job, make_plan
from experiments.runs import engines
from experiments.runs.engines import Local
from experiments.runs.folder import RunFolder
from experiments.runs.work import Ended, Order
from tests.experiments.runs.test_engines import alive, ended, pid_at_work, until

ROOT = Path(__file__).parents[3]
TINY = [
    "scale.seeds=[0]", "scale.milestones=[0.5]", "scale.milestone_samples=30", "scale.samples=70",
    "scale.sample_batch=16", "methods.cdrl.shards=4", "device=cpu",
]  # fmt: skip
"""Five batches of samples, the last of them of 6 images; two along training."""
Fingerprint = Callable[[Path], str]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits classifier and reference statistics, made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def sharded(tmp_path: Path, cache: Path) -> Callable[..., Job]:
    """Makes, and wants, a run of four shards with its evaluation."""

    def make(runs: str, budget: int = 3000, *overrides: str) -> Job:
        line = [*TINY, f"scale.budget={budget}", f"runs={tmp_path / runs}", f"cache={cache}", *overrides]
        plan = make_plan(configuration.resolve(line))
        evaluation = next(row.evaluations[0] for row in plan.rows if row.id == "cdrl")
        made = Job(evaluation.run, evaluation.run_settings, (evaluation,))
        made.want()
        return made

    return make


@pytest.fixture
def order(cache: Path) -> Callable[..., Order]:
    def make(job: Job, processes: int, **changes: Any) -> Order:
        facts = {"device": "cpu", "commit": "abc", "cache": str(cache), "processes": processes, **changes}
        return Order(job.run.path, **facts)

    return make


@pytest.fixture
def engine() -> Iterator[Callable[..., engines.Engine]]:
    """Starts an engine for runs of so many processes; all that are started are closed."""
    opened: list[engines.Engine] = []

    def make(processes: int, name: str = "local", *own: str) -> engines.Engine:
        line = [f"launcher={name}", f"launcher.gpus_per_run={processes}", "methods.cdrl.shards=4", *own]
        launcher = configuration.plain(configuration.resolve(line))["launcher"]
        opened.append(engines.engine(launcher, "cpu", 1))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def measured(run: RunFolder) -> list[dict[str, Any]]:
    """What came out of the run's evaluations, but for how long it took."""
    results = [json.loads((one.path / "result.json").read_text())["measurements"] for one in run.evaluations()]
    return [{key: value for key, value in line.items() if key != "seconds"} for lines in results for line in lines]


def files(run: RunFolder) -> dict[str, bytes]:
    """The pictures and curves of its evaluations."""
    return {path.name: path.read_bytes() for path in run.path.glob("eval/*/*.np?")}


def test_any_number_of_processes_gives_the_same_run_and_the_same_scores(
    sharded: Callable[..., Job], order: Callable[..., Order], engine: Any, fingerprint: Fingerprint
) -> None:
    alone, together = sharded("alone").run, sharded("together")
    for processes, job in ((1, sharded("alone")), (2, together)):
        assert ended(engine(processes).submit([order(job, processes)])) == [Ended("done")]
    assert fingerprint(together.run.path) == fingerprint(alone.path)
    assert measured(together.run) == measured(alone)
    assert measured(alone)[0]["samples"] == 70
    assert files(together.run) == files(alone)
    assert len(files(alone)) == 2
    milestones = [[path.name for path in run.milestones()] for run in (alone, together.run)]
    assert milestones[0] == milestones[1]
    steps = [[line["iteration"] for line in run.metrics.lines()] for run in (alone, together.run)]
    assert steps[0] == steps[1]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [3, 4])
def test_more_processes_than_batches_are_left(
    processes: int, sharded: Callable[..., Job], order: Callable[..., Order], engine: Any, fingerprint: Fingerprint
) -> None:
    alone, together = sharded("alone"), sharded("together")
    assert ended(engine(1).submit([order(alone, 1)])) == [Ended("done")]
    assert ended(engine(processes).submit([order(together, processes)])) == [Ended("done")]
    assert fingerprint(together.run.path) == fingerprint(alone.run.path)
    assert measured(together.run) == measured(alone.run)
    assert files(together.run) == files(alone.run)


def test_one_that_is_killed_ends_the_others_and_another_number_goes_on(
    sharded: Callable[..., Job], order: Callable[..., Order], engine: Any, fingerprint: Fingerprint
) -> None:
    job, alone = sharded("killed", 12_000), sharded("alone", 12_000)
    place = engine(2)
    handles = place.submit([order(job, 2, evaluations=(), checkpoint_seconds=0.0)])
    first = pid_at_work(job.run, after=10)
    (other,) = [pid for pid in place._running[job.run.path].pids if pid != first]
    begin = time.monotonic()
    os.kill(other, signal.SIGKILL)
    (answer,) = ended(handles)
    assert time.monotonic() - begin < 20
    assert not alive(first)
    assert answer.outcome == "crash"
    assert answer.message.startswith("process 1 of 2: killed by signal 9, SIGKILL")
    failure = job.run.failure()
    assert failure is not None
    assert failure.message == answer.message
    assert job.run.state == "started"

    again = engine(1)
    assert ended(again.submit([order(job, 1, evaluations=())])) == [Ended("done")]
    assert ended(again.submit([order(alone, 1, evaluations=())])) == [Ended("done")]
    assert fingerprint(job.run.path) == fingerprint(alone.run.path)


def test_closing_lets_the_first_keep_a_checkpoint(
    sharded: Callable[..., Job], order: Callable[..., Order], engine: Any
) -> None:
    job = sharded("closed", 3_000_000)
    place = engine(2)
    handles = place.submit([order(job, 2)])
    pid_at_work(job.run, after=3)
    pids = place._running[job.run.path].pids
    place.close()
    until(lambda: not any(alive(pid) for pid in pids), 20)
    assert handles[0].result() == Ended("interrupted")
    assert (job.run.state, job.run.failure()) == ("started", None)
    assert (job.run.path / "checkpoint.json").exists()


def test_a_mistake_comes_back_in_its_own_words(
    sharded: Callable[..., Job], order: Callable[..., Order], engine: Any
) -> None:
    job = sharded("few", 3000, "methods.cdrl.shards=1")
    (answer,) = ended(engine(2).submit([order(job, 2)]))
    assert answer.outcome == "mistake"
    assert "2 processes cannot share 1 shard of a batch" in answer.message


def test_a_process_out_of_step_is_told_to_all(sharded: Callable[..., Job], cache: Path) -> None:
    """Two processes, one of which has another number of threads."""
    job = sharded("threads")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "experiments", "work", str(job.run.path), "--threads", str(1 + rank),
             "--device", "cpu", "--cache", str(cache)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "RANK": str(rank), "WORLD_SIZE": "2",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29731"},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in processes:
        _, said = process.communicate(timeout=100)
        assert process.returncode == 1
        assert "process 1 of 2 is out of step: its number of threads is 2, the first process's 1" in said


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m",
         "experiments", *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip


@pytest.mark.slow
def test_torchrun_works_on_a_folder(
    sharded: Callable[..., Job], order: Callable[..., Order], engine: Any, cache: Path, fingerprint: Fingerprint
) -> None:
    job, alone = sharded("torchrun"), sharded("alone")
    result = torchrun(2, "work", str(job.run.path), "--device", "cpu", "--cache", str(cache))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("done") == 1
    assert ended(engine(1).submit([order(alone, 1)])) == [Ended("done")]
    assert fingerprint(job.run.path) == fingerprint(alone.run.path)
    assert measured(job.run) == measured(alone.run)


def test_run_under_torchrun_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["scale.seeds=[0]", f"runs={tmp_path}/runs", f"results={tmp_path}/results"]) == 1
    said = capsys.readouterr().err
    assert "launcher.gpus_per_run=2" in said
    assert "cdrl work FOLDER" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["launcher.gpus_per_run=0"], "launcher.gpus_per_run must be a positive whole number"),
        (["launcher.gpus_per_run=2"], r"row 'cdrl' has 1 shard for launcher.gpus_per_run=2: .*methods.cdrl.shards=2"),
        (["launcher.exact=maybe"], "launcher.exact must be true or false"),
    ],
)
def test_what_cannot_be_shared_is_said_before_anything_runs(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_plan(configuration.resolve(overrides))


def test_every_process_of_a_run_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "cpu_cores", lambda: 8)
    own = configuration.plain(configuration.resolve([]))["launcher"]

    def made(gpus: int, device: str = "cuda", **changes: Any) -> Local:
        monkeypatch.setattr(engines, "visible_gpus", lambda: [str(number) for number in range(gpus)])
        engine = Local({**own, **changes}, device, 20)
        engine.close()
        return engine

    four = made(4, gpus_per_run=2)
    assert four.description == "on 4 GPUs, 2 at a time by 2 processes each, 2 CPU threads each"
    assert [four._gpus.get() for _ in range(2)] == [["0", "1"], ["2", "3"]]
    assert made(5, gpus_per_run=4).description.startswith("on 5 GPUs, 1 at a time by 4 processes each")
    assert made(0, "cpu", gpus_per_run=3).description.startswith("on cpu, 2 at a time by 3 processes each, 1 CPU")
    assert made(0, "cpu", gpus_per_run=16).description.startswith("on cpu, 1 at a time by 16 processes each")
    with pytest.raises(UserError, match="needs as many GPUs, and this machine shows 1"):
        made(1, gpus_per_run=2)
    with pytest.raises(UserError, match="needs as many GPUs, and device=cuda:1 is one"):
        made(4, "cuda:1", gpus_per_run=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_task_or_job_starts_its_processes_itself(
    name: str, sharded: Callable[..., Job], order: Callable[..., Order], engine: Any, tmp_path: Path,
    fingerprint: Fingerprint,
) -> None:  # fmt: skip
    pytest.importorskip({"ray": "ray", "slurm": "submitit"}[name])
    own = {"ray": ["launcher.workers=1"], "slurm": ["launcher.cluster=local", f"launcher.logs={tmp_path}/logs"]}
    job, alone = sharded(name), sharded("alone")
    assert ended(engine(2, name, *own[name]).submit([order(job, 2)])) == [Ended("done")]
    assert ended(engine(1).submit([order(alone, 1)])) == [Ended("done")]
    assert fingerprint(job.run.path) == fingerprint(alone.run.path)
    assert measured(job.run) == measured(alone.run)
