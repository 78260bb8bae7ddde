"""Pictures: 8-bit pixels and the networks' images, picture files, grids.

Pixels are uint8 ``(n, H, W, C)`` with C 1 (grey) or 3 (RGB), images float ``(n, C, H, W)`` in [−1, 1]:

    v = u / 127.5 − 1,        u = round((clamp(v, −1, 1) + 1) · 127.5),  half to even.

The pair is exact: every one of the 256 stored values comes back. The rounding is part of every metric protocol.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from cdrl.errors import UserError

Transform = Callable[[Image.Image], Image.Image]
"""From the decoded image to one of the wanted size; raises `WrongImage` for an image it cannot take."""

MAX_PIXELS = 2**26
"""Of a picture that is read: a small file may claim any number, and Pillow takes up to 12 bytes for each."""
_LARGE = 2**24  # pixels from which on only so many pictures are decoded at a time, whoever asks
_large_at_once = threading.BoundedSemaphore(2)


def scale(stored: Tensor) -> Tensor:
    """uint8 of any shape -> float32 in [−1, 1] of the same shape, on the same device."""
    return stored.float().div_(127.5).sub_(1.0)


def to_float(images: Tensor | NDArray[np.uint8]) -> Tensor:
    """uint8 NHWC -> float32 NCHW in [−1, 1], contiguous."""
    stored = torch.from_numpy(np.array(images)) if isinstance(images, np.ndarray) else images
    return scale(stored.permute(0, 3, 1, 2)).contiguous()


def unscale(images: Tensor) -> Tensor:
    """float of any shape -> float32 in 0 … 255, not rounded; values outside [−1, 1] are clamped.

    Raises `UserError` where a value is not finite: clamping keeps NaN, and 8 bits would make it black.
    """
    if not bool(images.isfinite().all()):
        raise UserError("images are not finite, so the model diverged: use another run or an earlier checkpoint")
    return images.float().clamp(-1.0, 1.0).add(1.0).mul(127.5)


def to_uint8(images: Tensor) -> Tensor:
    """float NCHW -> uint8 NHWC, contiguous, on the same device; clamped, and refused, as by `unscale`."""
    return unscale(images).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


# Reading


class WrongImage(Exception):
    """An image that decodes but does not belong; the message says how it differs."""


def picture(where: str, data: bytes | Path, mode: str, transform: Transform) -> Image.Image:
    """One image as it is wanted.

    Args:
        where: what to call it in an error.
        data: its bytes, or the file that holds them.
        mode: "L" (grey) or "RGB", 8 bits each; 16-bit grey is scaled, and what is transparent shows white.
        transform: applied in that mode.

    Raises:
        UserError: it is not there, no image, larger than `MAX_PIXELS`, or one that ``transform`` cannot take.
    """
    if isinstance(data, Path) and data.exists() and not data.is_file():  # a pipe would be waited for
        raise UserError(f"{where} is no file; give the path of a picture")
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                size = f"{image.width}x{image.height}"
                raise WrongImage(f"image is {size}, and at most {MAX_PIXELS:,} pixels are read; make it smaller")
            with _large_at_once if pixels > _LARGE else nullcontext():
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
        raise WrongImage("holds floating-point pixels of no known range; save it with 8 bits per channel")
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise WrongImage("holds more than 16 bits per pixel; save it with 8 bits per channel")
        plain = Image.fromarray(((values + 128) // 257).astype(np.uint8))  # rounded; 65535 = 255 · 257
    elif "A" in image.getbands() or "transparency" in image.info:
        colours = image.convert("RGBA")
        plain = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    elif image.mode == mode:
        image.load()
        return image
    else:
        return image.convert(mode)
    if "exif" in image.info:
        plain.info["exif"] = image.info["exif"]  # says how the camera was held
    return plain.convert(mode)


def upright(image: Image.Image) -> Image.Image:
    """Turned as its camera held it."""
    ImageOps.exif_transpose(image, in_place=True)
    return image


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


def mask_from_picture(path: Path, masked: tuple[int, int], size: int) -> NDArray[np.bool_]:
    """Which pixels are known, ``(size, size)``: the white ones (at least half bright) of a picture's central square.

    Args:
        path: the picture.
        masked: width and height of the image it belongs to, before that was cropped in the same way; the mask may be
            larger or smaller but must have its shape.
        size: side of the square that comes out.

    Raises:
        UserError: there is no such picture, it cannot be read, or it has another shape.
    """
    if not path.is_file():
        raise UserError(f"there is no mask '{path}'; give the path of a PNG of the picture's shape, white where known")
    drawn = picture(str(path), path, "L", upright)
    (width, height), (across, down) = drawn.size, masked
    if 2 * abs(width * down - height * across) > across + down:  # each side may be rounded by half a pixel
        raise UserError(
            f"{path} is {width}x{height} and does not fit over {across}x{down} pixels; save the mask as large as those"
        )
    # A pixel takes what most of the mask's pixels below it say; enlarging, this filter is the nearest pixel.
    return np.asarray(central_square(drawn, size, Image.Resampling.BOX)) >= 128


# Writing


def tile(images: NDArray[np.uint8], columns: int, gap: int = 1, background: int = 255) -> NDArray[np.uint8]:
    """Images ``(n, H, W, C)`` in rows of ``columns`` as one picture, ``gap`` pixels between them."""
    n, height, width, channels = images.shape
    lines = -(-n // columns)
    shape = (lines * (height + gap) - gap, columns * (width + gap) - gap, channels)
    canvas = np.full(shape, background, dtype=np.uint8)
    for number, image in enumerate(images):
        y, x = divmod(number, columns)
        canvas[y * (height + gap) :, x * (width + gap) :][:height, :width] = image
    return canvas


def grid(images: Sequence[NDArray[np.uint8]], columns: int, width: int = 600) -> Image.Image:
    """Images ``(H, W, C)`` as one picture, small ones enlarged by whole pixels to at most ``width`` across."""
    tiled = tile(np.stack(images), columns)
    zoom = max(1, width // tiled.shape[1])
    return from_pixels(np.repeat(np.repeat(tiled, zoom, axis=0), zoom, axis=1))


def from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    """Pixels ``(H, W, C)`` as a picture."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def check_writable(out: Path) -> None:
    """Raises `UserError` where `save` would, as far as that can be told before."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(out, error.strerror) from error
    if out.suffix.lower() not in Image.registered_extensions():
        raise _unwritable(out, f"no format is called '{out.suffix}'")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise _unwritable(out, "is a folder" if out.is_dir() else "permission denied")


def save(image: Image.Image, out: Path) -> None:
    """Write a picture, in the format that the name ends in; the folder is made where it is missing.

    Raises:
        UserError: there is no such format, or no writing there.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        image.save(out)
    except (OSError, ValueError) as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, why: object) -> UserError:
    return UserError(f"cannot write {out} ({why}); choose another file with --out, ending in .png")
