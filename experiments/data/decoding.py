"""Compressed images -> rows of a uint8 array; the first bad image stops everything, by name. Folders of image files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


def checked_labels(labels: object, count: int, classes: int, where: object) -> NDArray[np.int64]:
    """Labels ``(count,)`` in 0 … classes − 1, from what a file holds; else `UserError` naming ``where``."""
    checked = whole_numbers(labels, where)
    if len(checked) != count:
        raise UserError(f"{where}: {len(checked)} labels for {count} images; the copy is incomplete, get it again")
    if count and (checked.min() < 0 or checked.max() >= classes):
        low, high = checked.min(), checked.max()
        raise UserError(f"{where}: labels run from {low} to {high}, expected 0 to {classes - 1}; wrong data set?")
    return checked


def whole_numbers(values: object, where: object) -> NDArray[np.int64]:
    """Numbers ``(n,)`` from a list or array, of any shape in which they lie one after another.

    Raises:
        UserError: naming ``where``, for fractions (nothing is rounded), words, lists of unequal length, or anything
            else that is not n whole numbers of 64 bits.
    """
    # A list is looked at before numpy makes an array of it: lists in lists can stand for more than memory holds.
    if isinstance(values, list | tuple):
        whole = all(type(value) is int or isinstance(value, np.integer) for value in values)
        values = np.array(values, dtype=np.int64) if whole and _in_64_bits(values) else None
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu" and values.size == max(values.shape, default=0):
        if values.dtype == np.int64:
            return values.ravel()
        if not values.size or _in_64_bits([int(values.max())]):
            return values.astype(np.int64).ravel()
    raise UserError(f"{where}: labels are no list of whole numbers; get it again")


def _in_64_bits(values: Sequence[int]) -> bool:
    return all(-(2**63) <= value < 2**63 for value in values)


# Folders of image files, flat or one subfolder per class.


@dataclass(frozen=True)
class Listing:
    """What lies in a folder, each sorted by path; what is hidden does not count.

    Attributes:
        images: files with a picture's suffix.
        folders: subfolders.
        others: files that are no pictures by their names.
    """

    images: list[Path]
    folders: list[Path]
    others: list[Path]


def listing(folder: Path) -> Listing:
    """Look into a folder; links are followed.

    Raises:
        UserError: the folder cannot be read; or, naming it, a link that leads nowhere (it may be a class) or a pipe,
            socket or device with a picture's name (it would be waited for).
    """
    images, folders, others = [], [], []
    try:
        items = sorted(os.scandir(folder), key=lambda item: item.name)
    except OSError as error:
        raise UserError(f"cannot read folder {folder} ({error.strerror}); mend that or name another") from error
    for item in items:
        path = Path(item.path)
        if item.name.startswith("."):
            continue
        if item.is_symlink() and (wrong := _broken(path)):
            raise UserError(f"{path} is a link {wrong}; bring that back or take the link away")
        if item.is_dir():
            folders.append(path)
        elif path.suffix.lower() not in _SUFFIXES:
            others.append(path)
        elif item.is_file():
            images.append(path)
        else:
            raise UserError(f"{path} is a pipe, socket or device and no image file; take it out")
    return Listing(images, folders, others)


def _broken(link: Path) -> str:
    """Where a link leads, if that is nowhere."""
    try:
        link.stat()
    except FileNotFoundError:
        return "to a file that is not there"
    except OSError as error:
        return "in a loop of links" if error.errno == errno.ELOOP else f"that cannot be followed ({error.strerror})"
    return ""


def images_below(folder: Path, seen: set[Path] | None = None, others: list[Path] | None = None) -> list[Path]:
    """Every image file below ``folder``, sorted by path; see `listing`, also for the errors.

    Links to folders are followed, but each folder is read once, and none that this one lies in.

    Args:
        folder: where to look.
        seen: folders that are not read, as they are without links; those that are read join them.
        others: is given the files that are passed over.
    """
    real = folder.resolve()
    seen = {*real.parents} if seen is None else seen
    if real in seen:
        return []
    seen.add(real)
    here = listing(folder)
    if others is not None:
        others += here.others
    below = [image for path in here.folders for image in images_below(path, seen, others)]
    return sorted([*here.images, *below])


def images_in(folder: Path) -> list[Path]:
    """The image files in ``folder`` itself, sorted; see `listing`."""
    return listing(folder).images


def class_folders(folder: Path) -> list[Path]:
    """The subfolders of ``folder``, sorted by name: class c is the c-th; see `listing`."""
    return listing(folder).folders


def by_class(folders: Sequence[Path], others: list[Path] | None = None) -> Iterator[tuple[int, Path]]:
    """``(class, file)`` of every image below the class folders; an empty class is an error.

    ``others`` as in `images_below`.
    """
    for label, folder in enumerate(folders):
        real = folder.resolve()
        files = images_below(folder, {folder.parent.resolve(), *real.parents}, others)
        if not files:
            raise UserError(f"{folder}: a class folder without images; fill it or remove it")
        yield from ((label, path) for path in files)


def encoded(paths: Sequence[Path]) -> Iterator[Encoded]:
    """The files as `fill` takes them."""
    return ((str(path), path) for path in paths)


# Small files that say what images are.


def text(path: Path, needed_for: str) -> str:
    """A file of text. Raises `UserError` where it is not there, cannot be read or is no UTF-8."""
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path} is missing; {needed_for}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as text ({error}); {needed_for}") from error
