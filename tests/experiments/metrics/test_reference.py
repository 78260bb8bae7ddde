"""Reference statistics: made once, verified, continued after an interruption; and the job that makes them."""

from __future__ import annotations

import multiprocessing
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

from experiments.data import DataSettings, load
from experiments.metrics import Extracted, Extractor, protocols
from experiments.metrics import reference as module
from experiments.metrics.extractors import Pixels
from experiments.metrics.extractors.digits import RECIPE, DigitsExtractor
from experiments.metrics.reference import Reference, Statistics, reference
from experiments.progress import OnProgress

ROOT = Path(__file__).parents[3]
PROTOCOL = protocols.load("fd-digits")
MOMENTS = replace(PROTOCOL, metrics=("fd",))
DIGITS = DataSettings(name="digits", image_size=8, channels=1, classes=10)


class Counting:
    """An extractor that counts the images it sees, and takes its time over them."""

    def __init__(self, inner: Extractor, seconds: float = 0.0) -> None:
        self.name, self.dim, self.classes, self.sha256 = inner.name, inner.dim, inner.classes, inner.sha256
        self._inner, self._seconds = inner, seconds
        self.images = 0

    def __call__(self, pixels: Pixels) -> Extracted:
        self.images += len(pixels)
        time.sleep(self._seconds)
        return self._inner(pixels)


def make(
    extractor: Extractor, cache: Path, protocol: protocols.Protocol = PROTOCOL, on_progress: OnProgress | None = None
) -> Reference:
    return reference(protocol, extractor, load("digits", "train"), cache, torch.device("cpu"), on_progress)


def same(a: Reference, b: Reference) -> bool:
    equal = torch.equal(a.moments.mean, b.moments.mean) and torch.equal(a.moments.cov, b.moments.cov)
    if a.features is None or b.features is None:
        return equal and a.features is b.features
    return equal and torch.equal(a.features, b.features)


@pytest.mark.parametrize("protocol", [PROTOCOL, MOMENTS, replace(PROTOCOL, flips=True)])
def test_what_was_done_before_an_interruption_is_not_done_again(
    digits: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: protocols.Protocol
) -> None:
    monkeypatch.setattr(module, "_PART", 300)
    monkeypatch.setattr("experiments.progress._SECONDS_BETWEEN_REPORTS", 0.0)
    views = 2 if protocol.flips else 1
    whole = make(digits, tmp_path / "whole", protocol)

    def stop_after(share: float) -> OnProgress:
        def hear(done: float, text: str) -> None:
            if done >= share:
                raise KeyboardInterrupt

        return hear

    extractor = Counting(digits)
    for share in (0.1, 0.5, 0.8):
        with pytest.raises(KeyboardInterrupt):
            make(extractor, tmp_path / "stopped", protocol, stop_after(share))
        assert extractor.images <= 1297 * views * share + 16 * views + 300 * (views - 1), "it stopped at once"
    assert same(make(extractor, tmp_path / "stopped", protocol), whole)
    assert extractor.images == 1297 * views
    assert [path.suffix for path in (tmp_path / "stopped" / "reference").iterdir()] == [".safetensors"]


