"""Tiny-ImageNet shrunk from 64×64 to 32×32: a stand-in for ImageNet 32×32 to develop and test with.

200 classes; no number measured on it is comparable with a published ImageNet number, and the tables say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cdrl.errors import UserError
from experiments.data import parquet, tree
from experiments.data.registry import Place, data_set
from experiments.data.shrunk import Shrunk, read_json
from experiments.data.store import Recipe

_CLASSES = 200
_LAYOUT = (
    "Parquet shards train-* and validation-* with columns img{bytes} and label (classes.json beside them names the "
    "classes), or the original tiny-imagenet-200/ with train/<wnid>/images/ and val/val_annotations.txt"
)


@data_set(
    "tinyimagenet32",
    layout=_LAYOUT,
    needed_for="trying the ImageNet manifests at scale mini",
    variable="CDRL_DATA_TINYIMAGENET",
)
def find(place: Place, split: str) -> Recipe:
    """Tiny-ImageNet from the folder. The test split is the labelled validation set."""
    shards = parquet.shards(place.root, split)
    if shards:
        return _shrunk(_names(place.root)).from_parquet(shards)
    for folder in (place.root, place.root / "tiny-imagenet-200"):
        if (folder / "train").is_dir():
            return _original(folder, split)
    raise UserError(f"{place.root} holds no tinyimagenet32 ({split}); it needs {_LAYOUT}")


def _shrunk(names: tuple[str, ...] = ()) -> Shrunk:
    return Shrunk("tinyimagenet32", _CLASSES, names, comparable=False)


def _names(root: Path) -> tuple[str, ...]:
    path = root / "classes.json"
    if not path.is_file():
        return ()
    content = read_json(path, "it names the classes; remove it to number them")
    names = tuple(map(str, content.get("wnids_sorted", ()) if isinstance(content, dict) else content))
    if len(names) != _CLASSES:
        raise UserError(f"{path}: names {len(names)} classes, expected {_CLASSES}; get it again or remove it")
    return names


def _original(folder: Path, split: str) -> Recipe:
    train = _shrunk().from_class_folders(folder / "train")
    if split == "train":
        return train
    names = tuple(path.name for path in tree.class_folders(folder / "train"))
    listed = partial(_validation, folder / "val", {name: label for label, name in enumerate(names)})
    if not (folder / "val").is_dir():
        raise UserError(f"{folder / 'val'} is missing; unpack the whole archive")
    return _shrunk().from_files(folder / "val", listed, names)


def _validation(folder: Path, classes: dict[str, int]) -> Iterator[tuple[int, Path]]:
    """``val_annotations.txt`` has one line per image: file, wnid, and a bounding box."""
    listing = folder / "val_annotations.txt"
    if not listing.is_file():
        raise UserError(f"{listing} is missing; it labels the validation images")
    for line in listing.read_text().splitlines():
        name, wnid = [*line.split(), "", ""][:2]
        if wnid not in classes:
            raise UserError(f"{listing}: no class folder for {name!r} ({wnid!r}); get it again")
        yield classes[wnid], folder / "images" / name
