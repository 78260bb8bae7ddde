"""ImageNet at 32×32: the official downsampled batches, or 64×64 images shrunk bilinearly as the authors did.

Official batches (Chrabaszcz, Loshchilov and Hutter, 2017; arXiv:1707.08819): ``train_data_batch_1 … 10`` and
``val_data``, as ``.npz`` or pickled, with labels 1 … 1000 in the order of the ILSVRC development kit. With
``map_clsloc.txt`` (its class list) beside them, labels are renumbered to the order of the sorted WordNet ids, which
the authors' checkpoints and class folders use; without it they keep the kit's order. Batches of 64×64 are shrunk.

64×64 images: Parquet shards; ``train_64/<wnid>/`` with a flat ``val_64/`` labelled by ``ILSVRC2012_val_labels.json``
and ``imagenet_class_index.json`` (the authors' layout); or ``train/<wnid>/`` and ``val/<wnid>/``.

Tiny-ImageNet, 200 classes, is a stand-in to develop and test with: no number measured on it is comparable with a
published ImageNet number, and the tables say so.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cdrl.errors import UserError
from experiments.data import decoding, parquet
from experiments.data.pickles import load_batch
from experiments.data.registry import Place, data_set
from experiments.data.store import Allocate, Decoded, Recipe
from experiments.progress import progress

_STORED, _SIZE = 64, 32
_UNPACKED, _RATIO = 2**26, 100  # an array is at most so many bytes larger than so many times its file
_SHRINK = decoding.bilinear(_STORED, _SIZE)
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
_TINY_LAYOUT = (
    "Parquet shards train-* and validation-* with columns img{bytes} and label (classes.json beside them names the "
    "classes), or the original tiny-imagenet-200/ with train/<wnid>/images/ and val/val_annotations.txt"
)


@data_set("imagenet32", layout=_LAYOUT, needed_for="reproduce-imagenet32 and guidance at scale paper")
def find(place: Place, split: str) -> Recipe:
    """ImageNet 32×32 from the folder; the first layout that is there."""
    root = place.root
    for folder, suffix in product(_BATCH_FOLDERS[split], (".npz", "")):
        files = [root / folder / f"{name}{suffix}" for name in _BATCHES[split]]
        missing = [path for path in files if not path.is_file()]
        if 0 < len(missing) < len(files):
            raise UserError(f"{missing[0]} is missing; all {len(files)} batches belong together")
        if not missing:
            lists = [path for path in (root / _CLASS_LIST, files[0].parent / _CLASS_LIST) if path.is_file()][:1]
            return Recipe(partial(_decode_batches, files, lists), "official downsampled batches", [*files, *lists])
    if shards := parquet.shards(root, split):
        return _IMAGENET.from_parquet(shards)
    if (root / "train_64").is_dir():
        return _authors_layout(root, split)
    for name in ("train",) if split == "train" else ("val", "validation", "test"):
        if (root / name).is_dir():
            if split == "test" and (root / "train").is_dir():  # whose names number the classes
                theirs, ours = ({path.name for path in decoding.class_folders(root / one)} for one in ("train", name))
                if odd := sorted(theirs ^ ours):
                    raise UserError(f"{odd[0]} is a class of {root}/train or {root / name} alone; get the rest")
            return _IMAGENET.from_class_folders(root / name)
    raise UserError(f"{root} holds no imagenet32 ({split}); it needs {_LAYOUT}")


@data_set(
    "tinyimagenet32", layout=_TINY_LAYOUT, needed_for="trying the ImageNet manifests at scale mini",
    variable="CDRL_DATA_TINYIMAGENET",
)  # fmt: skip
def find_tiny(place: Place, split: str) -> Recipe:
    """Tiny-ImageNet from the folder. The test split is the labelled validation set."""
    if shards := parquet.shards(place.root, split):
        path, named = place.root / "classes.json", tuple[str, ...]()
        if path.is_file():
            content = _read_json(path, "it names the classes; remove it to number them")
            content = content.get("wnids_sorted") if isinstance(content, dict) else content
            named = tuple(map(str, content)) if isinstance(content, list) else ()
            if len(named) != _TINY.classes:
                expected = f"expected {_TINY.classes}; get it again or remove it"
                raise UserError(f"{path}: names {len(named)} classes, {expected}")
        return _TINY.from_parquet(shards, named)
    folder = next((path for path in (place.root, place.root / "tiny-imagenet-200") if (path / "train").is_dir()), None)
    if folder is None:
        raise UserError(f"{place.root} holds no tinyimagenet32 ({split}); it needs {_TINY_LAYOUT}")
    train, val = _TINY.from_class_folders(folder / "train"), folder / "val"
    if split == "train":
        return train
    if not val.is_dir():
        raise UserError(f"{val} is missing; unpack the whole archive")
    names = tuple(path.name for path in decoding.class_folders(folder / "train"))

    def validation() -> Iterator[tuple[int, Path]]:
        """``val_annotations.txt`` has one line per image: file, wnid, and a bounding box."""
        listing, classes = val / "val_annotations.txt", {name: label for label, name in enumerate(names)}
        for line in decoding.text(listing, "it labels the validation images").splitlines():
            name, wnid = [*line.split(), "", ""][:2]
            if wnid not in classes:
                raise UserError(f"{listing}: no class folder for {name!r} ({wnid!r}); get it again")
            yield classes[wnid], val / "images" / name

    return _TINY.from_files(val, validation, names)


@dataclass(frozen=True)
class _Shrunk:
    """A data set of so many classes whose images are shrunk from 64×64; ``comparable`` as in `ImageSet`."""

    name: str
    classes: int
    comparable: bool = True

    def from_parquet(self, shards: Sequence[Path], class_names: tuple[str, ...] = ()) -> Recipe:
        """Shards with 64×64 images and a column ``label``; classes are numbered unless named."""
        names = class_names or tuple(map(str, range(self.classes)))
        decode = partial(parquet.decode, shards, ("label",), _SHRINK, _SIZE, names, self.name)
        return Recipe(decode, "64x64 Parquet shards, bilinear", shards, {}, self.comparable)

    def from_files(
        self, folder: Path, listed: Callable[[], Iterable[tuple[int, Path]]], names: tuple[str, ...]
    ) -> Recipe:
        """Files of 64×64 that ``listed()`` names with their class, when decoding starts.

        A decoded copy is trusted while ``folder`` and its subfolders keep their times: a million files are not asked.
        """

        def decode(allocate: Allocate) -> Decoded:
            pairs = list(listed())
            files = decoding.encoded([path for _, path in pairs])
            decoding.fill(allocate(len(pairs), _SIZE, 3), files, _SHRINK, f"decoding {self.name}")
            labels = decoding.checked_labels([label for label, _ in pairs], len(pairs), len(names), folder)
            return Decoded(labels, names)

        stamps = [folder, *decoding.class_folders(folder)]
        return Recipe(decode, f"64x64 images in {folder.name}/, bilinear", stamps, {}, self.comparable)

    def from_class_folders(self, folder: Path) -> Recipe:
        """One subfolder per class, in the order of their names."""
        folders = decoding.class_folders(folder)
        if len(folders) != self.classes:
            raise UserError(f"{folder}: {len(folders)} class folders, {self.name} has {self.classes}; get the rest")
        return self.from_files(folder, partial(decoding.by_class, folders), tuple(path.name for path in folders))


_IMAGENET, _TINY = _Shrunk("imagenet32", 1000), _Shrunk("tinyimagenet32", 200, comparable=False)


def _decode_batches(files: Sequence[Path], class_list: Sequence[Path], allocate: Allocate) -> Decoded:
    """One batch in memory at a time: first only the labels, to know how many images there are, then the pixels."""
    classes = _IMAGENET.classes
    labels = [decoding.whole_numbers(_array(path, "labels"), path) - 1 for path in files]
    out, start = allocate(sum(map(len, labels)), _SIZE, 3), 0
    with progress("decoding imagenet32", len(out)) as advance:
        for path, batch_labels in zip(files, labels, strict=True):
            data, rows = _array(path, "data"), out[start : start + len(batch_labels)]
            if not isinstance(data, np.ndarray):
                raise UserError(f"{path}: data is a {type(data).__name__} and no array; get it again")
            if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] not in (3 * _SIZE**2, 3 * _STORED**2):
                raise UserError(f"{path}: data is {data.dtype} {data.shape}, expected uint8 (n, 3072) or (n, 12288)")
            if len(data) != len(rows):
                raise UserError(f"{path}: {len(rows)} labels for {len(data)} images; get it again")

            # From plane by plane, as the batches are, into NHWC; 64×64 is shrunk on the way.
            side = _SIZE if data.shape[1] == 3 * _SIZE**2 else _STORED
            images = data.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
            if side == _SIZE:
                rows[:] = images
            else:
                for row, image in zip(rows, images, strict=True):
                    row[:] = np.asarray(_SHRINK(Image.fromarray(np.ascontiguousarray(image))))
            decoding.checked_labels(batch_labels, len(rows), classes, path)
            start += len(rows)
            advance(len(rows))
    if not class_list:
        return Decoded(np.concatenate(labels), tuple(str(number) for number in range(1, classes + 1)))

    # From lines "wnid number name": each label of the kit becomes the rank of its wnid.
    listed = decoding.text(class_list[0], "it orders the classes")
    lines = [line.split() for line in listed.splitlines() if line.strip()]
    try:
        wnids = [words[0] for words in sorted(lines, key=lambda words: int(words[1]))]
    except (ValueError, IndexError):
        wnids = []
    if len(wnids) != classes:
        raise UserError(f"{class_list[0]}: expected {classes} lines 'wnid number name'; get it again or remove it")
    return Decoded(np.argsort(np.argsort(wnids))[np.concatenate(labels)], tuple(sorted(wnids)))


def _array(path: Path, key: str) -> Any:
    """``data`` ``(n, 3 · side²)`` or ``labels`` 1 … 1000 of one batch."""
    try:
        if path.suffix != ".npz":
            return load_batch(path)[key]
        # What its header claims is checked before there is memory for it: no more than the archive says it unpacks
        # to, and no more than files of pixels ever do.
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
            unpacked = archive.getinfo(f"{key}.npy").file_size
            if np.lib.format.read_magic(member) == (1, 0):
                shape, _, kind = np.lib.format.read_array_header_1_0(member)
            else:
                shape, _, kind = np.lib.format.read_array_header_2_0(member)
            if math.prod(shape) * kind.itemsize > min(unpacked, _UNPACKED + _RATIO * path.stat().st_size):
                raise ValueError(f"{key} claims to be {kind} {shape}, more than the file can hold")
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[key]
    except UserError:
        raise
    except KeyError:
        raise UserError(f"{path}: holds no {key!r}; not an official batch, get it again") from None
    except Exception as error:  # an archive's decompressors raise whatever comes to them
        raise UserError(f"{path}: not a readable npz file ({error}); get it again") from error


def _authors_layout(root: Path, split: str) -> Recipe:
    path = root / "imagenet_class_index.json"
    index = _read_json(path, "it maps class folders to labels")
    try:
        classes = {str(value[0]): int(key) for key, value in index.items()}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise UserError(f'{path}: expected lines such as "0": ["n01440764", "tench"]; get it again') from None
    folder = root / ("train_64" if split == "train" else "val_64")
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; it needs 64x64 images")

    def train() -> Iterator[tuple[int, Path]]:
        folders = decoding.class_folders(folder)
        for path in folders:
            if path.name not in classes:
                raise UserError(f"{path}: no class of imagenet_class_index.json; move it away")
        return ((classes[folders[rank].name], path) for rank, path in decoding.by_class(folders))

    def validation() -> Iterator[tuple[int, Path]]:
        listing = root / "ILSVRC2012_val_labels.json"
        wnids = _read_json(listing, "it labels the validation images")
        if not isinstance(wnids, dict):
            raise UserError(f"{listing}: expected the class of each file by its name; get the list again")
        for path in decoding.images_in(folder):
            wnid = wnids.get(path.name) or wnids.get(f"{path.stem}.JPEG")
            if not isinstance(wnid, str) or wnid not in classes:
                raise UserError(f"{listing}: no class for {path.name}; get the list again")
            yield classes[wnid], path

    names = tuple(sorted(classes, key=classes.__getitem__))
    return _IMAGENET.from_files(folder, train if split == "train" else validation, names)


def _read_json(path: Path, needed_for: str) -> Any:
    """The content of a JSON file that labels depend on; `UserError` naming it when missing or damaged."""
    try:
        return json.loads(decoding.text(path, needed_for))
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); {needed_for}") from error
