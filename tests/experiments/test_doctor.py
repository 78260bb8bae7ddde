"""The doctor: every data set, weight and statistics file, where it belongs, and what a plan would miss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from experiments import doctor
from experiments.data import DataSettings, at_hand, load, names, registry
from experiments.metrics import protocols

FOLDER = DataSettings(name="folder", image_size=8, options={"image_size": 8})


@pytest.fixture(autouse=True)
def _nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.CACHE_VARIABLE, str(tmp_path / "data"))
    monkeypatch.delenv("CDRL_WEIGHTS", raising=False)
    for name in names():
        monkeypatch.delenv(registry.entry(name).variable, raising=False)


def test_every_data_set_and_split_is_listed() -> None:
    items = {item.name: item for item in doctor.data_items()}
    assert set(items) == {f"{name}/{split}" for name in names() for split in registry.entry(name).splits}
    assert all(item.needed_for for item in items.values())
    assert items["digits/test"].state == "ready"
    assert items["svhn/test"].state == "missing"
    assert "test_32x32.mat" in items["svhn/test"].remedy
    assert items["cifar10/train"].state == "download"
    assert items["cifar10/train"].sha256.startswith("47af8b02")
    assert at_hand(["digits", "svhn", "cifar10", "rings"]) == ["digits", "rings"]


def test_images_are_found_then_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(folder / f"{i}.png")
    monkeypatch.setenv("CDRL_DATA_FOLDER", str(folder))

    def state() -> tuple[str, str]:
        item = next(item for item in doctor.data_items() if item.name == "folder/train")
        assert item.where == str(folder)
        return item.state, item.sha256

    assert state() == ("found", "")
    images = load("folder", "train")
    assert state() == ("ready", images.checksum)


def test_every_weight_file_is_listed(tmp_path: Path) -> None:
    items = {item.name: item for item in doctor.weight_items(tmp_path)}
    assert items["EfficientNet-Lite0"].state == "ready"
    assert items["digits classifier"].state == "missing"
    assert (items["CIFAR-10 classifier"].state, items["CIFAR-10 classifier"].needed_for) == ("ready", "fd-cifar10-16")
    inception = items["inception-2015-12-05.pt"]
    assert (inception.state, inception.needed_for) == ("download", "fid-clean, fid-legacy-tensorflow")
    assert "https://" in inception.remedy
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / inception.name).write_bytes(b"not it")
    Path(items["digits classifier"].where).write_bytes(b"neither")
    states = {item.name: item.state for item in doctor.weight_items(tmp_path)}
    assert (states[inception.name], states["digits classifier"]) == ("wrong", "wrong")


def test_what_a_plan_would_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits, cifar10 = DataSettings(name="digits", image_size=8, channels=1, classes=10), DataSettings(name="cifar10")
    assert doctor.missing_for(digits, protocols.load("fd-digits"), tmp_path) == []
    (line,) = doctor.missing_for(cifar10, protocols.load("fd-efficientnet-lite0"), tmp_path)
    assert line.startswith("cifar10: downloaded when first needed; or name its folder with data.root=FOLDER")
    data_line, weights_line = doctor.missing_for(cifar10, protocols.load("fid-legacy-pytorch"), tmp_path)
    assert data_line == line
    assert weights_line.startswith("pt_inception-2015-12-05-6726825d.pth: downloaded when first needed")
    (line,) = doctor.missing_for(FOLDER, protocols.load("fd-efficientnet-lite0"), tmp_path)
    assert "name yours with data.root=FOLDER" in line
    monkeypatch.setenv("CDRL_WEIGHTS", str(tmp_path))
    (line,) = doctor.missing_for(digits, protocols.load("fid-clean"), tmp_path)
    assert line.startswith("inception-2015-12-05.pt: get https://")
    assert not (tmp_path / "data").exists(), "nothing was downloaded or decoded"


def test_the_first_line_says_which_scales_can_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.report(Console(highlight=False, soft_wrap=True), tmp_path)
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("ready for nano: yes; ")
    assert "paper: needs cifar10, pt_inception-2015-12-05-6726825d.pth" in first
    assert doctor.main(["--help"]) == 0
    assert doctor.main(["what"]) == 1
