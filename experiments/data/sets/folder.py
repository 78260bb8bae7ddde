"""Any folder of images: flat, or one subfolder per class; each is cropped to its central square and resized.

Splits: ``train/`` and ``test/`` (or ``val/``) inside the folder if they exist; else a fixed share is held out, the same
files whatever is added later changes little: those whose names hash lowest.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from cdrl.errors import UserError
from cdrl.pictures import photograph
from experiments.data import decoding
from experiments.data.registry import Place, data_set
from experiments.data.store import Allocate, Decoded, Recipe

_READER = 2  # of `cdrl.pictures.picture`: raise it when the same file would give other pixels
_LAYOUT = "image files, directly or in one subfolder per class (optionally below train/ and test/)"


@data_set("folder", layout=_LAYOUT, needed_for="training on your own images")
def find(place: Place, split: str, image_size: int = 32, channels: int = 3, held_out: float = 0.1) -> Recipe:
    """The images of a folder.

    Args:
        place: the folder.
        split: "train" or "test".
        image_size: side of the squares that come out, in pixels.
        channels: 3 for RGB, 1 for grey.
        held_out: the share of images kept for "test" where the folder has no test images of its own.
    """
    if image_size < 4:
        raise UserError(f"image_size {image_size} is too small; give at least 4, a power of two fits the networks")
    if channels not in (1, 3):
        raise UserError(f"channels {channels} is neither 1 (grey) nor 3 (RGB)")
    if not 0 < held_out < 1:
        raise UserError(f"held_out {held_out} is not between 0 and 1; 0.1 keeps a tenth for testing")
    if not place.root.is_dir():
        raise UserError(f"{place.root} is no folder; name yours with data.root=FOLDER: it needs {_LAYOUT}")

    # Flat or by class, not both: beside stray pictures, all classes would be left out without a word.
    base, shared = _base(place.root, split)
    direct, folders = decoding.images_in(base), decoding.class_folders(base)
    inside = next((files[0] for files in map(decoding.images_below, folders) if files), None) if direct else None
    if inside:
        raise UserError(
            f"{direct[0]} is in no class folder but {inside} is in one; move the first into one or away, or for "
            f"images without classes all of them into {direct[0].parent}"
        )
    pairs = [(0, path) for path in direct] or list(decoding.by_class(folders))
    if not pairs:
        raise UserError(f"{base} holds no image; data set folder needs {_LAYOUT}")

    # The split's part: the lowest-hashing names are held out, at least one image on either side.
    if shared:
        if len(pairs) < 2:
            raise UserError(f"{base} holds one image only; give at least 2, one is held out")
        ranked = sorted(pairs, key=lambda pair: hashlib.sha256(os.fsencode(pair[1].relative_to(base))).digest())
        count = min(max(round(held_out * len(pairs)), 1), len(pairs) - 1)
        pairs = sorted(ranked[:count] if split == "test" else ranked[count:], key=lambda pair: pair[1])
    paths, labels = [path for _, path in pairs], np.array([label for label, _ in pairs], dtype=np.int64)

    def decode(allocate: Allocate) -> Decoded:
        out = allocate(len(paths), image_size, channels)
        decoding.fill(out, decoding.encoded(paths), photograph(image_size), "decoding folder")
        return Decoded() if direct else Decoded(labels, tuple(path.name for path in folders))

    options = {"image_size": image_size, "channels": channels, "held_out": held_out, "split": split, "reader": _READER}
    return Recipe(decode, f"folder {place.root.name}", paths, options)


def _base(root: Path, split: str) -> tuple[Path, bool]:
    """The folder of the split, and whether both splits must share it."""
    train = root / "train"
    if not train.is_dir():
        return root, True
    tests = [root / name for name in ("test", "val", "validation") if (root / name).is_dir()]
    if tests:
        return (train if split == "train" else tests[0]), False

    # Beside other folders of images, "train" is a class like them, unless it holds classes itself.
    others = [path for path in decoding.class_folders(root) if path != train and decoding.images_below(path)]
    if not others:
        return train, True
    if decoding.class_folders(train):
        raise UserError(
            f"{train} holds folders, and beside it {others[0].name}/ holds images; move those away, or rename train/ "
            "if it is a class"
        )
    return root, True
