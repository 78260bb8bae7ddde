"""The command `cdrl`: what holds for every command, and sampling and completing with the library alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cdrl
from cdrl import Model, checkpoint, cli, pictures
from cdrl.errors import UserError
from cdrl.langevin import Langevin
from cdrl.networks import EnergyNet, Initializer
from cdrl.noise import cosine_logsnr
from cdrl.sampler import Sampler

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "results" / "demo"
COMMANDS = [name for group in cli.COMMANDS.values() for name in group]


def command(*arguments: str, root: Path = ROOT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cdrl", *arguments],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores it
    )


def output(*arguments: str, root: Path = ROOT) -> tuple[int, str, str]:
    process = command(*arguments, root=root)
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


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


# What holds for every command


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_overview_names_every_command(arguments: list[str]) -> None:
    code, out, err = output(*arguments)
    assert (code, err) == (0, "")
    assert set(COMMANDS) <= {line.split()[0] for line in out.splitlines() if line.startswith("  ")}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples(name: str) -> None:
    code, out, err = output(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: cdrl {name} ")
    assert f"  cdrl {name}" in out.partition("examples:")[2]


def test_help_needs_no_pytorch() -> None:
    script = f"""
import sys
from cdrl.cli import main
for name in {COMMANDS}:
    assert main([name, "--help"]) == 0
assert "torch" not in sys.modules, "torch"
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_version() -> None:
    assert output("--version") == (0, f"cdrl {cdrl.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["smaple"], ["unknown command 'smaple'", "cdrl sample"]),
        (["experiment=table1"], ["cdrl run experiment=table1"]),
        (["--frobnicate"], ["unknown command", "--help"]),
        (["sample"], ["model", "cdrl sample --help"]),
        (["sample", "x", "--image", "3"], ["--image", "cdrl sample --help"]),
        (["sample", "x", "--images", "three"], ["--images", "three"]),
    ],
)
def test_a_mistake_on_the_command_line_gets_one_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert printed.out == ""
    for word in words:
        assert word in line


