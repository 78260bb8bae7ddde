"""The unpickler admits arrays and plain containers, in old and new pickles, and nothing else."""

from __future__ import annotations

import os
import pickle
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdrl.errors import UserError
from experiments.data.pickles import load_batch

# What Python 2 wrote: protocol 2, str for keys and for the array's bytes, numpy's old module names.
PYTHON_2 = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87"
    b"Rq\x05(K\x01K\x02K\x02\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff"
    b"\xff\xffK\x00tb\x89U\x04\x01\x02\xfe\xfftbU\x06labelsq\x08]q\x09(K\x03K\x05eu."
)


class Malice:
    """Runs a command when unpickled by Python's own unpickler."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


def dump(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def test_python_2_batch(tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(PYTHON_2)
    batch = load_batch(tmp_path / "batch")
    assert batch["labels"] == [3, 5]
    np.testing.assert_array_equal(batch["data"], np.array([[1, 2], [254, 255]], np.uint8))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(tmp_path: Path, protocol: int) -> None:
    content = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "mean": np.ones(2), "n": np.float64(3), "x": [1]}
    batch = load_batch(dump(tmp_path / "batch", content, protocol))
    np.testing.assert_array_equal(batch["data"], content[b"data"])
    np.testing.assert_array_equal(batch["mean"], [1.0, 1.0])
    assert (batch["n"], batch["x"]) == (3.0, [1])


def test_malice_is_refused_and_does_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    path = dump(tmp_path / "batch", {"data": Malice(witness)})
    with pytest.raises(UserError, match=r"batch: .*mkdir"):
        load_batch(path)
    assert not witness.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"data": np.array([{}], dtype=object)},
        {"data": np.zeros(1, dtype=[("a", "u1")])},
        {"data": Path("x")},
        {"f": len},
    ],
)
def test_other_objects_are_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UserError, match="not a data batch"):
        load_batch(dump(tmp_path / "batch", content))


def test_damaged_missing_or_no_dictionary(tmp_path: Path) -> None:
    path = dump(tmp_path / "batch", {"data": np.zeros(100)})
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="not a data batch"):
        load_batch(path)
    with pytest.raises(UserError, match="absent is missing"):
        load_batch(tmp_path / "absent")
    with pytest.raises(UserError, match="list"):
        load_batch(dump(tmp_path / "list", [1]))


def test_an_object_may_have_any_number(tmp_path: Path) -> None:
    """Ten bytes that number an object 2^31 − 1: no room is made for the others."""
    path = tmp_path / "batch"
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load_batch(path) == {}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kilobytes
