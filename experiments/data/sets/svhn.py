"""Street View House Numbers (Netzer et al., 2011), 32×32, from a local copy in torchvision's layout."""

from __future__ import annotations

import numpy as np

from cdrl.errors import UserError
from experiments.data.decoding import checked_labels
from experiments.data.registry import Place, data_set
from experiments.data.store import Allocate, Decoded, Recipe

_LAYOUT = "train_32x32.mat and test_32x32.mat (torchvision's SVHN)"


@data_set("svhn", layout=_LAYOUT, needed_for="out-of-distribution detection against SVHN")
def find(place: Place, split: str) -> Recipe:
    """SVHN's cropped digits; the file's class 10 is digit 0."""
    path = place.root / f"{split}_32x32.mat"
    if not path.is_file():
        raise UserError(f"{path} is missing; svhn needs {_LAYOUT}")

    def decode(allocate: Allocate) -> Decoded:
        from scipy.io import loadmat

        try:
            content = loadmat(str(path))
            images, labels = content["X"], content["y"]
        except Exception as error:  # scipy's reader raises whatever comes to it
            raise UserError(f"{path}: not SVHN's file of X and y ({error}); get it again") from error
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
            raise UserError(f"{path}: X is {images.dtype} {images.shape}, expected uint8 (32, 32, 3, n); get it again")
        labels = checked_labels(labels, images.shape[3], 11, path) % 10
        out = allocate(images.shape[3], 32, 3)
        out[:] = images.transpose(3, 0, 1, 2)
        return Decoded(labels, tuple("0123456789"))

    return Recipe(decode, f"{path.name}, local copy", [path])
