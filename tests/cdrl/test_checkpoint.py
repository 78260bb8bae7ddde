"""Checkpoints and exported models on disk: nothing is lost, and what is damaged says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cdrl
from baselines.drl import released_network
from cdrl import checkpoint, conditions, noise
from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from cdrl.noise import NoiseSchedule
from tests.reference import EXACT

Build = Callable[..., Cooperative]
OLD, NEW = {"iteration": 1}, {"iteration": 2}


def tensors(value: float) -> dict[str, Tensor]:
    return {"a": torch.full((40, 3), value), "b/c": torch.tensor(7), "transposed": torch.arange(6.0).reshape(2, 3).T}


def weights_file(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def test_returns_what_was_saved(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    assert not checkpoint.exists(folder)
    checkpoint.save(folder, tensors(1.5), {"iteration": 3, "note": "α"})
    assert checkpoint.exists(folder)
    loaded, facts = checkpoint.load(folder)
    assert facts == {"iteration": 3, "note": "α"}
    assert all(torch.equal(loaded[name], value) for name, value in tensors(1.5).items())


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 2.0):
        checkpoint.save(tmp_path, tensors(value), NEW)
    assert checkpoint.load(tmp_path)[0]["a"].unique().tolist() == [2.0]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.json", weights_file(tmp_path).name}


# save calls in turn: fsync, rename (tensors), fsync of the folder; fsync, rename (JSON), fsync; removal of the drafts'
# folder, and of the old
@pytest.mark.parametrize("survived", range(9))
def test_dying_at_any_step_leaves_a_whole_pair(survived: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, tensors(1.0), OLD)

    class Died(BaseException):
        """Like a kill: nothing in the package catches it."""

    steps = 0

    def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            if steps == survived:
                raise Died
            steps += 1
            return function(*args, **kwargs)

        return step

    with monkeypatch.context() as patch:
        for owner, name in ((os, "fsync"), (os, "replace"), (Path, "rmdir"), (Path, "unlink")):
            patch.setattr(owner, name, mortal(getattr(owner, name)))
        try:
            checkpoint.save(tmp_path, tensors(2.0), NEW)
            died = False
        except Died:
            died = True
    assert died == (survived < 8)
    loaded, facts = checkpoint.load(tmp_path)
    assert (loaded["a"][0, 0].item(), facts) == ((1.0, OLD) if survived < 5 else (2.0, NEW))
    checkpoint.save(tmp_path, tensors(3.0), NEW)
    assert len(list(tmp_path.iterdir())) == 2, "the next save clears what the dead one left"


def truncate(folder: Path) -> Path:
    path = weights_file(folder)
    os.truncate(path, path.stat().st_size // 2)
    return path


def flip(folder: Path) -> Path:
    path = weights_file(folder)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    return path


def remove(folder: Path) -> Path:
    path = weights_file(folder)
    path.unlink()
    return path


def cut_json(folder: Path) -> Path:
    path = folder / "checkpoint.json"
    path.write_text(path.read_text()[:-20])
    return path


def empty_json(folder: Path) -> Path:
    path = folder / "checkpoint.json"
    path.write_text("{}")
    return path


@pytest.mark.parametrize("damage", [truncate, flip, remove, cut_json, empty_json])
def test_damage_is_named_with_its_remedy(damage: Callable[[Path], Path], tmp_path: Path) -> None:
    checkpoint.save(tmp_path, tensors(1.0), OLD)
    path = damage(tmp_path)
    with pytest.raises(UserError) as caught:
        checkpoint.load(tmp_path)
    message = str(caught.value)
    assert path.name in message
    assert "restore it from a copy, or delete" in message
    assert "\n" not in message


def test_no_flipped_bit_of_the_index_is_believed(tmp_path: Path) -> None:
    """All 8 × some 400 of them: a fact, the file's name or hash, or what JSON is made of."""
    checkpoint.save(tmp_path, {"a": torch.zeros(1)}, {"iteration": 1000, "seconds": 12.25, "status": "interrupted"})
    path = tmp_path / "checkpoint.json"
    whole = path.read_bytes()
    saved = checkpoint.load(tmp_path)[1]
    silent = []
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            if checkpoint.load(tmp_path)[1] != saved:
                silent.append(bit)
        except UserError:
            pass
    assert silent == []


