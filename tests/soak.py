"""`make soak`: an hour of being killed, of going on for long, and of clocks that jump; any difference is an error.

    python -m tests.soak --seed 7 --kills 100 --iterations 10000

Kills. A trial is one command: a method, an engine, one or two processes of one run. It is killed by SIGKILL again and
again, the same command is given again, and in the end everything in its folder must be what an undisturbed command
leaves, bit for bit: weights, optimisers, averages, milestones, the anchor, reports, measurements, arrays and cells, and
no file more. Which trial comes, when and whom it hits follow from the seed. A method here is also one that diverges.

Long. A small CDRL in one process, with reports, checkpoints, anchors and milestones: memory, tensors, open files and
threads are after the last iteration what they were after the first thousand.

Clocks. The same command where the time of day jumps by hours, back and forth, in all processes.

Called again with the same seed and code it goes on with the next trial. The folder of a trial that failed is kept.
"""

from __future__ import annotations

import argparse
import csv
import gc
import hashlib
import importlib.util
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdrl import checkpoint, trainer
from cdrl.cooperative import Cooperative
from cdrl.langevin import Langevin
from cdrl.method import Batch
from cdrl.recipe import CooperativeRecipe, ImageShape
from experiments.runs.folder import RunFolder
from experiments.runs.machine import commit
from experiments.runs.progress import clock as in_words

ROOT = Path(__file__).parents[1]
TINY = [
    *(f"experiment.rows.{row}=null" for row in ("drl", "drl_as_released", "short_run", "real", "noise")),
    "scale.seeds=[0]", "scale.samples=70", "scale.sample_batch=16", "scale.milestones=[0.5]",
    "scale.milestone_samples=30", "scale.reports=10", "device=cpu", "checkpoint_seconds=0.1", "launcher.workers=1",
    "runs=runs", "results=results", "cache=cache",
]  # fmt: skip
CASES: dict[str, tuple[str, int, list[str]]] = {
    "cdrl": ("cdrl", 60, ["energy.width=16"]),
    "drl": ("drl", 60, ["energy.width=16"]),
    "drl_as_released": ("drl_as_released", 40, ["energy.width=16"]),
    "short_run": ("short_run", 30, ["energy.width=16"]),
    "ddpm": ("ddpm", 120, []),
    "diverging": ("cdrl", 400, ["energy.width=16", "optimisation.learning_rate=1e12"]),
}
"""By name: the method, its iterations, and further settings of it. All have two shards, so that any number of processes
up to two must give the same bits."""
DIVERGED = 4
"""The exit code of the last one."""
PACKAGES = {"local": None, "ray": "ray", "slurm": "submitit"}
OWN = {"slurm": ["launcher.cluster=local", "launcher.logs=logs"]}
PLACES = [(engine, processes) for processes in (1, 2) for engine in PACKAGES
          if PACKAGES[engine] is None or importlib.util.find_spec(str(PACKAGES[engine]))]  # fmt: skip
PHASES = {"start": 8.0, "training": 2.0, "checkpoint": 0.0, "evaluation": 1.0, "report": 2.0}
"""In their order, with the longest wait in one before its kill, in seconds; a checkpoint is hit while it is written."""
KILLS_A_TRIAL = 4
PATIENCE = 300.0
"""Seconds after which something hangs."""
LEAVING = {"local": 60.0, "slurm": 60.0, "ray": 240.0}
"""Seconds for everyone to leave: Ray's own agents were still there a minute after their command was killed, ours leave
in seconds."""
PASSING = {"progress.json", "failure.json", "error.log", "submission.json", "notes.txt"}
"""Files that tell of attempts."""
DERIVED = {".png", ".svg", ".md", ".tex"}
"""Files that show times, or cells."""
TIMES = {"seconds", "train_seconds", "sample_seconds", "check"}
"""Facts that differ between two undisturbed commands; the last is a checksum over them."""
MOST_GROWTH = 16 * 2**20
"""Bytes that memory may vary by. Tensors, open files and threads must be as many as before, exactly."""


# Kills.


