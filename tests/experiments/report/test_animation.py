from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl.langevin import Langevin
from cdrl.networks import EnergyNet, Initializer
from cdrl.noise import cosine_logsnr
from cdrl.sampler import Sampler
from experiments import cli
from experiments.data import to_uint8
from experiments.report import animation, style

LEVELS, STEPS = 3, 2


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    torch.manual_seed(0)
    return Sampler(
        EnergyNet(image_size=8, channels=1, width=8, multipliers=(1, 1), blocks=1).eval(),
        Initializer(image_size=8, channels=1, width=8, multipliers=(1, 1), blocks=1).eval(),
        cosine_logsnr(levels=LEVELS),
        (1, 8, 8),
        Langevin(steps=STEPS, step_variance=1e-2),
    )


def test_trace_has_every_stage_and_ends_in_the_sample(sampler: Sampler) -> None:
    trace = animation.record(sampler, images=3, seed=5)

    below = ["proposal", "step", "refined"]
    assert trace.stages.tolist() == ["noise", *below * LEVELS, "sample"]
    assert trace.levels.tolist() == [3, 2, 2, 2, 1, 1, 1, 0, 0, 0, 0]
    np.testing.assert_array_equal(trace.frames[-1], to_uint8(sampler(torch.arange(3), 5)).numpy())


def test_rise_starts_at_the_proposal(sampler: Sampler) -> None:
    trace = animation.record(sampler, images=3)

    assert (trace.rise[trace.stages == "proposal"] == 0).all()
    assert np.isfinite(trace.rise[1:-1]).all()
    assert np.isnan(trace.rise[[0, -1]]).all()
    assert (trace.rise[trace.stages == "step"] != 0).any()


def test_animation_has_a_frame_for_each(sampler: Sampler, tmp_path: Path) -> None:
    assert animation.write(sampler, tmp_path) == ["trajectory", "stages", "energy"]

    trace = animation.Trace.load(tmp_path / "trajectory.npz")
    with Image.open(io.BytesIO(animation.animate(trace))) as picture:
        assert picture.n_frames == len(trace.stages)  # type: ignore[attr-defined]
    names = {path.name for path in tmp_path.iterdir()}
    assert names - {"SHA256SUMS"} == {
        "trajectory.npz",
        "trajectory.png",
        "stages.svg",
        "stages.png",
        "energy.svg",
        "energy.png",
    }


@pytest.mark.parametrize("before", ["nothing", "another"])
def test_what_a_kill_left_is_made_again(
    before: str, sampler: Sampler, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between trajectory.png and stages.png, with nothing there before or the files of another model."""
    folder = results / "demo"
    traces = [animation.record(sampler, images=4, seed=seed) for seed in (0, 1)]
    monkeypatch.setattr(animation, "record", lambda sampler: traces[0])
    if before == "another":
        animation.write(sampler, folder)
        assert animation.complete(folder)
    monkeypatch.setattr(animation, "record", lambda sampler: traces[1])
    if (child := os.fork()) == 0:
        style.save = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        animation.write(sampler, folder)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (folder / "trajectory.png").exists()
    assert not animation.complete(folder)

    made = []
    monkeypatch.setattr("experiments.runs.trained.trained_sampler", lambda path: made.append(path) or sampler)
    for _ in range(2):
        assert cli.report(["--results", str(results), "--page"]) == 0
    assert made == [results.parent / "runs" / "cdrl" / "seed0"], "once, and not where it is complete"
    assert animation.complete(folder)
    (folder / "stages.png").write_bytes(b"damaged")
    assert not animation.complete(folder)


def test_a_run_that_cannot_be_traced_leaves_the_report(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fixture's runs have no configuration."""
    assert cli.report(["--results", str(results)]) == 1
    assert f"{results / 'demo' / 'trajectory'} could not be drawn: " in capsys.readouterr().err
    assert (results / "report.html").exists()
    assert (results / "table1" / "nano" / "score.png").exists()
