"""Compressed images -> rows of a uint8 array; the first bad image stops everything, by name. Folders of image files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdrl.errors import UserError
from cdrl.pictures import Transform, WrongImage, picture
from experiments.progress import progress

Encoded = tuple[str, bytes | Path]
"""What to call an image in an error, and its bytes or the file that holds them."""

_IN_FLIGHT = 1024  # images read ahead, which bounds the memory that compressed bytes take
_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def fill(out: NDArray[np.uint8], encoded: Iterable[Encoded], transform: Transform, title: str) -> None:
    """Decode images into the rows of ``out``, in order, on a thread pool.

    Args:
        out: uint8 ``(n, size, size, channels)``; one channel is grey, three are RGB.
        encoded: exactly n images.
        transform: applied to each RGB or grey image; see `cdrl.pictures.picture`.
        title: for the progress display.

    Raises:
        UserError: naming the image that is corrupt or of a wrong size, or telling that there are too few or too many.
    """
    mode, size = "L" if out.shape[-1] == 1 else "RGB", out.shape[1]

    def decode(task: tuple[int, Encoded]) -> None:
        row, (where, data) = task
        pixels = np.asarray(picture(where, data, mode, transform), dtype=np.uint8)
        if pixels.shape[:2] != (size, size):
            raise UserError(f"{where}: image is {pixels.shape[1]}x{pixels.shape[0]}, expected {size}x{size}")
        out[row] = pixels.reshape(size, size, -1)

    done, tasks = 0, iter(enumerate(encoded))
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool, progress(title, len(out)) as advance:
        while chunk := list(islice(tasks, _IN_FLIGHT)):
            done += len(chunk)
            if done > len(out):
                raise UserError(f"{title}: more images than the {len(out)} announced; the files changed, try again")
            list(pool.map(decode, chunk))
            advance(len(chunk))
    if done != len(out):
        raise UserError(f"{title}: {done} images where {len(out)} were announced; a file is incomplete")


def exactly(size: int) -> Transform:
    """Take images of ``size`` x ``size`` as they are, and no others."""

    def check(image: Image.Image) -> Image.Image:
        if image.size != (size, size):
            raise WrongImage(f"image is {image.width}x{image.height}, expected {size}x{size}")
        return image

    return check


def bilinear(stored: int, size: int) -> Transform:
    """Shrink images of ``stored`` x ``stored`` by Pillow's (antialiased) bilinear filter, which torchvision's Resize
    uses too; refuse other sizes."""
    check = exactly(stored)
    return lambda image: check(image).resize((size, size), Image.Resampling.BILINEAR)


def checked_labels(labels: NDArray[np.int64], count: int, classes: int, where: object) -> NDArray[np.int64]:
    """The labels, if there is one per image and all are in 0 … classes − 1; else `UserError` naming ``where``."""
    if len(labels) != count:
        raise UserError(f"{where}: {len(labels)} labels for {count} images; the copy is incomplete, get it again")
    if count and (labels.min() < 0 or labels.max() >= classes):
        low, high = labels.min(), labels.max()
        raise UserError(f"{where}: labels run from {low} to {high}, expected 0 to {classes - 1}; wrong data set?")
    return labels


# Folders of image files, flat or one subfolder per class.


def images_below(folder: Path, above: frozenset[Path] = frozenset()) -> list[Path]:
    """Every image file below ``folder``, sorted by path; hidden files and folders are left out.

    Links to folders are followed, but not to one of the folders ``above``.
    """
    above |= {folder.resolve()}
    below = [path for path in class_folders(folder) if path.resolve() not in above]
    return sorted([*images_in(folder), *(image for path in below for image in images_below(path, above))])


def images_in(folder: Path) -> list[Path]:
    """The image files in ``folder`` itself, sorted. Raises `UserError` for a link to a file that is not there."""
    images = []
    for item in os.scandir(folder):
        if item.name.startswith(".") or os.path.splitext(item.name)[1].lower() not in _SUFFIXES or item.is_dir():
            continue
        if not item.is_file():
            raise UserError(f"{item.path} is a link to a file that is not there; bring it back or take the link away")
        images.append(Path(item.path))
    return sorted(images)


def class_folders(folder: Path) -> list[Path]:
    """The subfolders of ``folder``, sorted by name: class c is the c-th."""
    return sorted(Path(item.path) for item in os.scandir(folder) if item.is_dir() and not item.name.startswith("."))


def by_class(folders: Sequence[Path]) -> Iterator[tuple[int, Path]]:
    """``(class, file)`` of every image below the class folders; an empty class is an error."""
    for label, folder in enumerate(folders):
        files = images_below(folder)
        if not files:
            raise UserError(f"{folder}: a class folder without images; fill it or remove it")
        yield from ((label, path) for path in files)


def encoded(paths: Sequence[Path]) -> Iterator[Encoded]:
    """The files as `fill` takes them."""
    return ((str(path), path) for path in paths)
