"""Decoded arrays on disk: decoded once, verified, mapped; decoded anew when anything changed."""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.process
import os
import shutil
import subprocess
import sys
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
    os.utime(path, ns=times)
    images = materialise(recipe, cache, "set", "train")
    np.testing.assert_array_equal(images.images, PIXELS)
    assert images.labels is not None
    assert images.attributes is not None
    assert (images.labels.tolist(), images.attributes.tolist()) == ([1, 0], [[True], [False]])
    assert decoder.calls == 2
    assert f"the decoded images in {folder} are damaged; they are decoded again" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "attributes.npy", "meta.json"])
def test_missing_part_is_decoded_anew(cache: Path, source: Path, name: str) -> None:
    decoder = Counting()
    recipe = Recipe(decoder, "", [source])
    materialise(recipe, cache, "set", "train")
    (entry_folder(recipe, cache, "set", "train") / name).unlink()
    images = materialise(recipe, cache, "set", "train")
    assert images.labels is not None
    assert (images.labels.tolist(), decoder.calls) == ([1, 0], 2)


def test_labels_of_another_class_are_decoded_anew(cache: Path, source: Path) -> None:
    """A whole file, in range and out of it, but not the one that was written."""
    decoder = Counting()
    recipe = Recipe(decoder, "", [source])
    materialise(recipe, cache, "set", "train")
    for number, labels in enumerate(([0, 1], [99, 0], [-1, 0])):
        np.save(entry_folder(recipe, cache, "set", "train") / "labels.npy", np.array(labels))
        images = materialise(recipe, cache, "set", "train")
        assert images.labels is not None
        assert (images.labels.tolist(), decoder.calls) == ([1, 0], 2 + number)


@pytest.mark.parametrize(
    "text",
    ["[]", "3", "null", '"meta"', "{}", '{"meta": null}', '{"meta": 3, "sha256": 3}', "[" * 100_000, "NaN", "{"],
)
def test_record_of_another_shape_is_damage(cache: Path, source: Path, text: str) -> None:
    decoder = Counting()
    recipe = Recipe(decoder, "", [source])
    materialise(recipe, cache, "set", "train")
    (entry_folder(recipe, cache, "set", "train") / "meta.json").write_text(text)
    np.testing.assert_array_equal(materialise(recipe, cache, "set", "train").images, PIXELS)
    assert decoder.calls == 2


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


@pytest.mark.timeout(240)
def test_processes_that_decode_at_once_all_get_it(tmp_path: Path, source: Path) -> None:
    """Twenty rounds of four, each round a data set that nobody has decoded, or one that is damaged."""
    context, rounds, count = multiprocessing.get_context("fork"), 20, 4
    gate, said = context.Barrier(count), context.Queue()

    def damage(cache: Path, recipe: Recipe) -> None:
        folder = entry_folder(recipe, cache, "set", "train")
        folder.mkdir(parents=True)
        (folder / "meta.json").write_text("null")

    recipe = Recipe(Counting(), "", [source])
    for number in range(0, rounds, 2):
        damage(tmp_path / str(number), recipe)

    def work() -> None:
        for number in range(rounds):
            gate.wait()
            try:
                images = materialise(recipe, tmp_path / str(number), "set", "train")
                said.put("" if (images.images == PIXELS).all() else "other pixels")
            except BaseException as error:
                said.put(f"{type(error).__name__}: {error}")

    processes = [context.Process(target=work) for _ in range(count)]
    for process in processes:
        process.start()
    wrong = [text for text in (said.get(timeout=200) for _ in range(rounds * count)) if text]
    for process in processes:
        process.join()
    assert wrong == []
    left = {path.name for number in range(rounds) for path in (tmp_path / str(number) / "decoded").iterdir()}
    assert left == {entry_folder(recipe, tmp_path, "set", "train").name}, "no lock, no draft"


