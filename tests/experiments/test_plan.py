"""What a plan says of a configuration: what was changed, where results go, which runs are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdrl.errors import UserError
from experiments import configuration, data, plan
from experiments.plan import Plan, make_plan
from experiments.worker import check_images


def planned(*overrides: str) -> Plan:
    return make_plan(configuration.resolve(overrides))


@pytest.mark.parametrize("name", ["table1", "ood", "toy", "imagenet32"])
@pytest.mark.parametrize("scale", ["nano", "paper"])
def test_an_experiment_as_it_is_has_no_changes(name: str, scale: str) -> None:
    elsewhere = ["runs=x", "device=cpu", "engine=eager", "launcher.workers=1", "data.root=y"]
    assert planned(f"experiment={name}", f"scale={scale}", *elsewhere).changed == ()


def test_changes_are_named() -> None:
    overrides = ["scale.samples=7", "experiment.rows.drl=null", "data.flip=true", "+experiment.rows.cdrl.budget=2"]
    assert set(planned(*overrides).changed) == {override.removeprefix("+") for override in overrides}


def test_changed_results_do_not_take_the_place_of_the_experiments_own() -> None:
    assert planned().results == Path("results/table1/nano")
    changed = planned("scale.samples=7").results
    assert changed.parent == Path("results/table1")
    assert changed.name.startswith("nano-")
    assert planned("scale.samples=8").results != changed
    assert planned("scale.samples=7", "results=here").results == Path("here/table1/nano")


def folder_of(tmp_path: Path, name: str, brightness: int) -> Path:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    for number in range(4):
        pixels = np.full((8, 8, 3), brightness + number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_two_folders_of_images_are_two_runs(tmp_path: Path) -> None:
    def runs(folder: Path) -> set[Path]:
        found = planned("data=folder", "data.image_size=8", f"data.root={folder}")
        return {row.evaluations[0].run.folder for row in found.rows}

    dark, bright = (folder_of(tmp_path, name, value) for name, value in (("dark", 10), ("bright", 200)))
    assert not runs(dark) & runs(bright)
    assert runs(dark) == runs(dark)


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    def images() -> data.ImageSet:
        config = {"name": "folder", "root": str(tmp_path / "dark"), "data_cache": str(tmp_path / "cache")}
        return data.load_config({**config, "options": {"image_size": 8}}, "train")

    folder_of(tmp_path, "dark", 10)
    check_images(tmp_path / "run", images())
    check_images(tmp_path / "run", images())
    folder_of(tmp_path, "dark", 20)
    with pytest.raises(UserError, match=r"not those that .* was trained on"):
        check_images(tmp_path / "run", images())


def test_optional_sets_are_part_of_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*present: str) -> tuple[list[str], Path]:
        monkeypatch.setattr(plan, "at_hand", lambda names, cache: [name for name in names if name in present])
        evaluation = planned("experiment=ood", "scale=paper").rows[0].evaluations[0]
        return evaluation.settings["outside"], evaluation.folder

    without, with_one = look(), look("cifar100")
    assert (without[0], with_one[0]) == (["interp"], ["interp", "cifar100"])
    assert without[1] != with_one[1]