class Trial:
    """A command in a folder of its own, and everyone who works for it."""

    def __init__(self, folder: Path, case: str, engine: str, processes: int, weights: Path) -> None:
        method, iterations, own = CASES[case]
        self.folder, self.engine, self.processes = folder, engine, processes
        self.code = DIVERGED if case == "diverging" else 0
        self.arguments = [*TINY, f"experiment.rows.cdrl.method={method}", f"launcher={engine}", *OWN.get(engine, [])]
        self.arguments += [f"+experiment.rows.cdrl.budget={{iterations: {iterations}}}", f"methods.{method}.shards=2"]
        self.arguments += [f"methods.{method}.batch_size=8", *(f"methods.{method}.{setting}" for setting in own)]
        self.arguments += [f"launcher.gpus_per_run={processes}"]
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "cache").mkdir(parents=True)
        weights.mkdir(parents=True, exist_ok=True)
        (folder / "cache" / "weights").symlink_to(weights.absolute())  # of the classifier, which takes longest
        self.mark = f"CDRL_SOAK={folder.absolute()}"
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.environment |= {"CDRL_SOAK": str(folder.absolute()), "RAY_DISABLE_IMPORT_WARNING": "1"}
        self.begun = 0.0

    def start(self, *further: str) -> subprocess.Popen[bytes]:
        """The command; what it says is in ``said.txt``."""
        self.begun = time.time()
        line = [sys.executable, "-m", "experiments", *self.arguments, *further]
        with (self.folder / "said.txt").open("ab") as said:
            return subprocess.Popen(
                line, cwd=self.folder, env=self.environment, stdout=said, stderr=said, start_new_session=True
            )

    def family(self) -> list[int]:
        """Every living process that the command has started, wherever it hangs in the tree."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if self.mark.encode() in path.read_bytes().split(b"\0") and _alive(int(path.parent.name)):
                    found.append(int(path.parent.name))
        return found

    @staticmethod
    def said(pids: list[int]) -> str:
        """Processes by number and name."""
        names = {}
        for pid in pids:
            with suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                names[pid] = line.decode(errors="replace")[:80]
        return f"processes {names}"

    @property
    def run(self) -> RunFolder | None:
        return next(iter(RunFolder.below(self.folder / "runs")), None)

    def phase(self) -> str:
        """What is being done, as far as the folder tells."""
        if (run := self.run) is None:
            return "start"
        evaluations = run.evaluations()
        diverged = self.code == DIVERGED and (run.path / "status.json").exists()
        if diverged or (evaluations and all(one.done for one in evaluations)):
            return "report"
        drafts = [*(run.path / f".{stem}.unfinished" for stem in ("checkpoint", "anchor")),
                  *(one / ".checkpoint.unfinished" for one in run.milestones())]  # fmt: skip
        if any(draft.exists() for draft in drafts):
            return "checkpoint"
        progress = run.progress()
        if progress is None or progress.updated < self.begun or progress.phase in ("data", "measuring"):
            return "start"
        return "training" if progress.phase == "training" else "evaluation"

    def workers(self) -> list[int]:
        """The processes of the run, once they have been heard of."""
        progress = self.run.progress() if self.run is not None else None
        if progress is None or progress.updated < self.begun or not _alive(progress.pid):
            return []
        parent = _parent(progress.pid)
        return [progress.pid] + [
            pid for pid in self.family() if self.processes > 1 and _parent(pid) == parent and pid != progress.pid
        ]

    def strike(self, command: subprocess.Popen[bytes], aim: str, wait: float, whom: str, dice: random.Random) -> str:
        """Waits for the moment and kills: everybody at once, the command, or one worker. In which phase that was and
        whom it hit; "" where the command was done before."""
        order, deadline = list(PHASES), time.monotonic() + PATIENCE
        while order.index(now := self.phase()) < order.index(aim) or (now != aim == "checkpoint" and now == "training"):
            if command.poll() is not None or time.monotonic() > deadline:
                return ""
            time.sleep(0.004)
        with suppress(subprocess.TimeoutExpired):
            command.wait(wait)
        if command.poll() is not None:
            return ""
        workers, phase = self.workers(), self.phase()
        if whom == "worker" and not workers:
            whom = "command"
        victims = {"command": [command.pid], "worker": [dice.choice(workers or [0])], "all": self.family()}[whom]
        if whom == "all":
            with suppress(ProcessLookupError):
                os.killpg(command.pid, signal.SIGKILL)
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return f"{phase}, {whom}"

    def end(self) -> None:
        """Leaves nobody."""
        for pid in self.family():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def trial(folder: Path, case: str, engine: str, processes: int, kills: int, expected: Path, dice: random.Random) -> Any:
    """Kills a command so many times and lets it finish. Returns what was hit, and what then differs."""
    one = Trial(folder, case, engine, processes, expected.parent / "weights")
    aims = sorted(dice.choices(list(PHASES), k=kills), key=list(PHASES).index)
    hit: list[str] = []
    wrong: list[str] = []
    command = None
    try:
        for aim in aims:
            whom, wait = dice.choice(("all", "command", "worker")), dice.uniform(0, PHASES[aim])
            if command is None or command.poll() is not None:
                command = one.start()
            hit.append(one.strike(command, aim, wait, whom, dice))
            if hit[-1].endswith("worker") and engine == "ray":
                continue  # which has another do it

            # Everyone else notices, and leaves; but a queue's jobs, which the next command finds.
            command.wait(PATIENCE)
            stay = engine == "slurm" and hit[-1].endswith("command")
            if not stay and not within(LEAVING[engine], lambda: not one.family()):
                wrong.append(f"{one.said(one.family())} live on after {hit[-1]}")
        if command is None or command.poll() is not None:
            command = one.start()
        code = command.wait(PATIENCE)
        if engine == "ray" and code == 1:  # its own retries were used up
            code = one.start().wait(PATIENCE)
        if code != one.code:
            wrong.append(f"exit code {code}, not {one.code}; see {folder / 'said.txt'}")
        if not within(LEAVING[engine], lambda: not one.family()):
            wrong.append(f"{one.said(one.family())} live on")
    except subprocess.TimeoutExpired:
        wrong.append("it hangs")
    finally:
        one.end()
    return [one for one in hit if one], wrong + differences(expected, folder)


def undisturbed(base: Path, case: str) -> Path:
    """What one process leaves that is not killed; made once."""
    folder = base / case
    if not (folder / "whole").exists():
        one = Trial(folder, case, "local", 1, base / "weights")
        code = one.start().wait(PATIENCE)
        if code != one.code:
            raise SystemExit(f"{case} ends with {code} undisturbed: {(folder / 'said.txt').read_text()}")
        (folder / "whole").touch()
    return folder


def differences(expected: Path, found: Path) -> list[str]:
    """What two folders differ in, file by file, but for times and for what tells of attempts."""
    first, second = contents(expected), contents(found)
    lines = [f"{name} is {'missing' if name in first else 'left behind'}" for name in first.keys() ^ second.keys()]
    return sorted(lines + [f"{name} differs" for name in first.keys() & second.keys() if first[name] != second[name]])


def contents(folder: Path) -> dict[str, Any]:
    """What must be the same of every file below runs, results and cache, by its path."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(one) for key, one in value.items() if key not in TIMES}
        return [timeless(one) for one in value] if isinstance(value, list) else value

    found: dict[str, Any] = {}
    for path in (path for part in ("runs", "results", "cache") for path in sorted((folder / part).rglob("*"))):
        if path.is_dir() and path.name.startswith("."):
            found[str(path.relative_to(folder))] = "a draft"
        if not path.is_file() or path.name in PASSING:
            continue
        content: Any = None  # that there is one
        if path.suffix in (".safetensors", ".npy", ".npz"):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".jsonl":
            content = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".csv":
            content = [timeless(line) for line in csv.DictReader(path.open())]
        elif path.suffix == ".json" and path.name != "provenance.json":
            content = timeless(json.loads(path.read_text()))
        elif path.suffix in DERIVED:
            content = path.stat().st_size > 0
        found[str(path.relative_to(folder))] = content
    return found


