"""The suite's commands: scores of folders, models to share, overrides; how runs go is in test_command_line."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import cdrl
from cdrl import checkpoint
from cdrl.cli import main
from cdrl.errors import UserError
from cdrl.method import Batch
from cdrl.recipe import ImageShape
from experiments import cli, data
from experiments.__main__ import main as module_main
from experiments.data import DataSettings
from experiments.files import write_json
from experiments.metrics import Scorer, protocols
from experiments.runs.folder import RunFolder, RunSettings, Status
from experiments.runs.trained import trained_sampler
from experiments.runs.work import Order
from tests import sensitivity

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "results" / "demo"
SIZES = {"width": 8, "multipliers": [1, 2], "blocks": 1, "kernel": 3}
SETTINGS = RunSettings(
    data=DataSettings(name="digits", image_size=8, channels=1, classes=10),
    method={
        "_target_": "cdrl.recipe.CooperativeRecipe",
        "label": "CDRL",
        "batch_size": 8,
        "levels": 3,
        "energy": SIZES,
        "initializer": SIZES,
        "chain": {"_target_": "cdrl.langevin.Langevin", "steps": 2, "step_variance": 1.2e-2, "step_multiplier": 1.0},
    },
    budget=100,
    reports=1,
    milestones=(),
    seed=0,
)
FINISHED = Status(status="finished", iterations=3, seconds=1.0, grad_evals=96, commit="abc", device="a processor")


def trained(runs: Path, settings: RunSettings = SETTINGS) -> Path:
    """A run folder as work leaves it, of a small CDRL on digits after three iterations."""
    folder = settings.folder(runs, "cdrl")
    method = settings.recipe.build(ImageShape(8, 1, 10), seed=0, iterations=3)
    label = torch.ones(8, dtype=torch.int64) if settings.recipe.conditional else None
    for iteration in range(3):
        method.train_step([Batch.whole(2 * torch.rand(8, 1, 8, 8) - 1, label)], iteration)
    folder.want(settings)
    checkpoint.save(folder.path, method.state(), {})
    folder.finish(FINISHED)
    return folder.path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs"))


# run, plan, work, watch: what they hand on


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[tuple[object, ...]]]:
    """Puts a module of recorders in place of one that carries commands out."""

    def replace_module(name: str, *functions: str, answer: object = 0) -> list[tuple[object, ...]]:
        calls: list[tuple[object, ...]] = []
        module = ModuleType(name)
        for function in functions:

            def record(*arguments: object, function: str = function, **options: object) -> object:
                calls.append((function, *arguments, options))
                return answer

            setattr(module, function, record)
        monkeypatch.setitem(sys.modules, name, module)
        package, _, attribute = name.rpartition(".")
        monkeypatch.setattr(sys.modules[package], attribute, module, raising=False)
        return calls

    return replace_module


@pytest.mark.parametrize("place", [0, 1, 2])
def test_options_stand_anywhere_among_overrides(place: int, engine: Callable[..., list[tuple[object, ...]]]) -> None:
    calls = engine("experiments.run", "run", "plan")
    overrides = ["experiment=table1", "+rows.x=1"]
    options = {"show_config": True, "detach": False}
    assert module_main([*overrides[:place], "--cfg", "job", *overrides[place:]]) == 0
    assert main(["run", *overrides[:place], "--detach", *overrides[place:]]) == 0
    assert main(["plan", *overrides]) == 0
    assert calls == [
        ("run", overrides, options),
        ("run", overrides, {"show_config": False, "detach": True}),
        ("plan", overrides, {}),
    ]


def test_work_does_one_folder_after_another_until_time_is_over(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[Order] = []
    answers = ["done", "done", "interrupted", "interrupted"]

    def work(order: Order) -> str:
        orders.append(order)
        return answers.pop(0)

    monkeypatch.setattr("experiments.runs.work.work", work)
    monkeypatch.setattr("experiments.runs.progress.shown", lambda folder: nullcontext())
    assert main(["work", str(run), str(run), "--threads", "2", "--device", "cpu"]) == 0
    assert orders == [Order(run, device="cpu", threads=2)] * 2
    assert main(["work", str(run), "--seconds", "0"]) == 75
    assert orders[-1].deadline <= time.time()
    assert main(["work", str(run)]) == 130


def test_watch_looks_at_runs(tmp_path: Path, engine: Callable[..., list[tuple[object, ...]]]) -> None:
    calls = engine("experiments.runs.progress", "watch")
    assert main(["watch"]) == main(["watch", str(tmp_path)]) == 0
    assert calls == [("watch", [Path("runs")], {}), ("watch", [tmp_path], {})]


def test_a_package_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(arguments: object) -> int:
        raise ModuleNotFoundError("No module named 'hydra'", name="hydra.core")

    monkeypatch.setattr(cli, "doctor", lacking)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err.startswith("error: doctor needs hydra.core; make setup installs it")


# score


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A folder for statistics and decoded images, which shares the checkout's classifier of digits."""
    weights = ROOT / ".cache" / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").symlink_to(weights)
    return tmp_path / "cache"


