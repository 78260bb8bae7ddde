"""The loop: what it reports, how it ends, and that a run cut anywhere ends where an uncut one does."""

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
import torch
from torch import Tensor

from baselines.drl import drl_settings
from cdrl import checkpoint, trainer
from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from cdrl.langevin import Langevin
from cdrl.method import Batch
from cdrl.trainer import Outcome

Build = Callable[..., Cooperative]
ITERATIONS, EVERY, BATCH = 11, 4, 6
VARIANTS: dict[str, dict[str, Any]] = {
    "cdrl": {"dropout": 0.1, "classes": 2},
    "drl": {"initializer": False, **vars(drl_settings(chain=Langevin(steps=2, step_variance=5e-3)))},
}


def batch(iteration: int, first: int = 0, count: int = BATCH) -> Batch:
    generator = torch.Generator().manual_seed(iteration)
    images = 2 * torch.rand(BATCH, 1, 8, 8, generator=generator) - 1
    labels = torch.randint(1, 3, (BATCH,), generator=generator)
    rows = torch.arange(first, first + count)
    return Batch(images[rows], labels[rows], rows, count / BATCH)


class Log:
    """Reports as a caller keeps them: those that will be made again are dropped on resuming."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []

    def truncate(self, iteration: int) -> None:
        self.reports[:] = [report for report in self.reports if report["iteration"] <= iteration]

    @property
    def timeless(self) -> list[dict[str, Any]]:
        return [{name: value for name, value in report.items() if name != "seconds"} for report in self.reports]


def run(method: Cooperative, log: Log, folder: Path | None, **options: Any) -> Outcome:
    options = {"iterations": ITERATIONS, "batches": batch, **options}
    return trainer.train(
        method,
        batch_size=BATCH,
        on_report=log.reports.append,
        report_every=EVERY,
        folder=folder,
        on_resume=log.truncate,
        **options,
    )


def stop_after(iterations: int) -> Callable[[], bool]:
    """For ``should_stop``, which is asked before every iteration."""
    asked = iter(range(iterations))
    return lambda: next(asked, None) is None


def assert_same(mine: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert mine.keys() == other.keys()
    assert [name for name in mine if not torch.equal(mine[name], other[name])] == []


def test_reports_count_what_was_spent(cooperative: Build) -> None:
    method, log = cooperative(), Log()
    outcome = run(method, log, None)
    assert (outcome.status, outcome.iteration) == ("finished", ITERATIONS)
    assert [report["iteration"] for report in log.reports] == [4, 8, 11]
    last = log.reports[-1]
    assert (last["images"], last["grad_evals"]) == (11 * BATCH, round(11 * BATCH * method.training_cost))
    assert last["lr"] == {"energy": 1e-3, "initializer": 1e-3}
    assert set(method.METERS) < set(last)
    assert len(last["energy_gap"]) == 7
    assert last["energy_gap"][0] is None
    json.dumps(log.reports, allow_nan=False)


@pytest.mark.parametrize("cuts", [[1], [8], [3, 1, 6]])  # once; at a report; often, also right before the end
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cut_run_equals_a_whole_one(variant: str, cuts: list[int], cooperative: Build, tmp_path: Path) -> None:
    whole, whole_log = cooperative(**VARIANTS[variant]), Log()
    run(whole, whole_log, None)

    log = Log()
    for cut in cuts:
        assert run(cooperative(**VARIANTS[variant]), log, tmp_path, should_stop=stop_after(cut)).status == "interrupted"
    method = cooperative(**VARIANTS[variant])
    assert run(method, log, tmp_path).status == "finished"

    assert_same(method.state(), whole.state())
    assert log.timeless == whole_log.timeless


def test_a_run_from_an_older_checkpoint_makes_the_same_reports_again(cooperative: Build, tmp_path: Path) -> None:
    log, whole = Log(), cooperative(**VARIANTS["drl"])
    run(cooperative(**VARIANTS["drl"]), log, tmp_path, should_stop=stop_after(3))
    run(whole, log, None)
    expected = log.timeless
    method = cooperative(**VARIANTS["drl"])
    run(method, log, tmp_path)  # continues at 3, though the log already goes to the end
    assert_same(method.state(), whole.state())
    assert log.timeless == expected


def test_a_finished_run_is_left_as_it_is(cooperative: Build, tmp_path: Path) -> None:
    log = Log()
    first = run(cooperative(**VARIANTS["drl"]), log, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run(cooperative(**VARIANTS["drl"]), log, tmp_path, batches=lambda *_: pytest.fail("trained on")) == first
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_ctrl_c_ends_after_a_whole_iteration(cooperative: Build, tmp_path: Path) -> None:
    whole = cooperative(**VARIANTS["drl"])
    run(whole, Log(), None)

    def interrupting(iteration: int, first: int, count: int) -> Batch:
        if iteration == 5:
            signal.raise_signal(signal.SIGINT)
        return batch(iteration, first, count)

    before = signal.getsignal(signal.SIGINT)
    outcome = run(cooperative(**VARIANTS["drl"]), Log(), tmp_path, batches=interrupting)
    assert (outcome.status, outcome.iteration) == ("interrupted", 6)
    assert signal.getsignal(signal.SIGINT) is before
    method = cooperative(**VARIANTS["drl"])
    run(method, Log(), tmp_path)
    assert_same(method.state(), whole.state())


@pytest.fixture(autouse=True)
def ctrl_c_raises() -> Iterator[None]:
    """Python's own handler: a process started in the background inherits an ignored SIGINT instead."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_does_not_wait(cooperative: Build) -> None:
    def interrupting(iteration: int, first: int, count: int) -> Batch:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return batch(iteration, first, count)

    with pytest.raises(KeyboardInterrupt):
        run(cooperative(**VARIANTS["drl"]), Log(), None, batches=interrupting)