def kill_all(base: Path, seed: int, kills: int, say: Callable[[str], None]) -> tuple[Counter[str], list[str]]:
    """Trials until so many kills have hit. Returns how many there were of each kind, and what went wrong."""
    counts: Counter[str] = Counter()
    wrong, number, begun, made = [], 0, time.monotonic(), 0
    while counts["kills"] < kills:
        # Every method meets every engine in 36 trials.
        case, (engine, processes) = (
            list(CASES)[number % len(CASES)],
            PLACES[(number + number // len(CASES)) % len(PLACES)],
        )
        folder = base / f"trial{number:03d}"
        name = f"trial {number}: {case}, {engine}, {processes} {'process' if processes == 1 else 'processes'}"
        left = in_words((time.monotonic() - begun) * (kills - counts["kills"]) / made) if made else "?"
        say(f"{counts['kills']} of {kills} kills, about {left} left; {name}")
        kept = base / f"trial{number:03d}.json"
        if not kept.exists():
            dice = random.Random(f"{seed} {number}")
            expected = undisturbed(base, case)
            most = min(KILLS_A_TRIAL, kills - counts["kills"])
            hit, differs = trial(folder, case, engine, processes, most, expected, dice)
            made += len(hit)
            wrong += [f"{name} in {folder}: {line}" for line in differs]
            for line in differs:
                say(f"WRONG: {line} (kills: {'; '.join(hit)})")
            if not differs:
                kept.write_text(json.dumps(hit))
                shutil.rmtree(folder)
        else:
            hit = json.loads(kept.read_text())
        counts["trials"] += 1
        for one in hit:
            phase, whom = one.split(", ")
            counts.update(["kills", f"in {phase}", f"of {whom}", case, f"{engine}, {processes}"])
        number += 1
        if counts["trials"] > 2 * kills + 10:
            raise SystemExit("commands end before they can be killed")
    return counts, wrong


# Long.


def endure(iterations: int, folder: Path, quiet: bool = False) -> list[str]:
    """Trains a small CDRL for so long, and returns what has grown since a third of it, or the first thousand."""
    torch.set_num_threads(1)
    sizes: dict[str, Any] = {"width": 8, "multipliers": (1,), "blocks": 1}
    recipe = CooperativeRecipe(
        batch_size=4, levels=3, chain=Langevin(steps=2, step_variance=1e-3), energy=sizes, initializer=sizes
    )
    method = recipe.build(ImageShape(size=8, channels=1), iterations=iterations)
    assert isinstance(method, Cooperative)
    begun, seen = time.monotonic(), {}

    def batch(iteration: int, first: int, count: int) -> Batch:
        images = 2 * torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(iteration)) - 1
        rows = torch.arange(first, first + count)
        return Batch(images[rows], torch.zeros(count, dtype=torch.long), rows, count / 4)

    def measure() -> dict[str, int]:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {
            "bytes of memory": pages * os.sysconf("SC_PAGE_SIZE"),
            "tensors": sum(issubclass(type(one), Tensor) for one in gc.get_objects()),
            "open files": len(list(Path("/proc/self/fd").iterdir())),
            "threads": max(threading.active_count(), len(list(Path("/proc/self/task").iterdir()))),
        }

    def keep(iteration: int) -> None:
        averages = method.learners["energy"].ema.synchronised().state_dict()
        checkpoint.save(folder / "milestones" / str(iteration), averages, {"iteration": iteration})

    def report(facts: dict[str, Any]) -> None:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(facts) + "\n")
        if facts["iteration"] in (early, iterations):
            seen[facts["iteration"]] = measure()
        if not quiet and facts["iteration"] % 500 == 0:
            left = (time.monotonic() - begun) / facts["iteration"] * (iterations - facts["iteration"])
            print(f"long: iteration {facts['iteration']:,} of {iterations:,}, {in_words(left)} left", flush=True)

    early = min(1000, iterations // 30 * 10)
    folder.mkdir(parents=True, exist_ok=True)
    outcome = trainer.train(
        method, batch, batch_size=4, iterations=iterations, on_report=report, report_every=10, folder=folder,
        checkpoint_seconds=1.0, milestones=range(100, iterations, iterations // 10 or 1), on_milestone=keep,
    )  # fmt: skip
    before, after = seen[early], seen[iterations]
    if not quiet:
        print(f"long: {outcome.status}; after {early:,}: {before}; after {iterations:,}: {after}", flush=True)
    allowed = {"bytes of memory": MOST_GROWTH}
    grown = [f"{name} grew from {before[name]:,} to {after[name]:,}" for name in before
             if after[name] > before[name] + allowed.get(name, 0)]  # fmt: skip
    return grown + ([] if outcome.status == "finished" else [f"it ended {outcome.status}"])


def endure_alone(iterations: int, folder: Path, quiet: bool = False) -> list[str]:
    """`endure` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(endure, (iterations, folder, quiet))


# Clocks.

JUMPING = """
import time
_real, _jumps = time.time, (0, 3, -5, 24, -24, 1)
time.time = lambda: _real() + 3600 * _jumps[int(time.monotonic() / 0.7) % len(_jumps)]
"""
HOLDING = """
import sys, time
from pathlib import Path
from experiments.progress import exclusive
lost = []
with exclusive(Path(sys.argv[1]), "it", wait=0.0, on_lost=lambda: lost.append(1)):
    print("held", flush=True)
    sys.stdin.read()
sys.exit(len(lost))
"""


def jumping_clock(base: Path) -> list[str]:
    """The command, its deadline and its locks, where the time of day jumps in all processes."""
    wrong = []
    one = Trial(base / "clock", "cdrl", "local", 2, base / "weights")
    (one.folder / "sitecustomize.py").write_text(JUMPING)
    one.environment["PYTHONPATH"] = f"{one.folder.absolute()}{os.pathsep}{ROOT}"
    try:
        # It ends as ever.
        code = one.start().wait(PATIENCE)
        wrong += [f"exit code {code}"] * (code != 0) + differences(undisturbed(base, "cdrl"), one.folder)

        # A deadline is kept, in seconds that really pass.
        begun = time.monotonic()
        long = ["+experiment.rows.cdrl.budget={iterations: 1000000}", "launcher.seconds=10", "runs=other"]
        code = one.start(*long).wait(PATIENCE)
        wrong += [f"the deadline's exit code is {code}"] * (code != 75)
        wrong += ["the deadline was not kept"] * (time.monotonic() - begun > 120)
        watch = [sys.executable, "-m", "experiments", "watch", "runs", "other"]
        shown = subprocess.run(watch, cwd=one.folder, env=one.environment, capture_output=True, text=True, timeout=120)
        wrong += [f"watch shows {shown.stdout}{shown.stderr}"] * (shown.returncode != 0 or "-" in shown.stdout)

        # Nobody takes the lock of a living owner.
        line = [sys.executable, "-c", HOLDING, str(one.folder / "lock")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(line, env=one.environment, **pipes) as owner:  # type: ignore[call-overload]
            owner.stdout.readline()
            options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "env": one.environment}
            others = [subprocess.run(line, **options) for _ in range(4)]  # type: ignore[call-overload]
            wrong += [f"another got the lock: {other.stdout}" for other in others if other.stdout]
            wrong += [other.stderr for other in others if "another process is working on it" not in other.stderr]
            owner.stdin.close()
            wrong += ["the owner lost its lock"] * (owner.wait(60) != 0)
    except subprocess.TimeoutExpired:
        wrong.append("it hangs")
    finally:
        one.end()
    return [f"clock: {line}" for line in wrong]


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _stat(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return ["Z", "0"]


def _alive(pid: int) -> bool:
    return _stat(pid)[0] != "Z"


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of what is killed and when")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=10_000, help="of the long part")
    parser.add_argument("--folder", type=Path, default=Path(".cache/soak"))
    options = parser.parse_args()
    base, begun = options.folder / f"{commit()}-seed{options.seed}", time.monotonic()

    def say(text: str) -> None:
        print(f"[{in_words(time.monotonic() - begun)}] {text}", flush=True)

    say(
        f"seed {options.seed}: {options.kills} kills through {', '.join(f'{name} × {n}' for name, n in PLACES)}; {base}"
    )
    counts, wrong = kill_all(base, options.seed, options.kills, say) if options.kills else (Counter(), [])
    if options.iterations:
        say(f"{options.iterations:,} iterations in one process")
        shutil.rmtree(base / "long", ignore_errors=True)
        wrong += [f"long: {line}" for line in endure_alone(options.iterations, base / "long")]
    say("a clock that jumps")
    wrong += jumping_clock(base)

    print(*(f"{count:6}  {name}" for name, count in counts.items()), sep="\n")
    print(*wrong, sep="\n")
    say(f"{len(wrong)} differences")
    return min(1, len(wrong))


if __name__ == "__main__":
    sys.exit(main())
