from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl.langevin import Langevin
from cdrl.networks import EnergyNet, Initializer
from cdrl.noise import cosine_logsnr
from cdrl.sampler import Sampler
from experiments.data import to_uint8
from experiments.report import animation

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
