"""Loggers: they show what the run's own log holds, go on where it goes on, and change no bit of it."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cdrl import conditions
from cdrl.errors import UserError
from experiments import configuration
from experiments.plan import Job, make_plan
from experiments.runs import loggers
from experiments.runs.folder import RunFolder
from experiments.runs.work import Order, work

MakeJob = Callable[..., Job]


def on(run: RunFolder, logger: str) -> Order:
    return Order(run.path, evaluations=(), device="cpu", commit="abc", logger=logger)


def killed_after(reports: int, run: RunFolder, order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    """Works until so many reports are made, keeps no checkpoint after the first, and dies."""
    made = loggers.Reports.report

    def report(self: loggers.Reports, facts: dict[str, Any]) -> None:
        made(self, facts)
        if facts["iteration"] == reports:
            raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(loggers.Reports, "report", report)
        with pytest.raises(SystemExit):
            work(replace(order, checkpoint_seconds=1e9))
    assert run.metrics.lines()[-1]["iteration"] == reports


def events(run: RunFolder) -> Any:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0, "images": 0}).Reload()


def test_event_files_say_what_the_log_says(job: MakeJob) -> None:
    pytest.importorskip("tensorboard")
    run = job().run
    assert work(on(run, "tensorboard")) == "done"
    shown, lines = events(run), run.metrics.lines()
    names = set(shown.Tags()["scalars"])
    assert {"energy_gap/level_1", "energy_grad/level_4", "learning_rate/initializer", "spent/seconds"} <= names
    gap = [(e.step, pytest.approx(e.value)) for e in shown.Scalars("energy_gap/level_2")]
    assert gap == [(line["iteration"], line["energy_gap"][2]) for line in lines if line["energy_gap"][2] is not None]
    rates = [e.value for e in shown.Scalars("learning_rate/energy")]
    assert rates == pytest.approx([line["lr"]["energy"] for line in lines])
    assert [e.step for e in shown.Images("samples")] == [6, 13]  # the milestone and the end


@pytest.mark.parametrize("method", ["cdrl", "drl", "short_run", "ddpm"])
def test_a_logger_changes_no_bit(
    job: MakeJob, method: str, fingerprint: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    # With vectors that sampling leaves as they were trained, which a checkpoint would show.
    quirk = [f"methods.{method}.spectral_ema=live"] if method in ("cdrl", "drl") else []
    table = "frontier" if method == "ddpm" else "table1"
    silent, seen = (job(method, 3000, runs, f"experiment={table}", *quirk).run for runs in ("silent", "seen"))
    work(replace(on(silent, "none"), checkpoint_seconds=1e-9))
    before = torch.get_rng_state()
    work(replace(on(seen, "tensorboard"), checkpoint_seconds=1e-9))
    assert torch.equal(torch.get_rng_state(), before)
    assert fingerprint(seen.path) == fingerprint(silent.path)
    for one, other in zip(seen.milestones(), silent.milestones(), strict=True):
        assert fingerprint(one) == fingerprint(other)


def test_what_a_kill_took_back_is_shown_once(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    run = job().run
    killed_after(9, run, on(run, "tensorboard"), monkeypatch)
    assert [e.step for e in events(run).Scalars("spent/images")] == list(range(1, 10))
    assert work(on(run, "tensorboard")) == "done"
    shown = events(run)
    assert [e.step for e in shown.Scalars("spent/images")] == list(range(1, 14))
    assert [e.step for e in shown.Images("samples")] == [6, 13]


def test_wandb_keeps_a_run_here_and_goes_on_with_it(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = job().run
    killed_after(9, run, on(run, "wandb"), monkeypatch)
    (first,) = run.path.glob("wandb/offline-run-*")
    assert work(on(run, "wandb")) == "done"
    parts = sorted(run.path.glob("wandb/offline-run-*"))
    assert len(parts) == 2  # both of one name, which wandb sync makes one run
    assert all(part.name.endswith(run.wandb_id()) for part in parts)
    (other,) = set(parts) - {first}
    assert any("energy_gap/level_1" in values for values in history(first).values())
    assert list(history(first)) == list(range(1, 10))
    assert list(history(other)) == list(range(9, 14))
    assert history(other)[13]["spent/images"] == 13 * 32
    assert len(list(other.glob("files/media/images/samples*.png"))) == 1


def history(part: Path) -> dict[int, dict[str, float]]:
    """What an offline run logged, by step."""
    from wandb.proto import wandb_internal_pb2

    (file,) = part.glob("*.wandb")
    steps = {}
    for data in log_records(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            values = {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in record.history.item}
            steps[int(values["_step"])] = values
    return steps


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: pieces with a header of 7 bytes, none across blocks of 32 KiB."""
    position, record = 7, b""  # after the file's own header
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if left < 7 or kind == 0:  # the rest of a block
            position += left
            continue
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole one, or the last piece of one
            yield record
            record = b""


def test_what_cannot_be_shown_is_said_before_training(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard", "wandb"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(UserError, match=rf"pip install 'cdrl\[{name}\]'"):
                make_plan(configuration.resolve([f"logger={name}"]))
    with pytest.raises(UserError, match="unknown logger 'paper'; choose one of none, tensorboard, wandb"):
        make_plan(configuration.resolve(["logger=paper"]))
    run = job().run
    with pytest.raises(UserError, match="unknown logger"):
        work(on(run, "paper"))
    assert not run.metrics.path.exists()


def test_wandb_without_an_account_is_said_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    with pytest.raises(UserError, match="run wandb login, or set WANDB_MODE=offline"):
        loggers.check("wandb")


def test_a_logger_is_no_part_of_what_a_run_is() -> None:
    pytest.importorskip("tensorboard")
    silent, seen = (make_plan(configuration.resolve([f"logger={name}"])) for name in ("none", "tensorboard"))
    assert [job.run.path for job in seen.jobs()] == [job.run.path for job in silent.jobs()]
    assert seen.results == silent.results


def test_methods_without_levels_have_names_without_levels() -> None:
    facts = {
        "iteration": 3,
        "images": 96,
        "grad_evals": 600,
        "seconds": 1.5,
        "lr": {"network": 1e-3},
        "noise_error": [2.0],
    }
    assert loggers.scalars(facts) == {
        "spent/images": 96.0,
        "spent/grad_evals": 600.0,
        "spent/seconds": 1.5,
        "learning_rate/network": 1e-3,
        "noise_error": 2.0,
    }
    assert loggers.scalars({**facts, "noise_error": [None, 1.0, None]})["noise_error/level_1"] == 1.0


@pytest.mark.parametrize(("shape", "pixels"), [((3, 8, 8), (71, 71, 3)), ((1, 8, 8), (71, 71)), ((2, 1, 1), (15, 23))])
def test_a_grid_shows_images_of_any_kind(shape: tuple[int, ...], pixels: tuple[int, ...]) -> None:
    class Painter:
        seed = 0

        def sample(self, n: int, seed: int, condition: conditions.Condition | None = None, batch_size: int = 1) -> Any:
            yield torch.full((n, *shape), float("nan"))

    drawn = loggers.sample_grid(Painter())  # type: ignore[arg-type]
    zoom = drawn.shape[0] // pixels[0]
    assert drawn.shape[:2] == (pixels[0] * zoom, pixels[1] * zoom)
    assert drawn.shape[2:] == pixels[2:]
