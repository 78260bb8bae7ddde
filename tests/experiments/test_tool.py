"""The console script: samples, completions and scores from the command line, and mistakes in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl import Model, checkpoint
from cdrl.langevin import Langevin
from cdrl.networks import EnergyNet, Initializer
from cdrl.noise import cosine_logsnr
from cdrl.sampler import Sampler
from experiments import data, tool

DEMO = str(Path(__file__).parents[2] / "results" / "demo")
PICTURE = f"{DEMO}/stages.png"


@pytest.fixture
def model(tmp_path: Path) -> Callable[[int], Path]:
    """Saves an untrained model of 8 × 8 grey images with so many classes."""

    def make(classes: int) -> Path:
        torch.manual_seed(0)
        sizes = {"image_size": 8, "channels": 1, "multipliers": (1,), "blocks": 1, "classes": classes}
        sampler = Sampler(
            energy_net=EnergyNet(**sizes, width=4).eval(),
            initializer=Initializer(**sizes, width=4, attention_sizes=()).eval(),
            schedule=cosine_logsnr(2),
            shape=(1, 8, 8),
            chain=Langevin(steps=1, step_variance=1e-3),
            shared_noise=True,
            last_denoise="consistent",
        )
        folder = tmp_path / f"model{classes}"
        checkpoint.save_model(folder, Model(sampler))
        return folder

    return make


def test_sample_draws_what_the_label_asks_for(model: Callable[[int], Path], tmp_path: Path) -> None:
    def drawn(*options: str) -> bytes:
        out = tmp_path / "new" / "samples.png"
        assert tool.main(["sample", str(model(3)), "--images", "4", "--out", str(out), *options]) == 0
        return out.read_bytes()

    plain = drawn()
    assert plain == drawn("--seed", "0")
    assert plain != drawn("--seed", "1")
    assert plain != drawn("--label", "2")
    assert drawn("--label", "2") != drawn("--label", "2", "--guidance", "3")


def test_inpaint_keeps_what_is_known(model: Callable[[int], Path], tmp_path: Path) -> None:
    truth = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, :3] = 255
    Image.fromarray(truth).save(tmp_path / "truth.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "out.png"
    arguments = ["inpaint", str(model(0)), str(tmp_path / "truth.png"), str(tmp_path / "mask.png"), "--out", str(out)]
    assert tool.main([*arguments, "--completions", "2"]) == 0
    shown = np.asarray(Image.open(out))
    zoom = shown.shape[0] // 8
    first = shown[::zoom, ::zoom][:8, :8]
    assert (first[:, :3] == truth[:, :3]).all()
    assert (first[:, 3:] == 128).all()
    second = shown[::zoom, ::zoom][:8, 9:17]
    assert (second[:, :3] == truth[:, :3]).all()
    assert not (second[:, 3:] == 128).all()


def test_inpaint_completes_the_hole_that_was_painted(model: Callable[[int], Path], tmp_path: Path) -> None:
    """On a wide photo: a hole over its bright spot leaves nothing bright known."""
    photo, mask = np.zeros((40, 80), np.uint8), np.full((40, 80), 255, np.uint8)
    photo[10:20, 50:60], mask[10:20, 50:60] = 255, 0
    paths = [tmp_path / name for name in ("photo.png", "mask.png", "out.png")]
    for pixels, path in zip((photo, mask), paths, strict=False):
        Image.fromarray(pixels).save(path)
    command = ["inpaint", str(model(0)), *map(str, paths[:2]), "--completions", "1", "--out", str(paths[2])]
    assert tool.main(command) == 0
    shown = np.asarray(Image.open(paths[2]))
    zoom = shown.shape[0] // 8
    expected = np.zeros((8, 8), bool)
    expected[2:4, 6:8] = True
    first = shown[::zoom, ::zoom][:8, :8]
    np.testing.assert_array_equal(first == 128, expected)
    assert first[~expected].max() < 64  # no bright spot is left


def test_score_of_the_test_images_is_that_of_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = data.load("digits", "test").images
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{number:04}.png")
    assert tool.main(["score", str(tmp_path), "--cache", ".cache"]) == 0
    printed = capsys.readouterr()
    assert "warning: fd-digits asks for 1,000 images" in printed.err
    lines = dict(line.split()[:2] for line in printed.out.splitlines())
    assert set(lines) == {"fd", "kid", "precision", "recall"}
    assert float(lines["fd"]) == pytest.approx(1.2344, abs=0.01)


def test_a_picture_is_read_as_the_data_set_folder_reads_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was held upside down
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 4), dtype=np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
    expected = data.load("folder", "train", tmp_path, image_size=8, data_cache=tmp_path / "cache").images[0]
    np.testing.assert_array_equal(tool.read(tmp_path / "a.png", 8, 3), expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "{model}", "--images", "0"], "--images"),
        (["sample", "{model}", "--label", "3"], "0 … 2"),
        (["sample", "{model}", "--guidance", "1"], "--label"),
        (["sample", f"{DEMO}/nano", "--label", "1"], "without classes"),
        (["sample", "{model}", "--label", "1", "--guidance", "-1"], "--guidance"),
        (["sample", "{model}", "--out", "/dev/null/x.png"], "--out"),
        (["sample", "nowhere"], "nowhere"),
        (["inpaint", "{model}", "no.png", "no.png"], "no.png"),
        (["inpaint", "{model}", PICTURE, "half"], "path of a PNG"),
        (["score", "nowhere"], "two image files"),
        (["score", "{model}", "--protocol", "fdd"], "fdd"),
        (["score", DEMO, "--data", "cifar10"], "fd-efficientnet-lite0"),
    ],
)
def test_a_mistake_gets_one_line(
    arguments: list[str], words: str, model: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([argument.format(model=model(3)) for argument in arguments]) == 1
    printed = capsys.readouterr().err
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert words in line
    assert "Traceback" not in printed