@pytest.mark.parametrize("arguments", [["--help"], ["sample", "--help"], ["run", "--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_nobody_reading_on_is_no_error(arguments: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "cdrl", *arguments],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writer)
    assert process.stderr == ""
    assert process.returncode in (0, 141)  # argparse itself is silent about a reader that is gone


def test_a_pipe_that_is_not_the_readers_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(arguments: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(cli, "sample", broken)
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setattr(sys, "stderr", file)
        with pytest.raises(BrokenPipeError):
            cli.main(["sample"])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "stopped by SIGTERM"),
        (signal.SIGHUP, "stopped by SIGHUP"),
        (signal.SIGUSR1, "stopped by SIGUSR1"),
    ],
)
def test_interrupted_and_terminated_are_one_line(how: signal.Signals, words: str, tmp_path: Path) -> None:
    process = command("sample", str(DEMO / "nano"), "--images", "100000", "--outdir", str(tmp_path))
    deadline = time.monotonic() + 100
    while not any(tmp_path.iterdir()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + how
    assert err.splitlines()[-1] == f"{words}; the same command continues where this one stopped"
    assert "Traceback" not in err


def test_the_library_alone_samples_and_says_where_the_rest_is(model: Callable[[int], Path], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "cdrl", tmp_path / "site" / "cdrl", ignore=shutil.ignore_patterns("__pycache__"))
    site, out = tmp_path / "site", tmp_path / "samples.png"
    code, text, _ = output("--help", root=site)
    assert code == 0
    assert "The library alone is installed" in text
    code, _, err = output("run", "experiment=table1", root=site)
    assert code == 1
    assert err == "error: run belongs to the suite, which runs from a checkout: clone the repository, make setup\n"
    assert output("sample", str(model(0)), "--images", "4", "--out", str(out), root=site)[0] == 0
    assert out.exists()
    code, _, err = output("sample", str(tmp_path), root=site)
    assert code == 1
    assert "model.json is missing" in err


def test_progress_is_share_and_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, 5.0, 30.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    with cli.progress("sampling", 100) as advance:
        advance(10)
        advance(20)
    assert capsys.readouterr().err == "sampling: 30 %, about 70 s left\n"


# sample


def test_sample_draws_what_the_label_asks_for(model: Callable[[int], Path], tmp_path: Path) -> None:
    def drawn(*options: str) -> bytes:
        out = tmp_path / "new" / "samples.png"
        assert cli.main(["sample", str(model(3)), "--images", "4", "--out", str(out), *options]) == 0
        return out.read_bytes()

    plain = drawn()
    assert plain == drawn("--seed", "0")
    assert plain != drawn("--seed", "1")
    assert plain != drawn("--label", "2")
    assert drawn("--label", "2") != drawn("--label", "2", "--guidance", "3")


def test_single_files_and_one_picture_show_the_same_images(model: Callable[[int], Path], tmp_path: Path) -> None:
    folder, out = tmp_path / "samples", tmp_path / "samples.png"
    arguments = ["sample", str(model(0)), "--images", "5", "--outdir", str(folder), "--out", str(out)]
    assert cli.main(arguments) == 0
    assert [path.name for path in sorted(folder.iterdir())] == [f"{n:06}.png" for n in range(5)]
    images = [np.asarray(Image.open(path))[..., None] for path in sorted(folder.iterdir())]
    expected = pictures.to_uint8(cdrl.load(model(0)).sample(5)).numpy()
    np.testing.assert_array_equal(np.stack(images), expected)
    shown = np.asarray(Image.open(out))
    zoom = 600 // 26
    assert shown.shape == (17 * zoom, 26 * zoom)  # five images of 8 pixels in rows of three
    np.testing.assert_array_equal(shown[::zoom, ::zoom][:8, 9:17], images[1][..., 0])
    assert cli.main(arguments) == 0  # again, over its own


def test_samples_do_not_mix_with_other_images(
    model: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sample", str(model(0)), "--outdir", str(tmp_path / "samples"), "--images"]
    assert cli.main([*arguments, "5"]) == 0
    assert cli.main([*arguments, "3"]) == 1
    assert "000003.png, which is none of these samples" in capsys.readouterr().err


def test_what_is_not_finite_is_counted_and_left_out(
    model: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = Sampler.__call__

    def ill(sampler: Sampler, index: torch.Tensor, *rest: object) -> torch.Tensor:
        images = draw(sampler, index, *rest)  # type: ignore[arg-type]
        images[1, 0, 3, 3] = float("nan")
        return images

    folder, out = tmp_path / "samples", tmp_path / "samples.png"
    arguments = ["sample", str(model(0)), "--images", "4", "--outdir", str(folder), "--out", str(out)]
    assert cli.main(arguments) == 0
    whole = np.asarray(Image.open(out))
    monkeypatch.setattr(Sampler, "__call__", ill)
    assert cli.main(arguments) == 1
    assert "error: 1 of 4 images are not finite or ran away, and were left out" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["000000.png", "000002.png", "000003.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(out))[:10, :10], whole[:10, :10])


def test_a_model_of_nothing_but_nan_writes_nothing(
    model: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = cdrl.load(model(0))
    next(loaded.sampler.energy_net.parameters()).fill_(float("nan"))
    checkpoint.save_model(tmp_path / "ill", loaded)
    out = tmp_path / "samples.png"
    assert cli.main(["sample", str(tmp_path / "ill"), "--images", "3", "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert "3 of 3 images are not finite" in printed.err
    assert "written" not in printed.out
    assert not out.exists()


@pytest.mark.parametrize("noise_scale", [1e5, 1e30])
def test_a_model_whose_chains_run_away_is_no_picture(
    model: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], noise_scale: float
) -> None:
    """Far outside the range, clamped, it would be a picture of black and white."""
    loaded = cdrl.load(model(0))
    loaded.sampler.chain = replace(loaded.sampler.chain, noise_scale=noise_scale)
    checkpoint.save_model(tmp_path / "ill", loaded)
    for name, drawn in (("photo.png", np.arange(64)), ("mask.png", np.repeat([0, 255], 32))):
        Image.fromarray(drawn.reshape(8, 8).astype(np.uint8)).save(tmp_path / name)
    out = tmp_path / "out.png"
    ill, pictures = str(tmp_path / "ill"), [str(tmp_path / name) for name in ("photo.png", "mask.png")]
    for arguments in (["sample", ill, "--images", "3"], ["inpaint", ill, *pictures, "--completions", "3"]):
        assert cli.main([*arguments, "--out", str(out)]) == 1
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert len(error) == 1
        assert "3 of 3 images are not finite or ran away" in error[0]


# inpaint


def test_inpaint_keeps_what_is_known(model: Callable[[int], Path], tmp_path: Path) -> None:
    truth = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, :3] = 255
    Image.fromarray(truth).save(tmp_path / "truth.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "out.png"
    arguments = ["inpaint", str(model(0)), str(tmp_path / "truth.png"), str(tmp_path / "mask.png"), "--out", str(out)]
    assert cli.main([*arguments, "--completions", "2"]) == 0
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
    arguments = ["inpaint", str(model(0)), *map(str, paths[:2]), "--completions", "1", "--out", str(paths[2])]
    assert cli.main(arguments) == 0
    shown = np.asarray(Image.open(paths[2]))
    zoom = shown.shape[0] // 8
    expected = np.zeros((8, 8), bool)
    expected[2:4, 6:8] = True
    first = shown[::zoom, ::zoom][:8, :8]
    np.testing.assert_array_equal(first == 128, expected)
    assert first[~expected].max() < 64  # no bright spot is left


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "{model}", "--images", "0"], "--images"),
        (["sample", "{model}", "--label", "3"], "0 … 2"),
        (["sample", "{model}", "--guidance", "1"], "--label"),
        (["sample", f"{DEMO}/nano", "--label", "1"], "without classes"),
        (["sample", "{model}", "--label", "1", "--guidance", "-1"], "--guidance"),
        (["sample", "{model}", "--label", "1", "--guidance", "nan"], "--guidance"),
        (["sample", "{model}", "--out", "/dev/null/x.png"], "--out"),
        (["sample", "{model}", "--out", "{model}/x.zz"], "'.zz'"),
        (["sample", "{model}", "--outdir", "/dev/null/x"], "--outdir"),
        (["sample", "{model}", "--device", "cuda:99"], "use cpu"),
        (["sample", "{model}", "--device", "gpu"], "use cpu"),
        (["sample", "nowhere"], "nowhere"),
        (["inpaint", "{model}", "no.png", "no.png"], "no.png"),
        (["inpaint", "{model}", f"{DEMO}/stages.png", "half"], "path of a PNG"),
        (["inpaint", "{model}", f"{DEMO}/stages.png", f"{DEMO}/stages.png", "--completions", "0"], "--completions"),
    ],
)
def test_a_mistake_gets_one_line(
    arguments: list[str], words: str, model: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([argument.format(model=model(3)) for argument in arguments]) == 1
    printed = capsys.readouterr().err
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert words in line
    assert "Traceback" not in printed


def test_what_cannot_be_written_is_said_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.zz"):
        pictures.check_writable(tmp_path / "x.zz")
    (tmp_path / "x.png").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        pictures.check_writable(tmp_path / "x.png")