def test_score_of_the_test_images_is_that_of_the_table(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = data.load("digits", "test").images
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / "images" / f"{number:04}.png")
    assert main(["score", str(tmp_path / "images"), "--cache", str(cache)]) == 0
    printed = capsys.readouterr()
    assert "warning: fd-digits asks for 1,000 images" in printed.err
    lines = dict(line.split()[:2] for line in printed.out.splitlines())
    scorer = Scorer(protocols.load("fd-digits"), data.load("digits", "train"), cache)  # as evaluations of runs do
    scorer.update(images)
    assert {name: float(value) for name, value in lines.items()} == pytest.approx(scorer.result(), rel=1e-5)  # 6 digits


def test_sampled_files_are_scored_against_a_folder(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, real, noise = (tmp_path / name for name in ("samples", "real", "noise"))
    assert main(["sample", str(DEMO / "nano"), "--images", "100", "--outdir", str(samples)]) == 0
    for folder in (real, noise):
        folder.mkdir()
    for number, image in enumerate(data.load("digits", "test").images[:150]):
        Image.fromarray(image[..., 0]).save(real / f"{number:04}.png")
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(noise / f"{number:04}.png")

    def distance(folder: Path, against: Path) -> float:
        capsys.readouterr()
        arguments = ["score", str(folder), "--against", str(against), "--cache", str(cache)]
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert f"against {len(list(against.iterdir()))} of {against}" in printed
        return float(printed.split()[1])

    assert distance(real, real) == pytest.approx(0.0, abs=1e-3)
    assert distance(samples, real) < 0.5 * distance(noise, real)


def test_a_larger_picture_is_compared_at_the_references_size(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, size in (("small", 8), ("large", 16)):
        (tmp_path / folder).mkdir()
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8).repeat(size // 8, 0)
            Image.fromarray(pixels.repeat(size // 8, 1)).save(tmp_path / folder / f"{number}.png")
    arguments = ["score", str(tmp_path / "large"), "--against", str(tmp_path / "small"), "--cache", str(cache)]
    assert main(arguments) == 0
    assert "note: images of 16x16 pixels are compared at 8x8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["score", "nowhere"], "two image files"),
        (["score", str(DEMO), "--against", "nowhere"], "two image files"),
        (["score", str(DEMO), "--protocol", "fdd"], "fdd"),
        (["score", str(DEMO), "--data", "digitz"], "digits"),
        (["score", str(DEMO), "--data", "cifar10", "--protocol", "fd-digits"], "fd-efficientnet-lite0"),
        (["score", str(DEMO), "--data", "digits", "--against", str(DEMO)], "not allowed with"),
        (["score", str(DEMO), "--root", "x", "--against", str(DEMO)], "--root"),
        (["score", str(DEMO), "--image-size", "8"], "--against"),
        (["score", str(DEMO), "--against", str(DEMO), "--image-size", "2"], "--image-size"),
        (["watch", "nowhere"], "no folder nowhere"),
        (["work", str(DEMO), "--threads", "0"], "--threads"),
        (["export", "nowhere", "x"], "no run folder"),
        (["report", "--results", "nowhere"], "--results"),
        (["doctor", "now"], "unrecognized arguments: now"),
        (["run", "--cfg"], "--cfg job"),
        (["run", "--frobnicate"], "unknown option --frobnicate; --help"),
    ],
)
def test_a_mistake_gets_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert words in line


# export, demo, and run folders as models


def test_half_precision_halves_the_file_and_loads_back_to_float32(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "half")]) == 0
    assert main(["export", str(run), str(tmp_path / "full"), "--full"]) == 0
    half, full = (json.loads((tmp_path / name / "model.json").read_text())["bytes"] for name in ("half", "full"))
    assert half < 0.6 * full
    rounded, exact = (cdrl.load(tmp_path / name).sampler for name in ("half", "full"))
    for mine, other in zip(rounded.energy_net.parameters(), exact.energy_net.parameters(), strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, other.half().float())

    def sampled(*states: dict[str, Tensor]) -> Tensor:
        for network, state in zip((exact.energy_net, exact.initializer), states, strict=True):
            assert network is not None
            network.load_state_dict(state)
        return exact(torch.arange(16), 1)

    assert exact.initializer is not None
    states = [copy.deepcopy(network.state_dict()) for network in (exact.energy_net, exact.initializer)]
    theirs = sampled(*states)
    change = sensitivity.of(sampled, *states, roundings=2**14)  # 11 bits for 24 is 2¹³ of them, and as many to spare
    assert sensitivity.distance(rounded(torch.arange(16), 1), theirs) < change
    assert change < 0.01 * theirs.std(), "samples are too sensitive to prove anything"