def test_progress_is_told(digits: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.progress._SECONDS_BETWEEN_REPORTS", 0.0)
    heard: list[tuple[float, str]] = []
    make(digits, tmp_path, on_progress=lambda share, text: heard.append((share, text)))
    assert heard[0] == (0.0, "reference statistics of digits: 0 of 1,297 images")
    assert heard[-1] == (1.0, "reference statistics of digits: 1,297 of 1,297 images")
    assert [share for share, _ in heard] == sorted(share for share, _ in heard)
    heard.clear()
    make(digits, tmp_path, on_progress=lambda share, text: heard.append((share, text)))
    assert heard == []


@pytest.mark.parametrize("place", [0.0, 0.001, 0.01, 0.5, 1.0])
def test_a_flipped_byte_or_a_lost_end_is_found_said_and_mended(
    digits: Extractor, tmp_path: Path, place: float, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make(digits, tmp_path)
    content = first.path.read_bytes()
    at = round(place * (len(content) - 1))
    for damaged in (content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :], content[:at]):
        first.path.write_bytes(damaged)
        extractor = Counting(digits)
        assert same(make(extractor, tmp_path), first)
        assert extractor.images == 1297
        assert first.path.read_bytes() == content
        assert f"{first.path} is damaged; it is made again" in capsys.readouterr().err


def test_damaged_features_are_made_again_for_a_protocol_that_needs_none(digits: Extractor, tmp_path: Path) -> None:
    first = make(digits, tmp_path)
    first.path.write_bytes(b"damaged")
    assert make(digits, tmp_path, MOMENTS).path == first.path
    assert same(make(digits, tmp_path), first)


def test_a_damaged_part_is_made_again(digits: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PART", 300)
    monkeypatch.setattr("experiments.progress._SECONDS_BETWEEN_REPORTS", 0.0)

    def stop(share: float, text: str) -> None:
        if share > 0.9:
            raise KeyboardInterrupt

    extractor, whole = Counting(digits), make(digits, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        make(extractor, tmp_path, on_progress=stop)
    parts = sorted(tmp_path.glob("reference/*.parts/*"))
    assert len(parts) == 4
    content = bytearray(parts[1].read_bytes())
    content[-1] ^= 1
    parts[1].write_bytes(content)
    assert same(make(extractor, tmp_path), whole)
    assert extractor.images == 1297 + 300


def _in_a_process(work: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def _until(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_second_process_waits_for_the_first(digits: Extractor, tmp_path: Path) -> None:
    first = _in_a_process(lambda: make(Counting(digits, 0.02), tmp_path))
    _until(lambda: list(tmp_path.glob("reference/*.lock")))
    extractor, heard = Counting(digits), []
    made = make(extractor, tmp_path, on_progress=lambda _, text: heard.append(text))
    first.join()
    assert first.exitcode == 0
    assert extractor.images == 0
    assert made.features is not None
    assert heard
    assert all(text.startswith("waiting for reference statistics of digits (made by ") for text in heard)
    assert heard[0].endswith(f", process {first.pid})")


def test_a_killed_process_is_taken_over_and_its_parts_are_used(
    digits: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PART", 300)
    whole = make(digits, tmp_path / "whole")
    first = _in_a_process(lambda: make(Counting(digits, 0.05), tmp_path))
    _until(lambda: list(tmp_path.glob("reference/*.parts/*")))
    first.kill()
    first.join()
    assert first.exitcode == -signal.SIGKILL
    extractor = Counting(digits)
    assert same(make(extractor, tmp_path), whole)
    assert extractor.images <= 997


def test_features_are_a_function_of_the_image(digits: Extractor) -> None:
    images = load("digits", "test").images[:50]
    whole = digits(images)
    for rows in (slice(7, 8), slice(3, 40)):
        part = digits(images[rows])
        assert torch.equal(part.features, whole.features[rows])
        assert part.probabilities is not None
        assert whole.probabilities is not None
        assert torch.equal(part.probabilities, whole.probabilities[rows])
    assert digits(images[:0]).features.shape == (0, 64)


def test_the_job_is_known_by_its_folder_alone(tmp_path: Path) -> None:
    job = Statistics(PROTOCOL, DIGITS, tmp_path)
    assert job.name == "statistics of digits for fd-digits"
    assert job.folder.path.parent == tmp_path / "statistics"
    assert job.folder.path.name.startswith("digits-digits-train-")
    assert not job.done
    assert not Statistics.at(job.folder.path)
    job.want()
    assert Statistics.at(job.folder.path)
    again = Statistics.open(job.folder.path)
    assert again == job
    heard: list[str] = []
    again.make("cpu", lambda _, text: heard.append(text))
    assert job.done
    assert heard[0] == "training the digits classifier"
    assert heard[-1] == "reference statistics of digits: 1,297 of 1,297 images"
    job.want()
    for path in (tmp_path / "reference").iterdir():
        path.unlink()
    assert not job.done


def test_jobs_share_a_folder_only_where_the_statistics_are_the_same(tmp_path: Path) -> None:
    def folder(data: DataSettings = DIGITS, **changes: object) -> Path:
        return Statistics(replace(PROTOCOL, **changes), data, tmp_path).folder.path  # type: ignore[arg-type]

    alike = [folder(samples=10), folder(rounding=False), folder(metrics=("fd", "kid")), folder(weights="x"), folder()]
    assert len(set(alike)) == 1
    others = [
        folder(metrics=("fd",)),
        folder(reference_split="test"),
        folder(reference_samples=100),
        folder(flips=True),
        folder(weights_sha256="0" * 64),
        folder(extractor="efficientnet-lite0"),
        folder(replace(DIGITS, name="svhn")),
    ]
    assert len({folder(), *others}) == 8


def test_the_classifier_is_trained_by_one_of_many_and_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import dataclasses, sys, pathlib, torch;"
        "from experiments.metrics.extractors.digits import DigitsExtractor, RECIPE;"
        "DigitsExtractor(pathlib.Path(sys.argv[1]), torch.device('cpu'), dataclasses.replace(RECIPE, epochs=2))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert "".join(errors).count("training the digits classifier") == 1
    (path,) = (tmp_path / "weights").iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    extractor = DigitsExtractor(tmp_path, torch.device("cpu"), replace(RECIPE, epochs=2))
    assert extractor(np.zeros((1, 8, 8, 1), np.uint8)).features.isfinite().all()
    assert f"{path} is damaged; it is made again" in capsys.readouterr().err
    assert path.read_bytes() != bytes(content)
