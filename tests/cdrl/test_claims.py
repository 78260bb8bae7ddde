"""What a file claims is compared with what it holds before anything is made of it; and what is no file of ours."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cdrl
from cdrl import checkpoint, released
from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from tests.cdrl.released_networks import released_file

Build = Callable[..., Cooperative]
LAYOUTS = json.loads(Path(__file__).with_name("released_golden.json").read_text())["conditional"]["layout"]
FREE = 96 << 20
"""Bytes that reading may take."""
READ = """
import resource, sys
from pathlib import Path
from cdrl import checkpoint, released
from cdrl.errors import UserError

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for path in map(Path, sys.argv[2:]):
    try:
        (checkpoint.load_model if path.is_dir() else released.load)(path)
    except UserError as error:
        print(error)
    else:
        print("accepted", path)
"""
"""What came of each file, in a process that has no more memory than that, and a minute."""


def read(*paths: Path) -> list[str]:
    command = [sys.executable, "-c", READ, str(FREE), *map(str, paths)]
    outcome = subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ, "PYTHONUTF8": "1"})
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout.splitlines()


# --- The authors' checkpoints -----------------------------------------------------------------------------------------


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A file in the authors' format with other tensors in its initializer."""
    content = torch.load(released_file(path, LAYOUTS), weights_only=True)
    state = content["p_state_dict"]
    change(state)
    parameters = [value for name, value in state.items() if not name.endswith(("weight_u", "weight_v"))]
    content["p_ema_state_dict"]["shadow_params"] = parameters
    torch.save(content, path)
    return path


def wide(state: dict[str, Tensor]) -> None:
    """Claims a width of 1000 by tensors that are there."""
    for name in state:
        if re.fullmatch(r"module\.(init_conv|downs\.\d\.0\.conv1)\.weight", name):
            state[name] = torch.zeros(1000, *(state[name].shape[1:] if "init" in name else (1, 1, 1)))


def expanded(state: dict[str, Tensor]) -> None:
    """Claims 2 GB by a tensor that is one number."""
    state["module.time_mlp.3.weight"] = torch.zeros(1).expand(20_000, 25_000)


def far_down(state: dict[str, Tensor]) -> None:
    """Attention at a resolution that there cannot be."""
    state["module.downs.1000000000000.0.to_qkv.weight"] = torch.zeros(1)


def archive(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in (("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n")):
            file.writestr(f"archive/{name}", content)
    return path


def bomb(path: Path) -> Path:
    released_file(path, LAYOUTS)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data/zeros", bytes(FREE + FREE // 4))
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory as Linux has them")
def test_a_checkpoint_that_claims_more_than_it_holds_takes_no_memory(tmp_path: Path) -> None:
    cases = {
        "claims to hold more than its own size": bomb(tmp_path / "bomb.tar"),
        "what no checkpoint of tensors needs": archive(
            tmp_path / "bytes.tar", b"\x80\x02cbuiltins\nbytearray\nJ" + struct.pack("<i", 2**31 - 1) + b"\x85R."
        ),
        "size mismatch": rewritten(tmp_path / "wide.tar", wide),
        "claim more than the file's size": rewritten(tmp_path / "expanded.tar", expanded),
        "KeyError": rewritten(tmp_path / "far-down.tar", far_down),
        "accepted": released_file(tmp_path / "good.tar", LAYOUTS),
    }
    for (reason, path), line in zip(cases.items(), read(*cases.values()), strict=True):
        assert re.search(reason, line), line
        assert path.name in line


def damaged(kind: str, path: Path) -> Path:
    contents = {"empty": b"", "text": b"a text\n" * 99, "pickle": b"\x80\x02]q\x00.", "zip": b"PK\x05\x06" + bytes(18)}
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "no pickle":
        archive(path, b"nothing that could be unpickled")
    else:
        path.write_bytes(contents[kind])
    return path


@pytest.mark.parametrize("kind", ["empty", "text", "pickle", "zip", "no pickle", "pipe", "folder", "loop"])
def test_what_is_no_checkpoint_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = damaged(kind, tmp_path / "given.tar")
    for load in (released.load, cdrl.load):
        with pytest.raises(UserError, match=r"given\.tar") as caught:
            load(path)
        assert "\n" not in str(caught.value)
        assert f"delete {path}" not in str(caught.value)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin", "x" * 5000, "nul\0"])
def test_devices_and_impossible_names_are_refused(path: str) -> None:
    for load in (released.load, cdrl.load):
        with pytest.raises(UserError):
            load(Path(path))


# --- Models of our own ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory as Linux has them")
def test_a_model_that_claims_more_than_its_weights_takes_no_memory(cooperative: Build, tmp_path: Path) -> None:
    checkpoint.save_model(tmp_path / "good", cdrl.Model(cooperative().sampler()))
    tensors, facts = checkpoint.load(tmp_path / "good", "model")

    def claiming(part: str, **claims: Any) -> Path:
        folder = tmp_path / f"{part}-{'-'.join(claims)}-{len(list(tmp_path.iterdir()))}"
        checkpoint.save(folder, tensors, {**facts, part: {**facts[part], **claims}}, "model")
        return folder

    cases = {
        claiming("energy_net", width=20_000): "about",
        claiming("energy_net", width=2048): "size mismatch",
        claiming("energy_net", blocks=10**7): "more blocks than there are tensors",
        claiming("energy_net", image_size=10**9): "image_size must be",
        claiming("energy_net", classes=10**5): "Missing key",
        claiming("energy_net", frequencies=10**12): "frequencies must be",
        claiming("initializer", width=4096): "size mismatch|about",
        claiming("initializer", blocks=[0] * 1000): "TypeError",
        claiming("schedule", levels=10**9): "room for 10000 transitions",
        claiming("schedule", logsnr_min=-(10**6)): "logsnr_min",
        claiming("chain", steps=10**9): "cannot have 1000000000 steps",
        claiming("chain", step_multiplier=1e200): "steps too wide",
        tmp_path / "good": "accepted",
    }
    for (folder, reason), line in zip(cases.items(), read(*cases), strict=True):
        assert re.search(reason, line), line
        assert folder.name in line


@pytest.mark.parametrize("n", [10**12, 2**70, float("inf"), float("nan")])
def test_more_images_than_anyone_waits_for_are_refused(n: int, cooperative: Build) -> None:
    with pytest.raises(UserError, match="or fewer"):
        cdrl.Model(cooperative().sampler()).sample(n)


@pytest.mark.parametrize("seed", [-1, 2**70])
def test_any_integer_is_a_seed(seed: int, cooperative: Build) -> None:
    model = cdrl.Model(cooperative().sampler())
    assert not torch.equal(model.sample(1, seed), model.sample(1, 0))


def test_a_name_that_is_not_utf8_is_as_good_as_any(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("a file system that has no such names")
    released.load(released_file(folder / "best.tar", LAYOUTS))
    with pytest.raises(UserError, match="no file"):
        released.load(folder / "missing.tar")
