"""Signals to the command and to its processes, in every phase: a checkpoint is kept, all leave, and the same command
goes on. The phases are real ones; a process is held in one so that the signal comes there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cdrl import checkpoint
from experiments.runs.folder import RunFolder
from tests.experiments.runs.test_engines import alive, descendants, until

ROOT = Path(__file__).parents[3]
ROWS = [f"experiment.rows.{row}=null" for row in ("drl", "drl_as_released", "short_run", "real", "noise")]
TINY = [*ROWS, "scale.seeds=[0]", "scale.samples=32", "scale.milestones=[0.5]", "scale.milestone_samples=16"]
LONG = ["scale.budget=3000000", "scale.reports=3000"]
SHORT = ["scale.budget=1200"]
HOLD = '''
import importlib.util, multiprocessing, os, signal, sys, time

class Holding:
    """Puts a wait before a function, in the command or in the processes it starts."""

    def __init__(self, place):
        self.module, _, self.name = place.partition(":")

    def find_spec(self, name, path=None, target=None):
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            *parents, last = self.name.split(".")
            owner = module
            for parent in parents:
                owner = getattr(owner, parent)
            setattr(owner, last, held(getattr(owner, last)))

        spec.loader.exec_module = exec_module
        return spec

def held(function):
    calls = []

    def wait(*arguments, **named):
        here = "worker" if multiprocessing.parent_process() else "command"
        calls.append(1)
        if os.path.exists(os.environ["HELD"]) or here != os.environ["HOLD_IN"]:  # only the first is held
            return function(*arguments, **named)
        if len(calls) <= int(os.environ["HOLD_AFTER"]):
            return function(*arguments, **named)
        with open(os.environ["HELD"], "w") as file:
            file.write(str(os.getpid()))
        if os.environ.get("HOLD_DEAF"):  # a library that does not return, and lets no handler run
            import hashlib
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
        while True:
            time.sleep(1)
    return wait

if os.environ.get("HOLD"):
    sys.meta_path.insert(0, Holding(os.environ["HOLD"]))
'''
PHASES = {
    "loading data": ("experiments.data.registry:DataSettings.load", "worker", SHORT),
    "statistics": ("experiments.metrics.reference:batches", "worker", SHORT),
    "training": (None, "worker", LONG),
    "checkpoint": ("cdrl.checkpoint:put", "worker", [*LONG, "checkpoint_seconds=0.0"]),
    "milestone": ("experiments.runs.folder:RunFolder.milestone", "worker", [*SHORT, "checkpoint_seconds=0.0"]),
    "evaluation": ("experiments.metrics.score:Scorer.add", "worker", SHORT),
    "figures": ("experiments.report:build_experiment", "command", SHORT),
}
"""By name: what a process is held before, where, and further settings."""
Start = Callable[..., "Started"]


class Started:
    """A command, and the process that is in the phase."""

    def __init__(self, tmp_path: Path, phase: str, arguments: list[str], deaf: bool) -> None:
        self.tmp_path, self.held = tmp_path, tmp_path / "held"
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "sitecustomize.py").write_text(HOLD)
        place, where, settings = PHASES[phase]
        self.arguments = [*TINY, *settings, *arguments, f"runs={tmp_path}/runs", f"results={tmp_path}/results"]
        self.arguments += [f"cache={tmp_path}/cache", "launcher.workers=1"]
        weights = ROOT / ".cache" / "weights"
        weights.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache").mkdir(exist_ok=True)
        (tmp_path / "cache" / "weights").symlink_to(weights)
        self.environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}
        hold = {"HOLD": place or "", "HOLD_IN": where, "HELD": str(self.held), "HOLD_DEAF": "yes" if deaf else ""}
        hold["HOLD_AFTER"] = "4" if phase == "checkpoint" else "0"  # two files a checkpoint: the first ones are kept
        self.process = subprocess.Popen(
            [sys.executable, "-m", "experiments", *self.arguments],
            cwd=ROOT,
            env={**self.environment, **hold},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.at_work = self._wait(place)

    def _wait(self, place: str | None) -> int:
        def there() -> int | None:
            assert self.process.poll() is None, self.process.communicate()
            if place is None:
                for run in RunFolder.below(self.tmp_path / "runs"):
                    progress = run.progress()
                    if progress is not None and progress.phase == "training" and progress.done > 3:
                        return progress.pid
                return None
            with suppress(OSError, ValueError):
                return int(self.held.read_text())
            return None

        until(there, 60)
        found = there()
        assert found is not None
        return found

    @property
    def run(self) -> RunFolder:
        (run,) = RunFolder.below(self.tmp_path / "runs")
        return run

    def ended(self) -> tuple[int, str, str]:
        """Exit code and what was printed; nobody is left."""
        family = descendants(self.process.pid)
        out, err = self.process.communicate(timeout=60)
        until(lambda: not any(alive(pid) for pid in family), 20)
        assert "Traceback" not in err
        return self.process.returncode, out, err

    def again(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The same command, in which nothing is held."""
        line = [sys.executable, "-m", "experiments", *self.arguments, *arguments]
        return subprocess.run(line, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the command and waits until it is in a phase; nothing that it started is left."""
    started: list[Started] = []

    def begin(phase: str, *arguments: str, deaf: bool = False) -> Started:
        started.append(Started(tmp_path, phase, list(arguments), deaf))
        return started[-1]

    yield begin
    for one in started:
        for pid in descendants(one.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        one.process.wait()


CASES = [
    ("loading data", "SIGHUP", "command"),
    ("training", "SIGUSR1", "worker"),
]
SLOW = [
    ("loading data", "SIGTERM", "worker"),
    ("statistics", "SIGUSR1", "command"),
    ("statistics", "SIGHUP", "worker"),
    ("training", "SIGTERM", "worker"),
    ("training", "SIGHUP", "command"),
    ("checkpoint", "SIGTERM", "command"),
    ("checkpoint", "SIGUSR1", "worker"),
    ("milestone", "SIGTERM", "command"),
    ("evaluation", "SIGTERM", "worker"),
    ("evaluation", "SIGUSR1", "command"),
    ("figures", "SIGHUP", "command"),
]


@pytest.mark.parametrize(
    ("phase", "name", "to"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_a_signal_is_obeyed_in_every_phase(phase: str, name: str, to: str, start: Start) -> None:
    started = start(phase)
    number = signal.Signals[name]
    os.kill(started.process.pid if to == "command" else started.at_work, number)
    code, _, err = started.ended()
    last = err.splitlines()[-1]
    if to == "command":
        assert code == 128 + number
        assert last == f"stopped by {name}; the same command continues where this one stopped"
    elif phase in ("loading data", "statistics"):
        assert code == 0  # that was the order of the statistics; the run, which came next, has made them itself
    else:
        assert code == 75
        assert last.endswith(f"was asked to stop by {name}; its checkpoint is kept; the same command goes on")
    assert "took its results away" not in err
    if phase in ("training", "checkpoint", "milestone"):
        tensors, facts = checkpoint.load(started.run.path)
        assert facts["iteration"] > 0
        assert tensors
    if "scale.budget=1200" in started.arguments:
        again = started.again()
        assert again.returncode == 0, again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("to", ["command", "worker"])
def test_a_library_that_does_not_return_holds_nobody(to: str, start: Start) -> None:
    started = start("statistics", deaf=True)
    os.kill(started.process.pid if to == "command" else started.at_work, signal.SIGTERM)
    code, _, _ = started.ended()
    assert code == (143 if to == "command" else 0)  # the run makes the statistics itself
    assert started.again().returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_any_process_of_several_can_be_asked(rank: int, start: Start) -> None:
    started = start("training", "launcher.gpus_per_run=2", "methods.cdrl.shards=2", "device=cpu")
    first, server = started.at_work, parent(started.at_work)
    (second,) = {pid for pid in descendants(server) if parent(pid) == server} - {first}
    os.kill((first, second)[rank], signal.SIGTERM)
    code, _, err = started.ended()
    assert code == 75
    assert "was asked to stop by SIGTERM; its checkpoint is kept" in err.splitlines()[-1]
    assert checkpoint.load(started.run.path)[1]["iteration"] > 0


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_a_signal_to_the_whole_group_is_obeyed_by_all(start: Start) -> None:
    """As a queue sends it: also to the server that processes are forked from."""
    started = start("training")
    os.killpg(started.process.pid, signal.SIGHUP)
    code, _, _ = started.ended()
    assert code == 129
    assert checkpoint.load(started.run.path)[1]["iteration"] > 0