def test_an_entry_that_another_process_has_put_there_meanwhile_stays(cache: Path, source: Path) -> None:
    """As where this one was stopped for so long that its lock was taken over."""
    recipe = Recipe(Counting(), "", [source])
    folder = entry_folder(recipe, cache, "set", "train")
    other = entry_folder(recipe, cache / "other", "set", "train")
    materialise(recipe, cache / "other", "set", "train")

    def decode(allocate: Allocate) -> Decoded:
        shutil.copytree(other, folder)
        return Counting()(allocate)

    images = materialise(Recipe(decode, "", [source]), cache, "set", "train")
    np.testing.assert_array_equal(images.images, PIXELS)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_drafts_of_dead_processes_are_cleared(cache: Path, source: Path) -> None:
    context = multiprocessing.get_context("fork")
    started = context.Event()

    def decode(allocate: Allocate) -> Decoded:
        allocate(2, 4, 3)
        started.set()
        time.sleep(60)
        return Decoded()

    def begin(options: dict[str, int]) -> multiprocessing.process.BaseProcess:
        started.clear()
        process = context.Process(
            target=materialise, args=(Recipe(decode, "", [source], options), cache, "set", "train")
        )
        process.start()
        assert started.wait(30)
        return process

    # Two die at it, each of another entry; the next one to make any clears what they left, but not what is alive.
    decoded = cache / "decoded"
    (decoded / ".draft-abcdefgh").mkdir(parents=True)  # as an earlier version called them
    materialise(Recipe(Counting(), "", [source], {"crop": 0}), cache, "set", "train")
    (decoded / ".draft-abcdefgh").rmdir()
    for options in ({}, {"crop": 1}):
        process = begin(options)
        process.kill()
        process.join()
        assert len(list(decoded.glob(".draft-*"))) == 1
    alive, at = begin({"crop": 2}), entry_folder(Recipe(decode, "", [source], {"crop": 2}), cache, "set", "train")
    materialise(Recipe(Counting(), "", [source]), cache, "set", "train")
    (left,) = decoded.glob(".draft-*")
    assert left.name.startswith(f".draft-{at.name}-")
    alive.kill()
    alive.join()
    materialise(Recipe(Counting(), "", [source], {"crop": 3}), cache, "set", "train")
    assert not list(decoded.glob(".draft-*"))


FULL_DISK = """
import sys
from pathlib import Path
from cdrl.errors import UserError
from experiments.data.store import Decoded, Recipe, materialise

def decode(allocate):
    allocate(1000, 64, 3)[:] = 1
    return Decoded()

try:
    materialise(Recipe(decode, ""), Path(sys.argv[1]), "set", "train")
except UserError as error:
    sys.exit(f"said {error}; left: {list(Path(sys.argv[1], 'decoded').iterdir())}")
"""


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """A file system of 1 MB, in a name space of its own; the pixels are 12 MB, and written through a map."""
    mount = 'mount -t tmpfs -o size=1m none "$1" || exit 77; shift; exec "$@"'
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", str(tmp_path)]
    command = [*inside, sys.executable, "-c", FULL_DISK, str(tmp_path)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if "unshare" in result.stderr or result.returncode == 77:
        pytest.skip(f"no file system can be mounted ({result.stderr.strip()})")
    assert result.returncode == 1, f"ended with {result.returncode} (-7 is a bus error): {result.stderr}"
    assert "no room for 1,000 images of 64x64 pixels" in result.stderr
    assert "free some space or set data.data_cache; left: []" in result.stderr


@pytest.mark.parametrize("call", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_room_is_reserved_where_the_system_has_no_call_for_it(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, call: int | None
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(call, "not here")

    if call is None:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)

    def decode(allocate: Allocate) -> Decoded:
        out = allocate(1000, 32, 3)
        assert isinstance(out, np.memmap)
        status = Path(str(out.filename)).stat()
        assert status.st_blocks * 512 >= status.st_size > out.nbytes
        assert not out.any()
        out[:] = 7
        return Decoded()

    assert (materialise(Recipe(decode, "", [source]), cache, "set", "train").images == 7).all()


def test_more_than_any_disk_holds_is_one_line(cache: Path, source: Path) -> None:
    def decode(allocate: Allocate) -> Decoded:
        allocate(2**50, 2**20, 3)
        return Decoded()

    with pytest.raises(UserError, match="no room for 1,125,899,906,842,624 images"):
        materialise(Recipe(decode, "", [source]), cache, "set", "train")
    assert list((cache / "decoded").iterdir()) == []


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
