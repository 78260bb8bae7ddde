"""The run folder: what is wanted of a run, how far it is, and what came out. Nothing else knows what lies in one.

    runs/<data set>/<method>/<hash>/seed<k>/
        config.json      what the run is, written by the plan: `RunSettings`
        data.json        the images it began on
        length.json      how many iterations a budget in seconds became, and on which device
        checkpoint.json  beside one safetensors file: where training stands (`cdrl.checkpoint`)
        anchor.json      the same: the state that training goes back to (`cdrl.trainer`)
        metrics.jsonl    one line per report
        milestones/      averaged weights along the way
        trips/           what went before each rollback
        notes.txt        what was damaged or diverged, and what was done about it
        status.json      how training ended: `Status`
        progress.json    what is being done at the moment: `Progress`
        failure.json     why the last attempt stopped: `Failure`; error.log has the traceback of a crash
        submission.json  the job of a queue that works here
        tensorboard/, wandb/  what a logger shows; wandb.json says under which name
        lock, stop       held by whoever works here; asks whoever works here to stop
        eval/<kind>-<hash>/
            settings.json    what is wanted of the evaluation, written by the plan
            result.json      what came out: `Result`; arrays for figures lie beside it, and error.log where it failed

A run is a pure function of its settings, and so is its folder's name: the same command finds its own work, on this
machine or across a shared file system.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field
from typing_extensions import TypedDict

from cdrl import checkpoint
from cdrl.errors import UserError
from cdrl.guard import STANDARD, Trip
from cdrl.recipe import Recipe
from experiments import methods
from experiments.configuration import digest
from experiments.data import DataSettings, ImageSet
from experiments.files import (
    AGAIN,
    Amount,
    AtLeastOne,
    Commit,
    Count,
    Line,
    Name,
    Sha256,
    Share,
    checked,
    clear_drafts,
    read_json,
    read_record,
    wished,
    write_json,
    write_text,
)  # fmt: skip
from experiments.measurement import Possible, by_key
from experiments.progress import exclusive

T = TypeVar("T")
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
_HASHED = re.compile(r"(^|-)[0-9a-f]{12}$")
"""A folder's name that says, by `digest`, what it is for."""
Seconds = Mapping[Annotated[str, Field(pattern="^seconds$")], Annotated[Amount, Field(gt=0)]]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Everything that determines a run.

    Attributes:
        data: the data set, and where it lies.
        method: as configured, with its ``_target_``; see `recipe`.
        budget: energy-gradient evaluations × images, or ``{"seconds": s}`` of training on the device at hand.
        reports: lines of ``metrics.jsonl``.
        milestones: shares of the budget at which averaged weights are kept.
        seed: of everything random.
        rollbacks: of a run that diverges, see `cdrl.guard`.
    """

    data: DataSettings
    method: Mapping[str, Any]
    budget: AtLeastOne | Annotated[Seconds, Field(min_length=1)]
    reports: AtLeastOne
    milestones: tuple[Share, ...]
    seed: Seed
    rollbacks: Count = STANDARD.rollbacks

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RunSettings:
        """The inverse of `dataclasses.asdict`, also after a way through JSON."""
        return checked(dict(record), cls, "a run's settings", "make them again")

    @cached_property
    def recipe(self) -> Recipe:
        """The method's settings, typed. Raises `UserError` where they do not fit."""
        return methods.recipe(self.method)

    def folder(self, runs: Path, name: str) -> RunFolder:
        """Where the run of a method called ``name`` belongs below ``runs``: named by what its numbers depend on, not by
        what things are called or where they lie."""
        method = {key: value for key, value in self.method.items() if key != "label"}
        identity: dict[str, Any] = {"data": self.data.identity(), "method": method}
        if self.recipe.trains:
            identity |= {"budget": self.budget, "reports": self.reports, "milestones": list(self.milestones)}
            if self.rollbacks != STANDARD.rollbacks:
                identity["rollbacks"] = self.rollbacks
        return RunFolder(runs / self.data.name / name / digest(identity) / f"seed{self.seed}")


