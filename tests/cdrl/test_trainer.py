"""The loop: what it reports, how it ends, and that a run cut anywhere ends where an uncut one does."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.ddpm import DDPM, DDPMSettings
from baselines.drl import drl_settings
from baselines.short_run import ShortRun, ShortRunSettings
from cdrl import checkpoint, trainer
from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from cdrl.guard import Guard, Trip
from cdrl.langevin import Langevin
from cdrl.learner import Optimisation
from cdrl.method import Batch, Method
from cdrl.networks import EnergyNet, Initializer
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
    options = {"iterations": ITERATIONS, "batches": batch, "report_every": EVERY, **options}
    return trainer.train(
        method,
        batch_size=BATCH,
        on_report=log.reports.append,
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
    assert [name for name in mine if mine[name].numpy().tobytes() != other[name].numpy().tobytes()] == []


def finite(tensors: dict[str, Tensor]) -> bool:
    """But for the record of what happened."""
    return all(bool(value.isfinite().all()) for name, value in tensors.items() if not name.startswith("trainer/"))


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


# --- Divergence -------------------------------------------------------------------------------------------------------

RARE = Guard(rollbacks=2, every=3, anchors=2)
"""An anchor after every 6 of the 11 iterations."""
NAN = float("nan")


class Poison:
    """Batches that do something to the method right before an iteration, each time that it comes, or once."""

    def __init__(self, iteration: int, act: Callable[[Cooperative], None]) -> None:
        self.iteration, self.act = iteration, act
        self.method: Cooperative | None = None

    def __call__(self, iteration: int, first: int, count: int) -> Batch:
        if iteration == self.iteration:
            assert self.method is not None
            self.act(self.method)
        return batch(iteration, first, count)


def fill(where: str, value: float) -> Callable[[Cooperative], None]:
    def act(method: Cooperative) -> None:
        for learner in method.learners.values():
            network = learner.network if where == "weights" else learner.ema.average
            next(network.parameters()).data.fill_(value)

    return act


def poisoned_run(
    build: Callable[[], Cooperative], act: Callable[[Cooperative], None], at: int, folder: Path | None, **options: Any
) -> tuple[Outcome, Cooperative, Log, list[Trip]]:
    poison, log, trips = Poison(at, act), Log(), []
    poison.method = build()
    options = {"guard": RARE, "on_trip": trips.append, "batches": poison, **options}
    return run(poison.method, log, folder, **options), poison.method, log, trips


@pytest.fixture
def build(cooperative: Build) -> Callable[[], Cooperative]:
    """DRL, which is enough for most of this."""
    return lambda: cooperative(**VARIANTS["drl"])


@pytest.mark.parametrize("where", ["weights", "averages"])
@pytest.mark.parametrize("at", [0, 4, 7, 10])  # the first iteration; before and after the anchor; the last iteration
@pytest.mark.parametrize("value", [NAN, 1e9])
def test_broken_weights_are_rolled_back_wherever_they_break(
    build: Callable[[], Cooperative], where: str, at: int, value: float, tmp_path: Path
) -> None:
    outcome, method, log, (trip,) = poisoned_run(build, fill(where, value), at, tmp_path)
    assert (outcome.status, outcome.iteration, outcome.rollbacks) == ("finished", ITERATIONS, 1)
    assert trip.anchor == (6 if at >= 6 else 0)
    assert outcome.lost == trip.iteration - trip.anchor > 0
    assert [learner.rate(ITERATIONS, ITERATIONS) for learner in method.learners.values()] == [5e-4]
    assert "energy" in trip.reason
    for stem in ("checkpoint", "anchor"):
        assert finite(checkpoint.load(tmp_path, stem)[0])
    assert finite(method.state())
    json.dumps(log.reports, allow_nan=False)


def test_after_a_rollback_noise_and_images_are_new_and_the_budget_is_kept(
    build: Callable[[], Cooperative], tmp_path: Path
) -> None:
    seen: list[int] = []
    poison = Poison(7, fill("weights", NAN))
    poison.method = build()

    def watched(iteration: int, first: int, count: int) -> Batch:
        seen.append(iteration)
        return poison(iteration, first, count)

    run(poison.method, Log(), tmp_path, batches=watched, guard=RARE)
    assert seen == list(range(ITERATIONS))


@pytest.mark.parametrize("cut", range(1, ITERATIONS))
def test_a_run_that_was_rolled_back_ends_the_same_wherever_it_is_cut(
    build: Callable[[], Cooperative], cut: int, tmp_path: Path
) -> None:
    whole, method, log, trips = poisoned_run(build, fill("weights", NAN), 7, tmp_path / "whole")
    first = poisoned_run(build, fill("weights", NAN), 7, tmp_path / "cut", should_stop=stop_after(cut))
    assert first[0].status == "interrupted"
    poison = Poison(7, fill("weights", NAN))
    poison.method = build()
    again = run(poison.method, first[2], tmp_path / "cut", batches=poison, guard=RARE, on_trip=first[3].append)
    assert replace(again, seconds=0.0) == replace(whole, seconds=0.0)
    assert_same(poison.method.state(), method.state())
    assert first[2].timeless == log.timeless
    assert repr(vars(first[3][-1])) == repr(vars(trips[-1])), "also the record of what went before, NaN included"


def test_a_run_that_keeps_diverging_is_given_up_with_healthy_weights_and_can_be_retried(
    build: Callable[[], Cooperative], tmp_path: Path
) -> None:
    def poisoned(iteration: int, first: int, count: int) -> Batch:
        shard = batch(iteration, first, count)
        return shard._replace(images=shard.images * (NAN if iteration < 6 else 1.0))

    trips: list[Trip] = []
    options = {"guard": Guard(rollbacks=2, every=2, anchors=2), "batches": poisoned, "on_trip": trips.append}
    outcome = run(build(), Log(), tmp_path, **options)
    assert (outcome.status, outcome.iteration, outcome.rollbacks) == ("diverged", 6, 3)
    assert [(trip.number, trip.iteration, trip.anchor) for trip in trips] == [(1, 2, 0), (2, 4, 0), (3, 6, 0)]
    assert "is nan at level" in outcome.reason
    tensors, facts = checkpoint.load(tmp_path)
    assert (facts["status"], facts["iteration"]) == ("diverged", 6)
    assert finite(tensors)

    assert run(build(), Log(), tmp_path, **options) == outcome, "calling again does not hide it"
    retried = run(build(), Log(), tmp_path, retry=True, **options)
    assert (retried.status, retried.iteration, retried.rollbacks) == ("finished", ITERATIONS, 3)
    assert retried.allowed == 5


def test_a_run_with_nothing_healthy_left_of_it_is_not_finished(
    build: Callable[[], Cooperative], tmp_path: Path
) -> None:
    """All of its iterations are taken back: what is left is the beginning."""
    options: dict[str, Any] = {"guard": Guard(rollbacks=2, every=100, anchors=1), "report_every": 100}
    outcome = poisoned_run(build, fill("weights", NAN), 10, tmp_path, **options)[0]
    assert (outcome.status, outcome.lost) == ("diverged", ITERATIONS)


def test_the_record_tells_each_iteration_at_each_level(build: Callable[[], Cooperative]) -> None:
    _, method, _, (trip,) = poisoned_run(build, fill("weights", NAN), 4, None)
    assert len(trip.record) == trip.iteration == 6
    assert set(trip.record[0]) == {*method.METERS, "energy_grad"}
    gaps = [meters["energy_gap"] for meters in trip.record]
    assert all(len(levels) == 7 for levels in gaps)
    assert all(math.isfinite(value) for levels in gaps[:4] for value in levels if value is not None)
    assert not all(math.isfinite(value) for levels in gaps[4:] for value in levels if value is not None)


def method_of(name: str, learning_rate: float, cooperative: Build) -> Method:
    torch.manual_seed(0)
    optimisation = Optimisation(learning_rate=learning_rate, warm_up=2, ema=0.9)
    sizes: dict[str, Any] = {"image_size": 8, "channels": 1, "width": 8, "multipliers": (1, 2), "blocks": 1}
    if name == "short_run":
        return ShortRun(EnergyNet(**sizes), ShortRunSettings(steps=3), optimisation, iterations=30)
    if name == "ddpm":
        network, reference = Initializer(**sizes), EnergyNet(**sizes)
        return DDPM(network, reference, DDPMSettings(), optimisation, (1, 8, 8), iterations=30)
    return cooperative(**VARIANTS[name], optimisation=optimisation)


@pytest.mark.parametrize("name", ["cdrl", "drl", "short_run", "ddpm"])
def test_a_hundredfold_learning_rate_never_ends_in_broken_weights(
    name: str, cooperative: Build, tmp_path: Path
) -> None:
    """Rolled back, given up or merely bad: what is kept is finite, and a second run does the same."""
    outcomes, states = [], []
    for folder in ("first", "second"):
        method = method_of(name, 0.1 if name != "cdrl" else 1e3, cooperative)
        outcome = trainer.train(
            method, batch, batch_size=BATCH, iterations=30, on_report=lambda _: None, report_every=5,
            folder=tmp_path / folder, guard=Guard(rollbacks=2, every=3, anchors=6),
        )  # fmt: skip
        tensors, facts = checkpoint.load(tmp_path / folder)
        assert facts["status"] == outcome.status in ("finished", "diverged")
        assert (outcome.status == "diverged") == (outcome.rollbacks > 2)
        assert finite(tensors)
        outcomes.append(replace(outcome, seconds=0.0))
        states.append(tensors)
    assert outcomes[0] == outcomes[1]
    assert_same(states[0], states[1])


# --- Damage -----------------------------------------------------------------------------------------------------------


def damage_tensors(folder: Path, stem: str) -> None:
    (path,) = folder.glob(f"{stem}-*.safetensors")
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def damage_index(folder: Path, stem: str) -> None:
    path = folder / f"{stem}.json"
    path.write_text(path.read_text().replace('"iteration": ', '"iteration": 1'))


def remove(folder: Path, stem: str) -> None:
    (folder / f"{stem}.json").unlink()


@pytest.mark.parametrize("damage", [damage_tensors, damage_index, remove])
@pytest.mark.parametrize("done", [8, ITERATIONS])  # under way, and a run that had ended
def test_the_state_before_a_damaged_one_is_taken(
    build: Callable[[], Cooperative], damage: Callable[[Path, str], None], done: int, tmp_path: Path
) -> None:
    whole = build()
    run(whole, Log(), None)
    log, said = Log(), []
    run(build(), log, tmp_path, guard=RARE, should_stop=stop_after(done))
    damage(tmp_path, "checkpoint")
    method = build()
    assert run(method, log, tmp_path, guard=RARE, on_damage=said.append).status == "finished"
    assert_same(method.state(), whole.state())
    assert [report["iteration"] for report in log.reports] == [4, 8, 11], "the metrics follow the state"
    if damage is not remove:
        (text,) = said
        assert "is damaged" in text
        assert text.endswith("; the run goes on from iteration 6")


def test_two_damaged_states_stop_the_run_and_stay(build: Callable[[], Cooperative], tmp_path: Path) -> None:
    run(build(), Log(), tmp_path, guard=RARE, should_stop=stop_after(8))
    for stem in ("checkpoint", "anchor"):
        damage_tensors(tmp_path, stem)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"checkpoint-\w+\.safetensors is damaged: .*; restore it .*delete"):
        run(build(), Log(), tmp_path, guard=RARE)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("change", [{"iteration": 12}, {"iteration": -1}, {"status": "done"}, {"iteration": None}])
def test_a_state_that_cannot_be_of_this_run_is_refused(
    build: Callable[[], Cooperative], change: dict[str, Any], tmp_path: Path
) -> None:
    run(build(), Log(), tmp_path, should_stop=stop_after(3))
    tensors, facts = checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, tensors, {**facts, **change})
    with pytest.raises(UserError, match="belongs to another configuration"):
        run(build(), Log(), tmp_path)


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
    save = checkpoint.save

    def noted(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any], stem: str) -> None:
        if stem == "checkpoint":
            kept.append(facts["iteration"])
        save(folder, tensors, facts, stem)

    monkeypatch.setattr(checkpoint, "save", noted)

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