@pytest.mark.parametrize(("value", "words"), [(float("nan"), "nan"), (1e5, "1e+05")])
def test_divergence_is_reported_and_kept(value: float, words: str, cooperative: Build, tmp_path: Path) -> None:
    def poisoned(iteration: int, first: int, count: int) -> Batch:
        if iteration == 5:
            for parameter in method.learners["initializer"].network.parameters():
                parameter.data.fill_(value)
        return batch(iteration, first, count)

    method, log = cooperative(), Log()
    outcome = run(method, log, tmp_path, batches=poisoned)
    assert (outcome.status, outcome.iteration) == ("diverged", 8)
    assert "at level" in outcome.reason
    assert log.reports[-1]["iteration"] == 8
    json.dumps(log.reports, allow_nan=False)
    assert run(cooperative(), log, tmp_path) == outcome, "calling again does not hide it"


def test_diverged_weights_do_not_replace_healthy_ones(cooperative: Build, tmp_path: Path) -> None:
    """Also between reports, where checkpoints are due after every iteration."""

    def poisoned(iteration: int, first: int, count: int) -> Batch:
        shard = batch(iteration, first, count)
        return shard._replace(images=shard.images * (1.0 if iteration < 5 else float("nan")))

    outcome = run(cooperative(**VARIANTS["drl"]), Log(), tmp_path, batches=poisoned, checkpoint_seconds=0.0)
    assert (outcome.status, outcome.iteration) == ("diverged", 8)
    tensors, facts = checkpoint.load(tmp_path)
    assert (facts["status"], facts["iteration"], facts["kept"]) == ("diverged", 8, 5)
    assert all(bool(value.isfinite().all()) for value in tensors.values())
    assert run(cooperative(**VARIANTS["drl"]), Log(), tmp_path).status == "diverged"


@pytest.mark.parametrize("other", [{"initializer": False}, {"classes": 3}])
def test_a_checkpoint_of_more_networks_or_labels_is_not_taken(
    other: dict[str, Any], cooperative: Build, tmp_path: Path
) -> None:
    run(cooperative(), Log(), tmp_path, should_stop=stop_after(2))
    before = (tmp_path / "checkpoint.json").read_bytes()
    with pytest.raises(UserError, match="another configuration"):
        run(cooperative(**other), Log(), tmp_path)
    assert (tmp_path / "checkpoint.json").read_bytes() == before


def test_a_checkpoint_without_its_optimiser_is_not_taken(cooperative: Build, tmp_path: Path) -> None:
    run(cooperative(**VARIANTS["drl"]), Log(), tmp_path, should_stop=stop_after(2))
    tensors, facts = checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, {name: value for name, value in tensors.items() if "/optimizer." not in name}, facts)
    with pytest.raises(UserError, match="another configuration"):
        run(cooperative(**VARIANTS["drl"]), Log(), tmp_path)


def test_images_of_another_size_are_refused(cooperative: Build) -> None:
    with pytest.raises(UserError, match=r"images must be \(B, 1, 8, 8\)"):
        cooperative().train_step([Batch.whole(torch.zeros(2, 1, 16, 16))], 0)


