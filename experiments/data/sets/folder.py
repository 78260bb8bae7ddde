"""Any folder of images: flat, or one subfolder per class; each is cropped to its central square and resized.

Splits: ``train/`` and ``test/`` (or ``val/``) inside the folder if nothing else with images lies there; classes are
numbered by ``train/``'s. Else a fixed share is held out, and whatever is added later changes little: those files whose
names hash lowest.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from cdrl.errors import UserError, printable
from cdrl.pictures import photograph
from experiments.data import decoding
from experiments.data.registry import Place, data_set
from experiments.data.store import Allocate, Decoded, Recipe
from experiments.progress import announce

_READER = 2  # of `cdrl.pictures.picture`: raise it when the same file would give other pixels
_LARGEST = 4096  # side of an image
_TRAIN, _TESTS = "train", ("test", "val", "validation")
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
    if not 4 <= image_size <= _LARGEST:
        raise UserError(f"image_size {image_size} is not in 4 … {_LARGEST}; a power of two fits the networks")
    if channels not in (1, 3):
        raise UserError(f"channels {channels} is neither 1 (grey) nor 3 (RGB)")
    if not 0 < held_out < 1:
        raise UserError(f"held_out {held_out} is not between 0 and 1; 0.1 keeps a tenth for testing")
    if not place.root.is_dir():
        raise UserError(f"{place.root} is no folder; name yours with data.root=FOLDER: it needs {_LAYOUT}")

    # Both splits are looked at, whichever is asked for: what is wrong with one is said before work with the other.
    passed_over: list[Path] = []
    train, test, left_out = _splits(place.root)
    names, pairs = _pictures(train, passed_over)
    if test == train:
        # The lowest-hashing names are held out, at least two images on either side: one alone cannot be scored.
        if len(pairs) < 4:
            raise UserError(f"{train} holds {len(pairs)} images; give at least 4, of which 2 are held out for testing")
        ranked = sorted(pairs, key=lambda pair: hashlib.sha256(os.fsencode(pair[1].relative_to(train))).digest())
        count = min(max(round(held_out * len(pairs)), 2), len(pairs) - 2)
        pairs = sorted(ranked[:count] if split == "test" else ranked[count:], key=lambda pair: pair[1])
    else:
        # Classes have the numbers that they have in training.
        their_names, their_pairs = _pictures(test, passed_over)
        if bool(names) != bool(their_names):
            classes, flat = (train, test) if names else (test, train)
            raise UserError(f"{classes} holds class folders and {flat} images without; arrange both in one way")
        if unknown := sorted(set(their_names) - set(names)):
            raise UserError(f"{test / unknown[0]} is a class that {train} lacks; add images of it there or take it out")
        for folder, there in ((train, pairs), (test, their_pairs)):
            if len(there) < 2:
                raise UserError(f"{folder} holds one image only; give at least 2, one alone cannot be scored")
        if split == "test":
            pairs = [(names.index(their_names[label]) if names else 0, path) for label, path in their_pairs]
    paths, labels = [path for _, path in pairs], np.array([label for label, _ in pairs], dtype=np.int64)
    class_names = tuple(printable(name) for name in names)

    def decode(allocate: Allocate) -> Decoded:
        if split == "train":
            for path in left_out:
                announce(printable(f"folder {place.root}: {path.name}/ is left out, {test.name}/ is what is tested on"))
            if passed_over:
                files = f"{len(passed_over)} files" if len(passed_over) > 1 else "1 file"
                such = f"no image by name, such as {passed_over[0].name}"
                announce(printable(f"folder {place.root}: {files} passed over, {such}"))
        out = allocate(len(paths), image_size, channels)
        decoding.fill(out, decoding.encoded(paths), photograph(image_size), "decoding folder")
        return Decoded(labels, class_names) if class_names else Decoded()

    options = {"image_size": image_size, "channels": channels, "held_out": held_out, "split": split, "reader": _READER}
    if test != train:
        options["classes"] = names
    return Recipe(decode, f"folder {printable(place.root.name)}", paths, options)


def _splits(root: Path) -> tuple[Path, Path, list[Path]]:
    """The folders of training and of test images, one and the same where both must share it; and those left out.

    A folder is a split only where nothing but splits lies beside it.
    """
    here = decoding.listing(root)
    splits = {path.name: path for path in here.folders if path.name in (_TRAIN, *_TESTS)}
    if not splits:
        return root, root, []
    first = next(iter(splits.values()))
    others = [path for path in here.folders if path not in splits.values() and decoding.images_below(path)]

    # Nothing but splits.
    if not others:
        if here.images:
            raise UserError(f"{here.images[0]} lies beside {first.name}/, in no split; move it into one or away")
        if _TRAIN not in splits:
            raise UserError(f"{root} holds {first.name}/ and no {_TRAIN}/; add that, or name {first} itself")
        tests = [splits[name] for name in _TESTS if name in splits]
        return splits[_TRAIN], tests[0] if tests else splits[_TRAIN], tests[1:]

    # Beside other folders of images it is a class like them, if it looks like one.
    for path in splits.values():
        if decoding.class_folders(path):
            raise UserError(
                f"{path} holds folders, and beside it {others[0].name}/ holds images; move those away, or rename "
                f"{path.name}/ if it is a class"
            )
    if len(splits) > 1:
        raise UserError(
            f"{others[0]} holds images beside {' and '.join(f'{name}/' for name in splits)}; move it away, or rename "
            "those if they are classes"
        )
    return root, root, []


def _pictures(folder: Path, passed_over: list[Path]) -> tuple[list[str], list[tuple[int, Path]]]:
    """The class names of a folder, none for a flat one, and its images with their class; adds the other files."""
    here = decoding.listing(folder)
    passed_over += here.others
    if not here.images:
        pairs = list(decoding.by_class(here.folders, passed_over))
        if not pairs:
            raise UserError(f"{folder} holds no image; data set folder needs {_LAYOUT}")
        return [path.name for path in here.folders], pairs

    # Flat or by class, not both: beside stray pictures, all classes would be left out without a word.
    if inside := next((files[0] for files in map(decoding.images_below, here.folders) if files), None):
        raise UserError(
            f"{here.images[0]} is in no class folder but {inside} is in one; move the first into one or away, or for "
            f"images without classes all of them into {folder}"
        )
    return [], [(0, path) for path in here.images]