@pytest.mark.parametrize("change", [{"iteration": 10**9}, {"iteration": -3}, {"status": "finished"}])
def test_edited_facts_are_found(change: dict[str, Any], tmp_path: Path) -> None:
    checkpoint.save(tmp_path, tensors(1.0), {"iteration": 37, "status": "interrupted"})
    path = tmp_path / "checkpoint.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "facts": {**index["facts"], **change}}))
    with pytest.raises(UserError, match=r"checkpoint\.json is damaged: its content does not match its checksum"):
        checkpoint.load(tmp_path)


SAVING = """
import os, signal, sys, threading, time
from pathlib import Path
import torch
from cdrl import checkpoint
folder = Path(sys.argv[1])
checkpoint.save(folder, {"a": torch.zeros(10)}, {"iteration": 1})
def kill_inside():  # as soon as the tensors begin to be written
    while not list(folder.glob(".checkpoint.unfinished/*")) and not list(folder.glob(".tmp*")):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill_inside, daemon=True).start()
checkpoint.save(folder, {"a": torch.ones(20_000_000)}, {"iteration": 2})
"""


def test_a_kill_inside_a_save_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.run([sys.executable, "-c", SAVING, str(tmp_path)], env=environment)
    assert process.returncode == -signal.SIGKILL
    assert checkpoint.load(tmp_path)[1] == {"iteration": 1}
    checkpoint.save(tmp_path, tensors(3.0), NEW)
    assert sorted(path.name for path in tmp_path.iterdir()) == [weights_file(tmp_path).name, "checkpoint.json"]


def test_a_model_from_before_indices_had_checksums_loads(cooperative: Build, tmp_path: Path) -> None:
    checkpoint.save_model(tmp_path, cdrl.Model(cooperative().sampler()))
    path = tmp_path / "model.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**{name: value for name, value in index.items() if name != "check"}, "format": 1}))
    assert cdrl.load(tmp_path).sample(2, seed=0).shape == (2, 1, 8, 8)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint in"):
        checkpoint.load(tmp_path)
    with pytest.raises(UserError, match="no model in"):
        cdrl.load(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write to .*choose another folder"):
        checkpoint.save(tmp_path / "file" / "run", tensors(1.0), NEW)


def test_a_full_disk_leaves_the_old_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, tensors(1.0), OLD)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(UserError, match="free space"):
            checkpoint.save(tmp_path, tensors(2.0), NEW)
    assert checkpoint.load(tmp_path)[1] == OLD


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"classes": 3},
        {"initializer": False, "schedule": noise.linear_beta(3)},
        {"initializer": False, "schedule": noise.linear_beta(), "energy": released_network()},
        {"dtype": torch.float64},
    ],
)
def test_an_exported_model_samples_the_same_images(variant: dict[str, Any], cooperative: Build, tmp_path: Path) -> None:
    model = cdrl.Model(cooperative(**variant).sampler())
    checkpoint.save_model(tmp_path, model)
    loaded = cdrl.load(tmp_path)
    condition = conditions.guided([1, 3, 2], 0.5) if variant.get("classes") else None
    samples = loaded.sample(3, seed=4, condition=condition)
    assert samples.shape == (3, 1, 8, 8)
    assert torch.equal(samples, model.sample(3, seed=4, condition=condition))


