"""The cache is verified, not believed; and what keeps it from being written is one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from cdrl.errors import UserError
from experiments.data import DataSettings
from experiments.metrics import Protocol, Statistics, weights

ROOT = Path(__file__).parents[3]
TENSORS = {"mean": torch.arange(3.0), "count": torch.tensor(7)}


def flipped(path: Path) -> None:
    """One bit of a value."""
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def foreign(path: Path) -> None:
    """Tensors that somebody else wrote."""
    safetensors.torch.save_file(TENSORS, path)


def of_another_name(path: Path) -> None:
    """Sound, but not what it is called: other statistics of as many features."""
    other = path.with_name("other.safetensors")
    weights.save(other, {**TENSORS, "mean": torch.zeros(3)})
    shutil.copy(other, path)


def incomplete(path: Path) -> None:
    """The checksum of a whole file over one that lacks a tensor."""
    with safetensors.safe_open(path, "pt") as file:
        record = file.metadata()
    safetensors.torch.save_file({"mean": TENSORS["mean"]}, path, record)


def no_checksum(path: Path) -> None:
    safetensors.torch.save_file(TENSORS, path, {"record": '{"file": "kept.safetensors"}'})


def no_facts(path: Path) -> None:
    safetensors.torch.save_file(TENSORS, path, {"record": "[]"})


@pytest.mark.parametrize(
    "damage",
    [flipped, truncated, foreign, of_another_name, incomplete, no_checksum, no_facts],
    ids=lambda f: f.__name__,
)
def test_what_is_not_what_was_kept_is_said_and_made_again(
    damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, made = tmp_path / "kept.safetensors", 0

    def make() -> dict[str, Tensor]:
        nonlocal made
        made += 1
        return TENSORS

    weights.load_or_make(path, "a test", make)
    sound = path.read_bytes()
    assert weights.load_or_make(path, "a test", make).keys() == TENSORS.keys()
    assert (made, capsys.readouterr().err) == (1, "")
    damage(path)
    again = weights.load_or_make(path, "a test", make)
    assert made == 2
    assert all(torch.equal(again[name], value) for name, value in TENSORS.items())
    assert capsys.readouterr().err == f"{path} is damaged; it is made again\n"
    assert path.read_bytes() == sound


def test_a_full_disk_is_one_line_and_the_same_call_goes_on(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: writing fails in the same places."""
    code = (
        "import resource, sys, pathlib; from cdrl.errors import UserError;"
        "from experiments.data import DataSettings; from experiments.metrics import Statistics, protocols;"
        "limit = int(sys.argv[2]); resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY));"
        "settings = DataSettings(name='digits', image_size=8, channels=1, classes=10);"
        "made = Statistics(protocols.load('fd-digits'), settings, pathlib.Path(sys.argv[1]))\n"
        "try: made.want(); made.make()\n"
        "except UserError as error: print(error)"
    )
    said = []
    for limit in ("100", "4000", "330000", "-1"):
        command = [sys.executable, "-c", code, str(tmp_path), limit]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        said.append(done.stdout)
    for text, file in zip(said, ("statistics.json", "weights/digits-", "reference/digits-digits-train-"), strict=False):
        assert text.startswith(f"cannot write {tmp_path}")
        assert file in text
        assert "(File too large); make room there, or choose another folder with cache=FOLDER" in text
        assert text.count("\n") == 1
    assert said[-1] == ""
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".part", ".tmp") or path.name.startswith(".")]


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = DataSettings(name="digits", image_size=8, channels=1, classes=10)
    protocol = Protocol("fd-digits", "digits", 40, metrics=("fd",))
    with pytest.raises(UserError, match=r"cannot write .*cache=FOLDER"):
        Statistics(protocol, settings, tmp_path / "file" / "cache").want()
    with pytest.raises(UserError, match=r"cannot write .*cache=FOLDER"):
        weights.load_or_make(tmp_path / "file" / "cache" / "kept.safetensors", "a test", lambda: TENSORS)
