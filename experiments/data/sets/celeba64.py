"""CelebA (Liu et al., 2015) at 64×64 with its 40 attributes, from a local copy in torchvision's layout.

The aligned 178×218 images are cropped to their central 140×140 and shrunk bilinearly (antialiased) to 64×64, the
usual protocol of score and diffusion models at this size; ``crop=178`` keeps the full width instead.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdrl.errors import UserError
from cdrl.pictures import WrongImage
from experiments.data import decoding
from experiments.data.registry import Place, data_set
from experiments.data.store import Allocate, Decoded, Recipe

_SIZE, _WIDTH, _HEIGHT = 64, 178, 218
_PARTS = {"train": "0", "valid": "1", "test": "2"}
_FILES = _IMAGES, _ATTRIBUTES, _PARTITION = "img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"
_LAYOUT = f"{_IMAGES}/ with the aligned images, {_ATTRIBUTES} and {_PARTITION}, directly or in celeba/"
_NEEDED_FOR = "composition of attributes and inpainting at scale paper"


@data_set("celeba64", layout=_LAYOUT, needed_for=_NEEDED_FOR, splits=("train", "valid", "test"))
def find(place: Place, split: str, crop: int = 140) -> Recipe:
    """CelebA's official split ``split``; ``crop`` is the side of the central square that is kept, in pixels."""
    if not 1 <= crop <= _WIDTH:
        raise UserError(f"crop {crop} is not in 1 … {_WIDTH}, the width of CelebA's images; the usual crop is 140")
    folder = next((path for path in (place.root / "celeba", place.root) if (path / _IMAGES).is_dir()), None)
    if folder is None:
        raise UserError(f"{place.root} holds no celeba64; it needs {_LAYOUT}")
    files = images, attribute_list, partition = [folder / name for name in _FILES]
    for path in files:
        if not path.exists():
            raise UserError(f"{path} is missing; celeba64 needs {_LAYOUT}")

    def cropped(image: Image.Image) -> Image.Image:
        if image.size != (_WIDTH, _HEIGHT):
            raise WrongImage(f"image is {image.width}x{image.height}, expected the aligned {_WIDTH}x{_HEIGHT}")
        left, top = (_WIDTH - crop) // 2, (_HEIGHT - crop) // 2
        square = image.crop((left, top, left + crop, top + crop))
        return square.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)

    def decode(allocate: Allocate) -> Decoded:
        # The split's images: lines "000001.jpg 0".
        parts = decoding.text(partition, "it says which images belong to a split")
        pairs = [line.split() for line in parts.splitlines() if line.strip()]
        if any(len(pair) != 2 for pair in pairs):
            raise UserError(f"{partition}: expected lines 'file part'; get the list again")
        names = [name for name, part in pairs if part == _PARTS[split]]

        attribute_names, rows = _read_attributes(attribute_list)
        missing = next((name for name in names if name not in rows), None)
        if missing:
            raise UserError(f"{attribute_list}: no attributes for {missing}; get the list again")
        out = allocate(len(names), _SIZE, 3)
        decoding.fill(out, decoding.encoded([images / name for name in names]), cropped, "decoding celeba64")
        attributes = np.array([rows[name] for name in names], dtype=np.bool_).reshape(len(names), -1)
        return Decoded(attributes=attributes, attribute_names=attribute_names)

    source = f"CelebA, central {crop}x{crop} shrunk to {_SIZE}x{_SIZE}"
    return Recipe(decode, source, files, {"crop": crop, "split": split})


def _read_attributes(path: Path) -> tuple[tuple[str, ...], dict[str, NDArray[np.bool_]]]:
    """First the number of images, then the names, then one line per image with 1 or −1 for each name."""
    lines = decoding.text(path, "it says what the images show").splitlines()
    names = tuple(lines[1].split()) if len(lines) > 1 else ()
    rows = {}
    for name, *values in filter(None, map(str.split, lines[2:])):
        if len(values) != len(names) or not {"1", "-1"} >= set(values):
            raise UserError(f"{path}: line of {name} has no {len(names)} values of 1 or -1; get the list again")
        rows[name] = np.array(values) == "1"
    if not rows:
        raise UserError(f"{path}: holds no attributes; get the list again")
    return names, rows