def test_a_model_in_half_precision_is_half_as_big_and_close(cooperative: Build, tmp_path: Path) -> None:
    model = cdrl.Model(cooperative().sampler())
    checkpoint.save_model(tmp_path / "full", model)
    checkpoint.save_model(tmp_path / "half", model, half=True)
    sizes = [json.loads((tmp_path / name / "model.json").read_text())["bytes"] for name in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    y = torch.rand(4, 1, 8, 8)
    full, half = (cdrl.load(tmp_path / name).log_density(y, 2) for name in ("full", "half"))
    assert full.dtype == half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=1e-2, atol=float(1e-2 * full.abs().max()))


def test_a_schedule_without_a_name_is_kept_by_its_values(cooperative: Build, tmp_path: Path) -> None:
    schedule = NoiseSchedule(torch.tensor([7.1, 1.0, -4.3], dtype=torch.float64))
    checkpoint.save_model(tmp_path, cdrl.Model(cooperative(schedule=schedule).sampler()))
    loaded = cdrl.load(tmp_path).sampler.schedule
    assert torch.equal(loaded.to("cpu", torch.float64).logsnr, schedule.to("cpu", torch.float64).logsnr)


def test_log_density_is_the_energy_over_the_squared_step(cooperative: Build) -> None:
    method = cooperative(classes=2, dtype=torch.float64)
    model, schedule = cdrl.Model(method.sampler()), method.schedule
    y, label = torch.rand(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2])
    for level in (1, 6):
        energy = model.sampler.energy_net(y, schedule.logsnr[level - 1].expand(3), label)
        step = 1e-2 * schedule.sigma[level - 1] / schedule.sigma[0] * schedule.beta[level]
        torch.testing.assert_close(model.log_density(y, level, label), (energy / step).detach(), rtol=EXACT, atol=0)


@pytest.mark.parametrize("level", [0, -1, 7])
def test_log_density_knows_its_levels(level: int, cooperative: Build) -> None:
    with pytest.raises(UserError, match="level must be 1 … 6"):
        cdrl.Model(cooperative().sampler()).log_density(torch.zeros(2, 1, 8, 8), level)


def test_log_density_is_of_the_models_images_and_labels(cooperative: Build) -> None:
    model, label = cdrl.Model(cooperative().sampler()), torch.tensor([1, 2])
    with pytest.raises(UserError, match="images must be"):
        model.log_density(torch.zeros(2, 1, 16, 16), 1)
    with pytest.raises(UserError, match="without classes"):
        model.log_density(torch.zeros(2, 1, 8, 8), 1, label)
    with pytest.raises(UserError, match="a class 1 … 1"):
        cdrl.Model(cooperative(classes=1).sampler()).log_density(torch.zeros(2, 1, 8, 8), 1, label)


@pytest.mark.parametrize(("n", "batch_size"), [(0, 4), (-1, 4), (3, 0), (3, -1)])
def test_counts_of_samples_are_positive(n: int, batch_size: int, cooperative: Build) -> None:
    with pytest.raises(UserError, match="counts must be positive"):
        cdrl.Model(cooperative().sampler()).sample(n, batch_size=batch_size)


def test_a_device_that_is_not_there_is_no_damage(cooperative: Build, tmp_path: Path) -> None:
    checkpoint.save_model(tmp_path, cdrl.Model(cooperative().sampler()))
    with pytest.raises(UserError, match="cannot use device 'warp'"):
        cdrl.load(tmp_path, device="warp")


def test_another_format_is_named(cooperative: Build, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, tensors(1.0), {})
    index = json.loads((tmp_path / "checkpoint.json").read_text())
    (tmp_path / "checkpoint.json").write_text(json.dumps({**index, "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        checkpoint.load(tmp_path)


def test_a_model_that_does_not_describe_its_weights(cooperative: Build, tmp_path: Path) -> None:
    checkpoint.save_model(tmp_path, cdrl.Model(cooperative().sampler()))
    path = tmp_path / "model.json"
    index = json.loads(path.read_text())
    index["facts"]["energy_net"]["width"] = 16
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model\.json is damaged"):
        cdrl.load(tmp_path)
