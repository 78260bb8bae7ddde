"""Pictures in and out: images side by side, and masks that somebody drew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdrl.errors import UserError
from experiments.data import decoding


def tile(images: NDArray[np.uint8], columns: int, gap: int = 1, background: int = 255) -> NDArray[np.uint8]:
    """Images ``(n, H, W, C)`` in rows of ``columns`` as one picture, ``gap`` pixels between them."""
    n, height, width, channels = images.shape
    lines = -(-n // columns)
    canvas = np.full(
        (lines * (height + gap) - gap, columns * (width + gap) - gap, channels), background, dtype=np.uint8
    )
    for number, image in enumerate(images):
        y, x = divmod(number, columns)
        canvas[y * (height + gap) :, x * (width + gap) :][:height, :width] = image
    return canvas


def mask_from_picture(path: Path, masked: tuple[int, int], size: int) -> NDArray[np.bool_]:
    """The known pixels, ``(size, size)``: the white ones (at least half bright) of a picture's central square.

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
    drawn = decoding.picture(str(path), path, "L", decoding.upright)
    (width, height), (across, down) = drawn.size, masked
    if 2 * abs(width * down - height * across) > across + down:  # each side may be rounded by half a pixel
        raise UserError(
            f"{path} is {width}x{height} and does not fit over {across}x{down} pixels; save the mask as large as those"
        )
    # A pixel takes what most of the mask's pixels below it say; enlarging, this filter is the nearest pixel.
    return np.asarray(decoding.central_square(drawn, size, Image.Resampling.BOX)) >= 128
