"""Concepts: the slant against sheared bars, and labels that say something true of each image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cdrl.errors import UserError
from experiments import data
from experiments.data import attributes


@pytest.fixture(scope="module")
def digits() -> data.ImageSet:
    return data.load("digits", "train")


def bar(shift: float, size: int = 9) -> np.ndarray:
    """A vertical bar of ink whose column moves by ``shift`` pixels to the right for each row upwards."""
    image = np.zeros((1, size, size, 1), np.uint8)
    for row in range(size):
        image[0, row, round((size - 1) / 2 + shift * ((size - 1) / 2 - row))] = 200
    return image


@pytest.mark.parametrize("shift", [-1.0, -0.5, 0.0, 1.0])
def test_shear_of_a_bar_is_its_slope(shift: float) -> None:
    assert attributes.shear(bar(shift))[0] == pytest.approx(shift, abs=0.06)


def test_slant_of_leaning_bars() -> None:
    assert attributes.slant(np.concatenate([bar(-0.5), bar(-0.04), bar(0.5)])).tolist()[0::2] == [0, 2]


def test_no_ink_has_no_shear() -> None:
    assert attributes.shear(np.zeros((2, 8, 8, 1), np.uint8)).tolist() == [0.0, 0.0]


def test_limits_are_the_training_terciles(digits: data.ImageSet) -> None:
    expected = np.quantile(attributes.shear(digits.images), [1 / 3, 2 / 3])
    assert expected == pytest.approx(attributes.SLANT_LIMITS, abs=1e-4)


def test_kinds_number_all_values_through(digits: data.ImageSet) -> None:
    first, second = attributes.kinds(digits, ["class", "slant"])
    assert (first.first, second.first, attributes.count(digits, ["class", "slant"])) == (1, 11, 13)
    assert second.label(2) == 13


def test_attributes_become_two_values() -> None:
    images = np.zeros((3, 4, 4, 3), np.uint8)
    faces = data.ImageSet(
        images, None, "faces", "train", "", attributes=np.array([[1], [0], [1]], bool), attribute_names=("Male",)
    )
    (kind,) = attributes.kinds(faces, ["Male"])
    assert kind.values == ("not Male", "Male")
    assert kind.of.tolist() == [1, 0, 1]
    with pytest.raises(UserError, match="no kind of concept 'slant'"):
        attributes.kinds(faces, ["slant"])


def test_batches_say_true_things_of_each_kind(digits: data.ImageSet) -> None:
    concepts = attributes.kinds(digits, ["class", "slant"])
    plain = data.DeviceBatches(digits, 64, seed=3)
    labelled = attributes.ConceptBatches(data.DeviceBatches(digits, 64, seed=3), ["class", "slant"])
    images, labels, *_ = labelled.batch(30)
    assert torch.equal(images, plain.batch(30).images)
    rows = plain.indices(30 * 64, 64).numpy()
    for row, label in zip(rows, labels.tolist(), strict=True):
        assert label in (1 + digits.labels[row], 11 + concepts[1].of[row])
    assert 16 < int((labels > 10).sum()) < 48


def test_a_share_of_a_batch_has_the_same_labels(digits: data.ImageSet) -> None:
    labelled = attributes.ConceptBatches(data.DeviceBatches(digits, 10, seed=0), ["class", "slant"])
    whole, part = labelled.batch(2).labels, labelled.batch(2, first=4, count=3).labels
    assert torch.equal(whole[4:7], part)


def test_tone_by_red_and_blue() -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[0, :2, :, 2], images[1, 0, :, 0] = 90, 40
    assert attributes.tone(images).tolist() == [0, 1]