def test_milestones_see_the_run_as_it_is_and_are_not_counted(
    cooperative: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now, seen = [0.0], []
    monkeypatch.setattr(trainer.time, "monotonic", lambda: now[0])

    def timed(iteration: int, first: int, count: int) -> Batch:
        now[0] += 1.0
        return batch(iteration, first, count)

    def milestone(iteration: int) -> None:
        now[0] += 100.0
        seen.append((iteration, method.learners["energy"].optimizer.state_dict()["state"][0]["step"].item()))

    options = {"batches": timed, "milestones": [2, 9, ITERATIONS], "on_milestone": milestone}
    method, log = cooperative(**VARIANTS["drl"]), Log()
    run(method, log, tmp_path, should_stop=stop_after(5), **options)
    method = cooperative(**VARIANTS["drl"])
    outcome = run(method, log, tmp_path, **options)
    assert seen == [(2, 2), (9, 9), (11, 11)]
    assert outcome.seconds == 11.0
    assert [report["seconds"] for report in log.reports] == [4.0, 8.0, 11.0]


def test_checkpoints_come_by_the_clock(cooperative: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now, kept = [0.0], []
    monkeypatch.setattr(trainer.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint, "save", lambda folder, tensors, facts: kept.append(facts["iteration"]))

    def timed(iteration: int, first: int, count: int) -> Batch:
        now[0] += 10.0
        return batch(iteration, first, count)

    run(cooperative(**VARIANTS["drl"]), Log(), tmp_path, batches=timed, checkpoint_seconds=30.0)
    assert kept == [3, 6, 9, 11]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"iterations": 0}, "iterations must be at least 1"), ({"iterations": -3}, "not -3")],
)
def test_impossible_numbers(options: dict[str, int], words: str, cooperative: Build) -> None:
    with pytest.raises(UserError, match=words):
        run(cooperative(), Log(), None, **options)


def test_a_truncated_checkpoint_stops_the_run_and_is_left_there(cooperative: Build, tmp_path: Path) -> None:
    run(cooperative(**VARIANTS["drl"]), Log(), tmp_path, should_stop=stop_after(2))
    (path,) = tmp_path.glob("*.safetensors")
    os.truncate(path, 1000)
    with pytest.raises(UserError, match=f"{path.name} is damaged"):
        run(cooperative(**VARIANTS["drl"]), Log(), tmp_path)
    assert path.stat().st_size == 1000


@pytest.mark.parametrize("other", [{"classes": 3}, {"initializer": False}])
def test_a_checkpoint_of_another_configuration(other: dict[str, Any], cooperative: Build, tmp_path: Path) -> None:
    run(cooperative(**other), Log(), tmp_path, should_stop=stop_after(2))
    with pytest.raises(UserError, match="belongs to another configuration"):
        run(cooperative(), Log(), tmp_path)


# --- A real process, killed -------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys, time
from pathlib import Path
import torch
from cdrl.cooperative import Cooperative, Settings
from cdrl.langevin import Langevin
from cdrl.learner import Optimisation
from cdrl.method import Batch
from cdrl.networks import EnergyNet, Initializer
from cdrl.trainer import train

folder, pause = Path(sys.argv[1]), float(sys.argv[2])
torch.set_num_threads(1)
torch.manual_seed(0)
sizes = dict(image_size=8, channels=1, width=8, multipliers=(1, 2), blocks=1)
method = Cooperative(
    EnergyNet(**sizes), Initializer(**sizes), Settings(chain=Langevin(steps=2)), Optimisation(warm_up=1), iterations=40
)

def batch(iteration, first, count):
    time.sleep(pause)
    print(iteration, flush=True)
    return Batch.whole(torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(iteration)) * 2 - 1)

log = folder / "metrics.jsonl"
def report(facts):
    with log.open("a") as file:
        file.write(json.dumps({k: v for k, v in facts.items() if k != "seconds"}) + "\\n")
def resume(iteration):
    lines = log.read_text().splitlines() if log.exists() else []
    log.write_text("".join(f"{line}\\n" for line in lines if json.loads(line)["iteration"] <= iteration))

outcome = train(method, batch, batch_size=4, iterations=40, on_report=report, report_every=7, folder=folder,
                checkpoint_seconds=0.0, on_resume=resume)
print(outcome.status)
"""


def script(folder: Path, pause: float) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(pause)], stdout=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.slow
def test_a_killed_process_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process, uncut = script(cut, 0.02), script(whole, 0.0)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 12:  # begun, not done: it dies in the iteration, or while a checkpoint is written
            time.sleep(0.003)
            process.kill()
            break
    assert process.wait() == -signal.SIGKILL
    assert 0 < checkpoint.load(cut)[1]["iteration"] < 40
    for finishing in (uncut, script(cut, 0.0)):
        output, _ = finishing.communicate()
        assert output.split()[-1] == "finished"

    assert_same(checkpoint.load(cut)[0], checkpoint.load(whole)[0])
    assert (cut / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert (whole / "metrics.jsonl").read_text().count("\n") == 6
