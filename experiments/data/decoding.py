"""Compressed images -> rows of a uint8 array, on a thread pool; the first bad image stops everything, by name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdrl.errors import UserError
from cdrl.pictures import Transform, WrongImage, picture
from experiments.progress import progress

T = TypeVar("T")
Encoded = tuple[str, bytes | Path]
"""What to call an image in an error, and its bytes or the file that holds them."""

_IN_FLIGHT = 1024  # images read ahead, which bounds the memory that compressed bytes take


def fill(out: NDArray[np.uint8], encoded: Iterable[Encoded], transform: Transform, title: str) -> None:
    """Decode images into the rows of ``out``, in order.

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

    done = 0
    threads = min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool, progress(title, len(out)) as advance:
        for chunk in _chunks(enumerate(encoded), _IN_FLIGHT):
            if done + len(chunk) > len(out):
                raise UserError(f"{title}: more images than the {len(out)} announced; the files changed, try again")
            for _ in pool.map(decode, chunk):
                pass
            done += len(chunk)
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

    def shrink(image: Image.Image) -> Image.Image:
        return check(image).resize((size, size), Image.Resampling.BILINEAR)

    return shrink


def checked_labels(labels: NDArray[np.int64], count: int, classes: int, where: object) -> NDArray[np.int64]:
    """The labels, if there is one per image and all are in 0 … classes − 1; else `UserError` naming ``where``."""
    if len(labels) != count:
        raise UserError(f"{where}: {len(labels)} labels for {count} images; the copy is incomplete, get it again")
    if count and (labels.min() < 0 or labels.max() >= classes):
        raise UserError(
            f"{where}: labels run from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}; wrong data set?"
        )
    return labels


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