@dataclass(frozen=True, kw_only=True)
class Status:
    """How training ended.

    Attributes:
        status: "finished" or "diverged".
        iterations: that were done.
        seconds: of training.
        grad_evals: energy-gradient evaluations × images that were spent.
        commit, device: of the code; the processor's or GPU's name.
        reason: what diverged, in words.
        rollbacks: see `cdrl.guard`.
        lost: iterations that these took back.
    """

    status: Annotated[str, Field(pattern="^(finished|diverged)$")]
    iterations: Count
    seconds: Amount
    grad_evals: Count
    commit: Commit
    device: Name
    reason: Line = ""
    rollbacks: Count = 0
    lost: Count = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What is being done in a folder, for whoever watches.

    Attributes:
        phase: "training", or the kind of evaluation.
        done, total: in the phase's own units.
        text: the same in words.
        updated: seconds since the epoch.
        host, pid: who says so.
    """

    phase: Name
    done: Amount
    total: Amount
    text: str
    updated: Amount
    host: str
    pid: Count


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why the last attempt stopped: a mistake that the user can mend, or a crash."""

    message: str
    mistake: bool


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of an evaluation, how long it took, and where.

    Attributes:
        measurements: finite numbers; none unless it is done.
        seconds: that it took.
        commit, device: of the code; the processor's or GPU's name.
        outcome: "done"; "diverged", where samples or energies are not finite; or "failed", where something went wrong
            that lies in the evaluation.
        reason: in a line; empty where it is done.
        mistake: whether what went wrong is something that the user can mend.
        outside: the share of samples with a pixel beyond `cdrl.bounds.OUTSIDE`, before they were clamped.
    """

    measurements: tuple[Possible, ...]
    seconds: Amount
    commit: Commit
    device: Name
    outcome: Annotated[str, Field(pattern="^(done|diverged|failed)$")] = "done"
    reason: Line = ""
    mistake: bool = False
    outside: Share = 0.0

    def stands(self, commit: str) -> bool:
        """False where it failed and code of this commit may do better, or the user may have mended what was wrong."""
        same_code = self.commit == commit and not commit.endswith("-modified")
        return self.outcome != "failed" or (same_code and not self.mistake)


class BeganOn(TypedDict):
    """data.json: a data set, and the hashes of its arrays."""

    name: Name
    pixels: Sha256
    labels: Sha256


class Length(TypedDict):
    """length.json: what a budget in seconds became."""

    iterations: AtLeastOne
    iteration_seconds: Amount
    device: Name


class Submission(TypedDict):
    """submission.json: a job of a queue, and where its logs lie."""

    job: Name
    logs: Name


class Tracker(TypedDict):
    """wandb.json."""

    id: Annotated[str, Field(pattern=r"^[\w.-]{1,128}$")]


@dataclass(frozen=True)
class WorkFolder:
    """A folder that somebody works in: its lock, its progress, its failure, and the wish to stop."""

    path: Path

    def record(self, name: str, kind: type[T]) -> T | None:
        """A JSON file as the dataclass (or dict) it was written from; None where there is none.

        Raises:
            UserError: it is damaged.
        """
        path = self.path / name
        return read_record(path, kind) if path.exists() else None

    def content(self, name: str, kind: Any) -> Any:
        """The same as the file has it, in plain dicts and lists."""
        path = self.path / name
        return read_json(path, kind) if path.exists() else None

    def lock(self, wait: float = 0.0, on_lost: Callable[[], None] = lambda: None) -> AbstractContextManager[None]:
        """Keeps others from working here; see `exclusive`, also for the errors.

        Args:
            wait: seconds to wait for the present owner.
            on_lost: called from another thread when somebody has taken over, because no sign of life got through.
        """
        return exclusive(self.path / "lock", str(self.path), "choose another folder", wait, on_lost)

    def begin(self) -> None:
        """Forgets what an earlier attempt left behind."""
        for folder in (self.path, *self.path.glob("eval/*")):
            clear_drafts(folder)
        for name in ("failure.json", "stop", "progress.json"):
            (self.path / name).unlink(missing_ok=True)

    def report(self, phase: str, done: float, total: float, text: str) -> None:
        """Says how far the work is. Nothing is lost where this cannot be written."""
        facts = {"phase": phase, "done": done, "total": total, "text": text}
        owner = {"updated": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
        with suppress(UserError):
            write_json(self.path / "progress.json", {**facts, **owner}, durable=False)

    def progress(self) -> Progress | None:
        """What was last reported, if anything."""
        with suppress(UserError):
            return self.record("progress.json", Progress)
        return None

    def fail(self, message: str, *, mistake: bool, traceback: str = "") -> None:
        """Keeps why an attempt stopped."""
        with suppress(UserError):
            write_json(self.path / "failure.json", {"message": message, "mistake": mistake})
            if traceback:
                write_text(self.path / "error.log", traceback)

    def failure(self) -> Failure | None:
        """Why the last attempt stopped, unless it has been tried again since."""
        return self.record("failure.json", Failure)

    def note(self, text: str) -> None:
        """Keeps a line about what was damaged or diverged."""
        with suppress(OSError), (self.path / "notes.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def notes(self) -> list[str]:
        """The lines, in order."""
        try:
            return (self.path / "notes.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []

    def ask_to_stop(self) -> None:
        """Whoever works here keeps a checkpoint and leaves, within a second or two."""
        with suppress(OSError):
            (self.path / "stop").touch()

    @property
    def stop_asked(self) -> bool:
        return (self.path / "stop").exists()

    def keep_submission(self, job: str, logs: str) -> None:
        """Notes the job of a queue that will work here."""
        write_json(self.path / "submission.json", {"job": job, "logs": logs})

    def submission(self) -> Submission | None:
        """The job of a queue that was last submitted for this folder."""
        return self.record("submission.json", Submission)


@dataclass(frozen=True)
class RunFolder(WorkFolder):
    """One training run and its evaluations; see the module's docstring."""

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The run in a folder. Raises `UserError` where there is none."""
        if not (path / "config.json").exists():
            raise UserError(f"{path} is no run folder; name one such as runs/digits/cdrl/<hash>/seed0")
        return cls(path)

    @classmethod
    def below(cls, path: Path) -> list[RunFolder]:
        """Every run in a folder, by path."""
        walk = os.walk(path)  # which minds no folder that is gone meanwhile, as a checkpoint's drafts are
        return [cls(one) for one in sorted(Path(folder) for folder, _, names in walk if "config.json" in names)]

    @property
    def name(self) -> str:
        """The run for people: "cdrl seed 0"."""
        return f"{self.path.absolute().parts[-3]} {self.path.name.replace('seed', 'seed ')}"

    # What is wanted.

    def want(self, settings: RunSettings) -> None:
        """Writes what the run is. Raises `UserError` where the folder cannot be written."""
        path = self.path / "config.json"
        if wished(path, lambda: self.settings) != settings:  # where the data lie may have changed
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                text = f"cannot write to {self.path} ({error.strerror}); choose another folder: runs=…"
                raise UserError(text) from error
            write_json(path, asdict(settings))

    @property
    def settings(self) -> RunSettings:
        """What the run is. Raises `UserError` where that is missing or damaged."""
        path = self.path / "config.json"
        settings = read_record(path, RunSettings)
        if _HASHED.search(self.path.parent.name):
            parts = self.path.parts[-2:]
            try:
                named = settings.folder(Path(), "run").path.parts[-2:]
            except UserError:  # no recipe at all
                named = ()
            if named != parts:
                raise UserError(f"{path} is damaged (it is not what {'/'.join(parts)} stands for); {AGAIN}")
        return settings

    def evaluation(self, settings: Mapping[str, Any]) -> EvaluationFolder:
        """The folder of an evaluation of this run."""
        return EvaluationFolder(self.path / "eval" / f"{settings['kind']}-{digest(settings)}")

    def evaluations(self) -> list[EvaluationFolder]:
        """Every evaluation that was ever wanted here, by name."""
        return [EvaluationFolder(path.parent) for path in sorted(self.path.glob("eval/*/settings.json"))]

    # How far it is.

    @property
    def state(self) -> str:
        """``missing``, ``wanted``, ``started``, ``finished`` or ``diverged``."""
        if (status := self.status()) is not None:
            return status.status
        if checkpoint.exists(self.path) or self.metrics.path.exists():
            return "started"
        return "wanted" if (self.path / "config.json").exists() else "missing"

    def status(self) -> Status | None:
        """How training ended; None where it has not."""
        return self.record("status.json", Status)

    def finish(self, status: Status) -> None:
        """Keeps how training ended."""
        write_json(self.path / "status.json", asdict(status))

    def take_up(self) -> None:
        """Forgets that training has ended."""
        (self.path / "status.json").unlink(missing_ok=True)

    def finished(self) -> Status:
        """`status` of a run that finished. Raises `UserError` where it did not, or diverged."""
        status = self.status()
        if status is None:
            example = "train it first, or name another, e.g. runs/digits/cdrl/…/seed0"
            raise UserError(f"{self.path} is no finished run; {example}")
        if status.status != "finished":
            raise UserError(f"{self.path} is a run that {status.status}; name one that finished")
        return status

    def check_images(self, training: ImageSet) -> None:
        """Notes which images the run begins on. Raises `UserError` where it began on others."""
        path = self.path / "data.json"
        facts = {"name": training.name, "pixels": training.checksum, "labels": training.labels_checksum}
        if path.exists() and read_json(path, BeganOn) != facts:
            raise UserError(
                f"the images of {training.source} are not those that {self.path} was trained on; bring them back, or "
                "train another run with runs=…"
            )
        write_json(path, facts)

    def keep_trip(self, trip: Trip) -> None:
        """Keeps the record of what went before a rollback, and a note of it."""
        record = [
            {name: [value if value is None or math.isfinite(value) else str(value) for value in values]
             for name, values in meters.items()}
            for meters in trip.record
        ]  # fmt: skip
        path = self.path / "trips" / f"{trip.number:02d}.json"
        if not path.exists():  # else a kill came between the rollback and its checkpoint
            self.note(
                f"{trip.reason}: back to iteration {trip.anchor}; {path.name} in {path.parent} has what went before"
            )
        write_json(path, {**vars(trip), "record": record})

    @property
    def metrics(self) -> MetricsLog:
        return MetricsLog(self.path / "metrics.jsonl")

    def length(self) -> Length | None:
        """The iterations that a budget in seconds became, once that was measured."""
        return self.record("length.json", Length)

    def keep_length(self, **facts: Any) -> None:
        """Keeps what `length` tells."""
        write_json(self.path / "length.json", facts)

    @property
    def tensorboard(self) -> Path:
        """Where event files belong."""
        return self.path / "tensorboard"

    def wandb_id(self) -> str:
        """What names the run at Weights & Biases: kept with it, so that one that is trained anew is another there."""
        kept = self.record("wandb.json", Tracker)
        if kept is None:
            kept = {"id": f"{self.path.parts[-2]}-{self.path.name}-{secrets.token_hex(4)}"}
            write_json(self.path / "wandb.json", kept)
        return kept["id"]

    def milestone(self, iteration: int) -> Path:
        """Where the averaged weights after ``iteration`` belong."""
        return self.path / "milestones" / f"{iteration:08d}"

    def milestones(self) -> list[Path]:
        """The kept ones, in order."""
        return sorted((self.path / "milestones").glob("*"))


@dataclass(frozen=True)
class EvaluationFolder(WorkFolder):
    """One evaluation of a run: its settings, and its result once there is one."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def done(self) -> bool:
        return (self.path / "result.json").exists()

    def want(self, settings: Mapping[str, Any]) -> None:
        """Writes what the evaluation is."""
        path = self.path / "settings.json"
        if wished(path, lambda: self.settings) is None:
            write_json(path, dict(settings))

    @property
    def settings(self) -> dict[str, Any]:
        """What is wanted. Raises `UserError` where that is damaged, or is not what the folder is named by."""
        path = self.path / "settings.json"
        settings: dict[str, Any] = read_json(path, dict[str, Any])
        if _HASHED.search(self.name) and self.name != f"{settings.get('kind')}-{digest(settings)}":
            raise UserError(f"{path} is damaged (it is not what {self.name} stands for); {AGAIN}")
        return settings

    def stands(self, commit: str) -> bool:
        """Whether there is a result that code of this commit has nothing to add to; see `Result.stands`."""
        return (result := self.result()) is not None and result.stands(commit)

    def keep(self, result: Result, traceback: str = "") -> None:
        """Keeps what came out, and in error.log where it failed."""
        measurements = [measurement.to_json() for measurement in by_key(result.measurements).values()]
        unusual = {field.name for field in fields(result) if getattr(result, field.name) != field.default}
        facts = {name: value for name, value in vars(result).items() if name in unusual}
        (self.path / "error.log").unlink(missing_ok=True)
        if traceback:
            write_text(self.path / "error.log", traceback)
        write_json(self.path / "result.json", {**facts, "measurements": measurements})

    def result(self) -> Result | None:
        """What came out; None where nothing has yet. Raises `UserError` where it is damaged."""
        return self.record("result.json", Result)


@dataclass(frozen=True)
class MetricsLog:
    """``metrics.jsonl``: one line per report; after a resume the lines that will be made again are dropped."""

    path: Path

    def append(self, facts: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """Every line that is whole; a kill may have cut the last one short."""
        return [line for line in self._parsed() if line is not None]

    def truncate(self, iteration: int) -> int:
        """Keep the lines up to ``iteration``, and return how many before the last one are damaged, and so lost."""
        parsed = self._parsed()
        kept = [line for line in parsed if line is not None and line["iteration"] <= iteration]
        if self.path.exists():
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        return sum(line is None for line in parsed[:-1])

    def _parsed(self) -> list[dict[str, Any] | None]:
        """The lines in order, None for one that is damaged."""

        def report(text: str) -> dict[str, Any] | None:
            try:
                line = json.loads(text)
                return line if type(line["iteration"]) is int else None
            except (ValueError, TypeError, KeyError, RecursionError):
                return None

        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(
                f"cannot read {self.path} ({error.strerror}); mend that, and the same command goes on"
            ) from error
        return [report(line) for line in text.split("\n") if line]
