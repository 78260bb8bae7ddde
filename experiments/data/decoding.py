"""Compressed images -> rows of a uint8 array, on a thread pool; the first bad image stops everything, by name."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cdrl.errors import UserError
from experiments.progress import progress

T = TypeVar("T")
Encoded = tuple[str, bytes | Path]
"""What to call an image in an error, and its bytes or the file that holds them."""
Transform = Callable[[Image.Image], Image.Image]
"""From the decoded image to one of the set's size; raises `WrongImage` for an image it cannot take."""

_IN_FLIGHT = 1024  # images read ahead, which bounds the memory that compressed bytes take


class WrongImage(Exception):
    """An image that decodes but does not belong; the message says how it differs."""


def fill(out: NDArray[np.uint8], encoded: Iterable[Encoded], transform: Transform, title: str) -> None:
    """Decode images into the rows of ``out``, in order.

    Args:
        out: uint8 ``(n, size, size, channels)``; one channel is grey, three are RGB.
        encoded: exactly n images.
        transform: applied to each RGB or grey image; see `picture`.
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


def picture(where: str, data: bytes | Path, mode: str, transform: Transform) -> Image.Image:
    """One image as it is wanted.

    Args:
        where: what to call it in an error.
        data: its bytes, or the file that holds them.
        mode: "L" (grey) or "RGB", 8 bits each; 16-bit grey is scaled, and what is transparent shows white.
        transform: applied in that mode.

    Raises:
        UserError: it is not there, no image, or one that ``transform`` cannot take.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            return transform(_in_eight_bits(image, mode))
    except WrongImage as error:
        raise UserError(f"{where}: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"there is no picture {where}; check its path, or get a complete copy") from error
    except Exception as error:  # Pillow's decoders raise whatever comes to them
        raise UserError(f"{where}: not a readable image ({error}); replace it or take it out") from error


def _in_eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """Pillow's own conversion clips 16 bits at 255, and shows the colours that hide behind transparent pixels."""
    if image.mode == "F":
        raise WrongImage("holds floating-point pixels of no known range; save it with 8 bits a channel")
    if image.mode.startswith("I"):
        plain = _from_sixteen_bits(np.asarray(image, dtype=np.int64))
    elif "A" in image.getbands() or "transparency" in image.info:
        colours = image.convert("RGBA")
        plain = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    else:
        return image.convert(mode)
    if "exif" in image.info:
        plain.info["exif"] = image.info["exif"]  # says how the camera was held
    return plain.convert(mode)


def _from_sixteen_bits(values: NDArray[np.int64]) -> Image.Image:
    if values.min() < 0 or values.max() > 65535:
        raise WrongImage("holds more than 16 bits a pixel; save it with 8 bits a channel")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # rounded; 65535 = 255 · 257


def upright(image: Image.Image) -> Image.Image:
    """Turned as its camera held it."""
    return ImageOps.exif_transpose(image)


def central_square(
    image: Image.Image, size: int, resampling: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The largest square around the centre, resized (antialiased) to ``size`` x ``size``."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cropped before, not by the resize: its filter would reach over the square's border.
    return image.crop((left, top, left + side, top + side)).resize((size, size), resampling)


def photograph(size: int) -> Transform:
    """Take images of any shape: upright, central square, resized to ``size`` x ``size`` with Lanczos's filter."""
    return lambda image: central_square(upright(image), size)


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
