"""`ImageSet`: what it says of itself, subsets, checksums."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from experiments.data.images import ImageSet


def make(count: int = 6) -> ImageSet:
    pixels = np.random.default_rng(1).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return ImageSet(
        images=pixels,
        labels=np.arange(count) % 2,
        name="random",
        split="train",
        source="a generator",
        class_names=("even", "odd"),
        attributes=np.eye(count, 2, dtype=bool),
        attribute_names=("first", "second"),
    )


def test_sizes_come_from_the_pixels() -> None:
    images = make()
    assert (len(images), images.image_size, images.channels, images.classes) == (6, 4, 3, 2)


def test_checksum_is_of_pixels_in_order() -> None:
    images = make()
    assert images.checksum == hashlib.sha256(images.images.tobytes()).hexdigest()
    assert images.subset([1, 0]).checksum == hashlib.sha256(images.images[[1, 0]].tobytes()).hexdigest()


def test_subset_keeps_rows_together() -> None:
    images = make()
    part = images.subset([5, 1])
    assert part.labels is not None
    assert part.attributes is not None
    assert part.labels.tolist() == [1, 1]
    assert part.attributes.tolist() == [[False, False], [False, True]]
    np.testing.assert_array_equal(part.images, images.images[[5, 1]])


def test_slice_shares_memory() -> None:
    images = make()
    assert np.shares_memory(images.subset(slice(2, 4)).images, images.images)


def test_attribute_becomes_a_label() -> None:
    labels = make().labels_from("second")
    assert labels is not None
    assert labels.tolist() == [0, 1, 0, 0, 0, 0]
    with pytest.raises(KeyError):
        make().labels_from("third")


@pytest.mark.parametrize("images", [np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4, 3), np.float32)])
def test_other_arrays_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="NHWC"):
        ImageSet(images=images, labels=None, name="x", split="train", source="")


def test_as_many_labels_as_images() -> None:
    with pytest.raises(ValueError, match="3 labels"):
        ImageSet(images=np.zeros((2, 4, 4, 3), np.uint8), labels=np.zeros(3, np.int64), name="", split="", source="")
