"""The digits and their fixed split."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from experiments.data import load


def test_splits_are_disjoint_and_complete() -> None:
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test)) == (1297, 500)
    bunch = load_digits()
    whole = {(row.tobytes(), int(label)) for row, label in zip(bunch.images, bunch.target, strict=True)}
    ours = []
    for part in (train, test):
        assert part.labels is not None
        sixteenths = part.images[..., 0] / 255 * 16
        np.testing.assert_allclose(sixteenths, np.rint(sixteenths), atol=0.04)  # rounding to 8 bits and back
        rows = np.rint(sixteenths)
        ours += [(row.tobytes(), int(label)) for row, label in zip(rows, part.labels, strict=True)]
    assert len(ours) == len(bunch.target)
    assert set(ours) == whole


def test_split_is_stratified() -> None:
    train, test = load("digits", "train"), load("digits", "test")
    assert train.labels is not None
    assert test.labels is not None
    shares = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    np.testing.assert_allclose(shares, 500 / 1797, atol=0.006)