def test_what_is_exported_is_what_the_run_samples_from(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "full"), "--full"]) == 0
    method = SETTINGS.recipe.build(ImageShape(8, 1), seed=0, iterations=3)
    method.load_state(checkpoint.load(run)[0])
    assert torch.equal(cdrl.load(tmp_path / "full").sample(4, seed=2), next(iter(method.sample(4, seed=2))))
    origin = json.loads((tmp_path / "full" / "origin.json").read_text())
    assert (origin["data"], origin["commit"], origin["status"]) == ("digits", "abc", "finished")
    assert origin["run"].endswith("seed0")


def test_a_run_folder_is_sampled_like_a_model(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "model"), "--full"]) == 0
    pictures = []
    for folder in (run, tmp_path / "model"):
        out = tmp_path / "out.png"
        assert main(["sample", str(folder), "--images", "4", "--out", str(out)]) == 0
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[1]


def test_a_conditional_run_knows_its_labels(tmp_path: Path) -> None:
    settings = replace(SETTINGS, method={**SETTINGS.method, "conditional": True})
    run = trained(tmp_path, settings)
    assert trained_sampler(run).energy_net.classes == 10
    assert main(["sample", str(run), "--images", "1", "--label", "9", "--out", str(tmp_path / "x.png")]) == 0


def test_only_finished_runs_are_exported_or_sampled(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(run, tmp_path / "copy")
    (folder / "status.json").unlink()
    for status, message in ((None, "no finished run"), (replace(FINISHED, status="diverged"), "that diverged")):
        if status is not None:
            RunFolder(folder).finish(status)
        for arguments in (["export", str(folder), str(tmp_path / "model")], ["sample", str(folder)]):
            assert main(arguments) == 1
            assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    assert main(["sample", str(tmp_path)]) == 1
    assert "neither a finished run nor a saved model" in capsys.readouterr().err


def test_reference_rows_are_no_models(tmp_path: Path) -> None:
    method = {"_target_": "experiments.methods.Reference", "images": "noise", "label": "Gaussian noise"}
    folder = replace(SETTINGS, method=method).folder(tmp_path, "noise")
    write_json(folder.path / "config.json", asdict(replace(SETTINGS, method=method)))
    with pytest.raises(UserError, match="nothing to train or sample"):
        trained_sampler(folder.path)


def test_demo_prefers_colour_images_and_takes_options_of_sample(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_WEIGHTS", tmp_path)
    assert main(["demo"]) == 1
    assert "cdrl export" in capsys.readouterr().err
    for scale in ("nano", "mini"):
        assert main(["export", str(run), str(tmp_path / scale)]) == 0
        assert main(["demo", "--images", "5"]) == 0
        assert str(tmp_path / scale) in capsys.readouterr().err
    first = (tmp_path / "build" / "demo.png").read_bytes()
    assert main(["demo", "--images", "5", "--seed", "1", "--out", "other.png"]) == 0
    assert (tmp_path / "other.png").read_bytes() != first
    assert main(["demo", "--out", str(tmp_path / "x.zz")]) == 1
    assert "--out" in capsys.readouterr().err


def test_committed_weights_are_small_and_sample() -> None:
    folders = [DEMO / scale for scale in cli._SCALES if checkpoint.exists(DEMO / scale, "model")]
    assert folders
    for folder in folders:
        assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6
        images = cdrl.load(folder).sample(1, seed=0)
        assert torch.isfinite(images).all()
        assert images.std() > 0.05


def test_the_command_line_knows_nothing_of_figures() -> None:
    script = (
        "import sys, cdrl.cli, experiments.cli\n"
        f"cdrl.cli.main(['sample', {str(DEMO / 'nano')!r}, '--images', '1', '--out', '/dev/null.png'])\n"
        "assert not [name for name in sys.modules if name.startswith(('experiments.report', 'matplotlib'))]\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True)
