"""Batches are a pure function of (seed, iteration), the stream one of (seed, position)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cdrl.errors import UserError
from cdrl.pictures import to_float
from experiments.data.batches import DeviceBatches
from experiments.data.images import ImageSet

COUNT = 10


@pytest.fixture
def images() -> ImageSet:
    """Ten images that tell their number (every pixel's left neighbour is lower, so that flips show)."""
    pixels = np.arange(COUNT, dtype=np.uint8)[:, None, None, None] + np.array([0, 100], np.uint8)[:, None]
    return ImageSet(
        images=np.broadcast_to(pixels, (COUNT, 2, 2, 3)).copy(),
        labels=np.arange(COUNT),
        name="numbers",
        split="train",
        source="",
        class_names=tuple(map(str, range(COUNT))),
        attributes=np.arange(COUNT)[:, None] >= 7,
        attribute_names=("large",),
    )


def stream(batches: DeviceBatches, iterations: int) -> list[int]:
    """The labels' stream, as class numbers 0 … 9."""
    parts = [batches.batch(i).labels for i in range(iterations)]
    return [int(label) - 1 for part in parts if part is not None for label in part]


def test_each_epoch_shows_each_image_once(images: ImageSet) -> None:
    order = stream(DeviceBatches(images, 4, seed=3), 10)
    epochs = [order[start : start + COUNT] for start in range(0, 40, COUNT)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("batch_size", [1, 3, 7, 12, 25])
def test_stream_does_not_depend_on_batch_size(images: ImageSet, batch_size: int) -> None:
    expected = stream(DeviceBatches(images, 5, seed=0), 15)
    order = stream(DeviceBatches(images, batch_size, seed=0), -(-75 // batch_size))
    assert order[:75] == expected


def test_any_iteration_can_be_asked_for_first(images: ImageSet) -> None:
    walked, fresh = (DeviceBatches(images, 4, seed=1, flip=True) for _ in range(2))
    for i in range(30):
        walked.batch(i)
    for i in (29, 2, 17):
        assert torch.equal(walked.batch(i).images, fresh.batch(i).images)


def test_seed_changes_order(images: ImageSet) -> None:
    assert stream(DeviceBatches(images, 10, seed=0), 1) != stream(DeviceBatches(images, 10, seed=1), 1)


def test_images_belong_to_their_labels_and_are_scaled(images: ImageSet) -> None:
    x, labels, *_ = DeviceBatches(images, 6, seed=0).batch(1)
    assert labels is not None
    assert x.dtype == torch.float32
    assert torch.equal(x, to_float(images.images[(labels - 1).numpy()]))


def test_flips_depend_on_position_alone(images: ImageSet) -> None:
    def mirrored(batch_size: int) -> list[bool]:
        batches = DeviceBatches(images, batch_size, seed=5, flip=True)
        rows = torch.cat([batches.batch(i).images for i in range(240 // batch_size)])
        return [bool(row[0, 0, 0] > row[0, 0, 1]) for row in rows]

    flips = mirrored(4)
    assert flips == mirrored(24)
    assert 80 < sum(flips) < 160  # 240 fair coins: ten standard deviations either way would be 35 … 205


def test_flip_mirrors_width(images: ImageSet) -> None:
    plain = DeviceBatches(images, 10, seed=0).batch(0).images
    flipped = DeviceBatches(images, 10, seed=0, flip=True).batch(0).images
    for row, other in zip(plain, flipped, strict=True):
        assert torch.equal(other, row) or torch.equal(other, row.flip(-1))


def test_share_of_a_batch_is_its_rows(images: ImageSet) -> None:
    batches = DeviceBatches(images, 8, seed=2, flip=True)
    whole, labels, *_ = batches.batch(3)
    part, part_labels, index, share = batches.batch(3, first=2, count=4)
    assert (index.tolist(), share) == ([2, 3, 4, 5], 4 / batches.batch_size)
    assert labels is not None
    assert part_labels is not None
    assert torch.equal(part, whole[2:6])
    assert torch.equal(part_labels, labels[2:6])


def test_resident_and_staged_give_the_same(images: ImageSet) -> None:
    staged = DeviceBatches(images, 7, seed=0, flip=True, resident=False)
    resident = DeviceBatches(images, 7, seed=0, flip=True, resident=True)
    for i in range(4):
        ours, theirs = staged.batch(i), resident.batch(i)
        assert torch.equal(ours.images, theirs.images)
        assert ours.labels is not None
        assert theirs.labels is not None
        assert torch.equal(ours.labels, theirs.labels)


def test_read_only_pixels_are_taken(images: ImageSet) -> None:
    images.images.flags.writeable = False
    assert DeviceBatches(images, 4, seed=0).batch(0).images.shape == (4, 3, 2, 2)


def test_attribute_as_label(images: ImageSet) -> None:
    plain = stream(DeviceBatches(images, 10, seed=0), 1)
    labels = DeviceBatches(images, 10, seed=0, label_from="large").batch(0).labels
    assert labels is not None
    assert labels.tolist() == [2 if number >= 7 else 1 for number in plain]


def test_without_labels() -> None:
    images = ImageSet(images=np.zeros((3, 2, 2, 1), np.uint8), labels=None, name="x", split="train", source="")
    assert DeviceBatches(images, 2, seed=0).batch(0).labels is None


def test_bad_requests_are_explained(images: ImageSet) -> None:
    with pytest.raises(UserError, match="batch size 0"):
        DeviceBatches(images, 0, seed=0)
    with pytest.raises(UserError, match=r"'small'.*large"):
        DeviceBatches(images, 1, seed=0, label_from="small")
    with pytest.raises(UserError, match="no image"):
        DeviceBatches(images.subset([]), 1, seed=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resident", [True, False])
def test_gpu_gives_the_cpu_batches(images: ImageSet, resident: bool) -> None:
    expected = DeviceBatches(images, 7, seed=0, flip=True).batch(2)
    x, labels, *_ = DeviceBatches(images, 7, seed=0, device="cuda", flip=True, resident=resident).batch(2)
    assert labels is not None
    assert expected[1] is not None
    assert x.is_cuda
    assert torch.equal(x.cpu(), expected[0])
    assert torch.equal(labels.cpu(), expected[1])
