"""1,797 real handwritten digits, 8×8 grey, that come with scikit-learn (UCI's "Optical Recognition").

Pixels 0 … 16 become round(v · 255 / 16). The split is fixed and stratified: 1,297 to train, 500 held out.
"""

from __future__ import annotations

import numpy as np

from experiments.data.images import ImageSet
from experiments.data.registry import Place, data_set

_HELD_OUT = 500
_SPLIT_SEED = 20240


@data_set(
    "digits",
    layout="nothing: the images come with scikit-learn",
    needed_for="scale nano of every experiment",
    checksums={
        "train": "c6e6fe5980a148c6a00f23bd9765cee8942444d96c82d7e2a10ebef06c7f4e23",
        "test": "c0f8773f5faa709151018b26ad5caea3b532b020978efe4d22fe37cbd915c382",
    },
)
def find(place: Place, split: str) -> ImageSet:
    """The digits of one split, in their original order."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = bunch.target.astype(np.int64)

    # Held out is each class in proportion, largest remainders first.
    shares = np.bincount(labels) * (_HELD_OUT / len(labels))
    counts = np.floor(shares).astype(np.int64)
    counts[np.argsort(counts - shares, kind="stable")[: _HELD_OUT - counts.sum()]] += 1
    random = np.random.RandomState(_SPLIT_SEED)  # the one numpy generator whose stream is frozen
    parts = [random.permutation(np.flatnonzero(labels == c))[:count] for c, count in enumerate(counts)]
    held_out = np.sort(np.concatenate(parts))

    rows = held_out if split == "test" else np.setdiff1d(np.arange(len(labels)), held_out)
    pixels = np.rint(bunch.images[rows] * (255.0 / 16.0)).astype(np.uint8)[..., None]
    return ImageSet(pixels, labels[rows], "digits", split, "scikit-learn's digits", tuple("0123456789"))
