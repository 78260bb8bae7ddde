"""Names, folders and options: what `load` accepts and what it says otherwise."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdrl.errors import UserError
from experiments.data import registry
from experiments.data.registry import DataSettings, entry, load, names

CONFIGS = Path(registry.__file__).parents[1] / "conf" / "data"
FROM_FILES = sorted(name for name in names() if not entry(name).layout.startswith("nothing"))


def test_every_data_set_of_files_has_a_config_of_its_name() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} >= {*FROM_FILES, "digits"}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_config_names_the_options_that_the_loader_takes(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    assert config["name"] == path.stem
    assert set(config) >= {"root", "image_size", "channels", "classes", "flip"}
    options = set(inspect.signature(entry(path.stem).find).parameters) - {"place", "split"}
    assert set(config.get("options") or {}) == options


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("mnist", "train"), {}, "unknown data set 'mnist'.*cifar10"),
        (("digits", "dev"), {}, "no split 'dev'.*train, test"),
        (("digits", "train"), {"crop": 3}, "no option 'crop'.*none"),
        (("celeba64", "train"), {"corp": 3}, "no option 'corp'.*crop"),
    ],
)
def test_misspelt_requests(arguments: tuple[str, str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(*arguments, **options)


@pytest.mark.parametrize("name", FROM_FILES)
def test_missing_and_empty_folders_name_the_layout(name: str, tmp_path: Path) -> None:
    for root in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError) as caught:
            load(name, "test", root)
        assert str(root) in str(caught.value)
        assert entry(name).layout in str(caught.value)


def test_folder_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDRL_DATA_CIFAR10", str(tmp_path / "named"))
    with pytest.raises(UserError, match="named does not exist"):
        load("cifar10", "train")


def test_settings_that_disagree_with_the_images() -> None:
    settings = DataSettings(name="digits", image_size=8, channels=1, classes=10)
    assert len(settings.load("test")) == 500
    with pytest.raises(UserError, match=r"image_size 8.*32.*data\.image_size=8"):
        replace(settings, image_size=32).load("test")


def test_pinned_checksum_guards_sets_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(entry("digits").checksums, "test", "0" * 64)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="pixels hash to"):
        load("digits", "test")


def test_import_loads_no_decoder() -> None:
    code = "import sys, experiments.data; print([m for m in ('torchvision', 'pyarrow', 'sklearn') if m in sys.modules])"
    root = CONFIGS.parents[2]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.strip() == "[]"
