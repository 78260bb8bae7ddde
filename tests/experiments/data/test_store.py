"""Decoded arrays on disk: decoded once, verified, mapped; decoded anew when anything changed."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cdrl.errors import UserError
from experiments.data.images import pixel_checksum
from experiments.data.store import Allocate, Decoded, Recipe, entry_folder, materialise

PIXELS = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


class Counting:
    """A decoder that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, allocate: Allocate) -> Decoded:
        self.calls += 1
        allocate(2, 4, 3)[:] = PIXELS
        return Decoded(np.array([1, 0]), ("a", "b"), np.array([[True], [False]]), ("hat",))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_text("version 1")
    return path


def test_second_load_is_mapped(cache: Path, source: Path) -> None:
    decoder = Counting()
    recipe = Recipe(decoder, "here", [source], comparable=False)
    for _ in range(2):
        images = materialise(recipe, cache, "set", "train")
        np.testing.assert_array_equal(images.images, PIXELS)
        assert isinstance(images.images, np.memmap)
        assert images.labels is not None
        assert images.attributes is not None
        assert (images.labels.tolist(), images.attributes.tolist()) == ([1, 0], [[True], [False]])
        assert (images.class_names, images.attribute_names) == (("a", "b"), ("hat",))
        assert (images.name, images.split, images.source, images.comparable) == ("set", "train", "here", False)
        assert images.known_checksum == pixel_checksum(PIXELS)
    assert decoder.calls == 1


def test_writing_to_the_map_does_not_reach_the_disk(cache: Path, source: Path) -> None:
    recipe = Recipe(Counting(), "here", [source])
    materialise(recipe, cache, "set", "train").images[:] = 0
    np.testing.assert_array_equal(materialise(recipe, cache, "set", "train").images, PIXELS)


def test_changed_source_or_options_decode_anew(cache: Path, source: Path) -> None:
    decoder = Counting()
    materialise(Recipe(decoder, "", [source]), cache, "set", "train")
    source.write_text("version 2, longer")
    materialise(Recipe(decoder, "", [source]), cache, "set", "train")
    materialise(Recipe(decoder, "", [source], {"crop": 1}), cache, "set", "train")
    assert decoder.calls == 3


def _flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _flip_within(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "attributes.npy", "meta.json"])
@pytest.mark.parametrize("damage", [_flip_last, _flip_within, lambda data: data[:-9], lambda data: b""])
def test_damaged_entry_is_decoded_anew_and_said(
    cache: Path, source: Path, name: str, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = Counting()
    recipe = Recipe(decoder, "", [source])
    materialise(recipe, cache, "set", "train")
    folder = entry_folder(recipe, cache, "set", "train")
    path = folder / name
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(damage(path.read_bytes()))
    os.utime(path, ns=(1, 1) if name == "images.npy" else times)
    images = materialise(recipe, cache, "set", "train")
    np.testing.assert_array_equal(images.images, PIXELS)
    assert images.labels is not None
    assert images.attributes is not None
    assert (images.labels.tolist(), images.attributes.tolist()) == ([1, 0], [[True], [False]])
    assert decoder.calls == 2
    assert f"the decoded images in {folder} are damaged; they are decoded again" in capsys.readouterr().err


def test_labels_of_no_class_are_refused(cache: Path, source: Path) -> None:
    def decode(allocate: Allocate) -> Decoded:
        allocate(2, 4, 3)
        return Decoded(np.array([2, 0]), ("a", "b"))

    with pytest.raises(UserError, match="cannot be read back"):
        materialise(Recipe(decode, "", [source]), cache, "set", "train")


def test_several_processes_decode_once(cache: Path, source: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, decoded = context.Barrier(4), context.Value("i", 0)

    def decode(allocate: Allocate) -> Decoded:
        with decoded.get_lock():
            decoded.value += 1
        time.sleep(0.7)
        allocate(2, 4, 3)[:] = PIXELS
        return Decoded()

    def work() -> None:
        start.wait()
        images = materialise(Recipe(decode, "", [source]), cache, "set", "train")
        np.testing.assert_array_equal(images.images, PIXELS)

    processes = [context.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert decoded.value == 1


def test_copied_entry_is_trusted_after_hashing(cache: Path, source: Path) -> None:
    decoder = Counting()
    recipe = Recipe(decoder, "", [source])
    materialise(recipe, cache, "set", "train")
    os.utime(entry_folder(recipe, cache, "set", "train") / "images.npy", (1, 1))
    materialise(recipe, cache, "set", "train")
    assert decoder.calls == 1


def test_wrong_pixels_stop_and_leave_nothing(cache: Path, source: Path) -> None:
    with pytest.raises(UserError, match=r"train.*here.*pixels hash to"):
        materialise(Recipe(Counting(), "here", [source]), cache, "set", "train", expected="0" * 64)
    assert list((cache / "decoded").iterdir()) == []


def test_failed_decoding_leaves_nothing(cache: Path, source: Path) -> None:
    def fail(allocate: Allocate) -> Decoded:
        allocate(2, 4, 3)
        raise UserError("bad image")

    with pytest.raises(UserError, match="bad image"):
        materialise(Recipe(fail, "", [source]), cache, "set", "train")
    assert list((cache / "decoded").iterdir()) == []


def test_cache_that_cannot_be_written(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*data\.data_cache"):
        materialise(Recipe(Counting(), "", [source]), tmp_path / "file", "set", "train")
