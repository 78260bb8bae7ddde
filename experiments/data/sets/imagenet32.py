"""ImageNet at 32×32: the official downsampled batches, or 64×64 images shrunk bilinearly as the authors did.

Official batches (Chrabaszcz, Loshchilov and Hutter, 2017; arXiv:1707.08819): ``train_data_batch_1 … 10`` and
``val_data``, as ``.npz`` or pickled, with labels 1 … 1000 in the order of the ILSVRC development kit. With
``map_clsloc.txt`` (its class list) beside them, labels are renumbered to the order of the sorted WordNet ids, which
the authors' checkpoints and class folders use; without it they keep the kit's order. Batches of 64×64 are shrunk.

64×64 images: Parquet shards; ``train_64/<wnid>/`` with a flat ``val_64/`` labelled by ``ILSVRC2012_val_labels.json``
and ``imagenet_class_index.json`` (the authors' layout); or ``train/<wnid>/`` and ``val/<wnid>/``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdrl.errors import UserError
from experiments.data import decoding, parquet, tree
from experiments.data.pickles import load_batch
from experiments.data.registry import Place, data_set
from experiments.data.shrunk import SIZE, STORED, LabelledFiles, Shrunk, read_json
from experiments.data.store import Allocate, Decoded, Recipe
from experiments.progress import progress

_CLASSES = 1000
_SHRUNK = Shrunk("imagenet32", _CLASSES)
_BATCHES = {"train": tuple(f"train_data_batch_{i}" for i in range(1, 11)), "test": ("val_data",)}
_BATCH_FOLDERS = {
    "train": ("", "Imagenet32_train_npz", "Imagenet32_train", "Imagenet64_train_npz", "Imagenet64_train"),
    "test": ("", "Imagenet32_val_npz", "Imagenet32_val", "Imagenet64_val_npz", "Imagenet64_val"),
}
_CLASS_LIST = "map_clsloc.txt"
_LAYOUT = (
    "the official batches train_data_batch_1 … 10 and val_data (.npz or pickled), or 64x64 images: Parquet shards "
    "train-* and validation-* with columns image{bytes} and label, or train/<class>/ and val/<class>/"
)


@data_set("imagenet32", layout=_LAYOUT, needed_for="reproduce-imagenet32 and guidance at scale paper")
def find(place: Place, split: str) -> Recipe:
    """ImageNet 32×32 from the folder; the first layout that is there."""
    root = place.root
    files = _batch_files(root, split)
    if files:
        lists = [path for path in (root / _CLASS_LIST, files[0].parent / _CLASS_LIST) if path.is_file()][:1]
        return Recipe(partial(_decode_batches, files, lists), "official downsampled batches", [*files, *lists])
    shards = parquet.shards(root, split)
    if shards:
        return _SHRUNK.from_parquet(shards)
    if (root / "train_64").is_dir():
        return _authors_layout(root, split)
    for name in ("train",) if split == "train" else ("val", "validation", "test"):
        if (root / name).is_dir():
            return _SHRUNK.from_class_folders(root / name)
    raise UserError(f"{root} holds no imagenet32 ({split}); it needs {_LAYOUT}")


def _batch_files(root: Path, split: str) -> list[Path]:
    for folder in _BATCH_FOLDERS[split]:
        for suffix in (".npz", ""):
            files = [root / folder / f"{name}{suffix}" for name in _BATCHES[split]]
            present = [path for path in files if path.is_file()]
            if not present:
                continue
            for path in files:
                if path not in present:
                    raise UserError(f"{path} is missing; all {len(files)} batches belong together")
            return files
    return []


def _decode_batches(files: Sequence[Path], class_list: Sequence[Path], allocate: Allocate) -> Decoded:
    """One batch in memory at a time: first only the labels, to know how many images there are, then the pixels."""
    labels = [_array(path, "labels").astype(np.int64).ravel() - 1 for path in files]
    out, start = allocate(sum(map(len, labels)), SIZE, 3), 0
    with progress("decoding imagenet32", len(out)) as advance:
        for path, batch_labels in zip(files, labels, strict=True):
            rows = out[start : start + len(batch_labels)]
            _store(path, _array(path, "data"), rows)
            decoding.checked_labels(batch_labels, len(rows), _CLASSES, path)
            start += len(rows)
            advance(len(rows))
    names = tuple(str(number) for number in range(1, _CLASSES + 1))
    order, names = _class_order(class_list[0]) if class_list else (np.arange(_CLASSES), names)
    return Decoded(order[np.concatenate(labels)], names)


def _array(path: Path, key: str) -> NDArray[Any]:
    """``data`` ``(n, 3 · side²)`` or ``labels`` 1 … 1000 of one batch."""
    if path.suffix == ".npz":
        return _npz(path, key)
    batch = load_batch(path)
    if key not in batch:
        raise UserError(f"{path}: holds no {key!r}; not an official batch, get it again")
    return np.asarray(batch[key])


def _npz(path: Path, key: str) -> NDArray[np.uint8]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return np.asarray(arrays[key])
    except KeyError:
        raise UserError(f"{path}: holds no array {key!r}; not an official batch, get it again") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable npz file ({error}); get it again") from error


def _store(path: Path, data: NDArray[np.uint8], rows: NDArray[np.uint8]) -> None:
    """Plane by plane, as the batches are, into NHWC; 64×64 shrunk on the way."""
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] not in (3 * SIZE**2, 3 * STORED**2):
        raise UserError(f"{path}: data is {data.dtype} {data.shape}, expected uint8 (n, 3072) or (n, 12288)")
    if len(data) != len(rows):
        raise UserError(f"{path}: {len(rows)} labels for {len(data)} images; get it again")
    side = SIZE if data.shape[1] == 3 * SIZE**2 else STORED
    images = data.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
    if side == SIZE:
        rows[:] = images
        return
    shrink = decoding.bilinear(STORED, SIZE)
    for row, image in zip(rows, images, strict=True):
        row[:] = np.asarray(shrink(Image.fromarray(np.ascontiguousarray(image))))


def _class_order(path: Path) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """From ``map_clsloc.txt`` (lines "wnid number name"): kit label -> rank of its wnid, and the wnids in order."""
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    try:
        wnids = [words[0] for words in sorted(lines, key=lambda words: int(words[1]))]
    except (ValueError, IndexError):
        wnids = []
    if len(wnids) != _CLASSES:
        raise UserError(f"{path}: expected {_CLASSES} lines 'wnid number name'; get it again or remove it")
    ranks = {wnid: rank for rank, wnid in enumerate(sorted(wnids))}
    return np.array([ranks[wnid] for wnid in wnids], dtype=np.int64), tuple(sorted(wnids))


def _authors_layout(root: Path, split: str) -> Recipe:
    index = read_json(root / "imagenet_class_index.json", "it maps class folders to labels")
    classes = {str(value[0]): int(key) for key, value in index.items()}
    names = tuple(sorted(classes, key=classes.__getitem__))
    folder = root / ("train_64" if split == "train" else "val_64")
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; it needs 64x64 images")
    listed = partial(_authors_train, folder, classes) if split == "train" else partial(_authors_val, folder, classes)
    return _SHRUNK.from_files(folder, listed, names)


def _authors_train(folder: Path, classes: dict[str, int]) -> LabelledFiles:
    folders = tree.class_folders(folder)
    for path in folders:
        if path.name not in classes:
            raise UserError(f"{path}: no class of imagenet_class_index.json; move it away")
    labels = [classes[path.name] for path in folders]
    return ((labels[rank], path) for rank, path in tree.by_class(folders))


def _authors_val(folder: Path, classes: dict[str, int]) -> Iterator[tuple[int, Path]]:
    listing = folder.parent / "ILSVRC2012_val_labels.json"
    wnids = read_json(listing, "it labels the validation images")
    for path in tree.images_in(folder):
        wnid = wnids.get(path.name) or wnids.get(f"{path.stem}.JPEG")
        if wnid not in classes:
            raise UserError(f"{listing}: no class for {path.name}; get the list again")
        yield classes[wnid], path
