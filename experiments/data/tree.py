"""Images as files: a folder of them, flat or one subfolder per class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cdrl.errors import UserError
from experiments.data.decoding import Encoded

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


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
        if not is_image(item.name) or item.is_dir():
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
    """The files as `decoding.fill` takes them."""
    return ((str(path), path) for path in paths)


def is_image(name: str) -> bool:
    """True for the name of an image file that is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in _SUFFIXES
