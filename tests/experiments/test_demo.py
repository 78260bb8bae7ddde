"""From a finished run to shared weights in half precision, and from those to a picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cdrl
from cdrl import checkpoint
from cdrl.cooperative import Cooperative
from experiments import configuration, demo, export, methods, tool
from experiments.plan import make_plan

_SMALL = "{width: 8, multipliers: [1, 2], blocks: 1, kernel: 3}"
_CHAIN = "{steps: 2, step_variance: 1.2e-2, step_multiplier: 1.0, noise_scale: 1.0}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as a worker leaves it, of a small CDRL on digits after three iterations."""
    runs = tmp_path_factory.mktemp("runs")
    overrides = [f"methods.cdrl.energy={_SMALL}", f"methods.cdrl.chain={_CHAIN}", f"runs={runs}"]
    planned = make_plan(configuration.resolve(["scale=nano", *overrides])).rows[0].evaluations[0].run
    config = planned.config
    method = methods.build(
        config["method"], image_size=8, channels=1, classes=10, seed=0, iterations=3, device=torch.device("cpu")
    )
    assert isinstance(method, Cooperative)
    for number in range(3):
        method.train_step(2 * torch.rand(8, 1, 8, 8) - 1, None, number)
    checkpoint.save(planned.folder, method.state(), {})
    (planned.folder / "config.json").write_text(json.dumps({**config, "seed": 0, "iterations": 3}))
    (planned.folder / "status.json").write_text(json.dumps({"status": "finished", "iterations": 3, "commit": "abc"}))
    return planned.folder


def test_half_precision_halves_the_file_and_loads_back_to_float32(run: Path, tmp_path: Path) -> None:
    half, full = export.export(run, tmp_path / "half"), export.export(run, tmp_path / "full", half=False)
    assert half < 0.6 * full
    networks = [cdrl.load(tmp_path / name).sampler for name in ("half", "full")]
    for mine, exact in zip(*(sampler.energy_net.state_dict().values() for sampler in networks), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, exact, rtol=2e-3, atol=1e-6)


def test_images_from_half_precision_are_those_of_full_but_for_rounding(run: Path, tmp_path: Path) -> None:
    for name, half in (("half", True), ("full", False)):
        export.export(run, tmp_path / name, half)
    ours, exact = (cdrl.load(tmp_path / name).sample(16, seed=1) for name in ("half", "full"))
    assert ours.dtype == torch.float32
    assert exact.std() > 0.1
    assert (ours - exact).square().mean().sqrt() < 0.02 * exact.std()


def test_what_is_exported_is_what_the_run_samples_from(run: Path, tmp_path: Path) -> None:
    export.export(run, tmp_path / "full", half=False)
    config = json.loads((run / "config.json").read_text())
    method = methods.build(
        config["method"], image_size=8, channels=1, classes=10, seed=0, iterations=3, device=torch.device("cpu")
    )
    method.load_state(checkpoint.load(run)[0])
    torch.testing.assert_close(cdrl.load(tmp_path / "full").sample(4, seed=2), next(iter(method.sample(4, seed=2))))
    origin = json.loads((tmp_path / "full" / "origin.json").read_text())
    assert (origin["data"], origin["commit"]) == ("digits", "abc")
    assert origin["run"].endswith("seed0")


@pytest.mark.parametrize(("status", "message"), [(None, "no finished run"), ("diverged", "that diverged")])
def test_only_finished_runs_are_exported_or_sampled(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: str | None, message: str
) -> None:
    run = shutil.copytree(run, tmp_path / "copy")
    file = run / "status.json"
    file.unlink() if status is None else file.write_text(json.dumps({"status": status}))
    assert export.main([str(run), str(tmp_path / "model")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    assert tool.main(["sample", str(run), "--out", str(tmp_path / "samples.png")]) == 1
    assert ("neither a finished run" if status is None else message) in capsys.readouterr().err


def test_demo_draws_a_grid_that_depends_on_the_seed_alone(run: Path, tmp_path: Path) -> None:
    assert export.main([str(run), str(tmp_path / "model")]) == 0
    pictures: list[np.ndarray] = []
    for seed in (0, 0, 1):
        out = tmp_path / f"{len(pictures)}.png"
        arguments = ["--model", str(tmp_path / "model"), "--images", "5", "--seed", str(seed), "--out", str(out)]
        assert demo.main(arguments) == 0
        with Image.open(out) as picture:
            pictures.append(np.asarray(picture))
    zoom = 600 // 26
    assert pictures[0].shape == (17 * zoom, 26 * zoom)  # five images of 8 pixels in rows of three
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_demo_names_a_file_that_it_cannot_write(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export.export(run, tmp_path / "model")
    assert demo.main(["--model", str(tmp_path / "model"), "--images", "1", "--out", str(tmp_path / "x.zz")]) == 1
    assert "--out" in capsys.readouterr().err


def test_demo_prefers_colour_images(run: Path, tmp_path: Path) -> None:
    export.export(run, tmp_path / "nano")
    assert demo.committed_model(tmp_path) == tmp_path / "nano"
    export.export(run, tmp_path / "mini")
    assert demo.committed_model(tmp_path) == tmp_path / "mini"


def test_demo_without_weights_says_how_to_get_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "WEIGHTS", tmp_path)
    assert demo.main([]) == 1
    assert "experiments.export" in capsys.readouterr().err


def test_committed_weights_are_small_and_sample() -> None:
    weights = Path(__file__).parents[2] / demo.WEIGHTS
    found = [weights / scale for scale in demo.SCALES if checkpoint.exists(weights / scale, "model")]
    if not found:
        pytest.skip("no weights are committed")
    for folder in found:
        assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6
        images = cdrl.load(folder).sample(1, seed=0)
        assert torch.isfinite(images).all()
        assert images.std() > 0.05
