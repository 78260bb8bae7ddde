"""The digits classifier, and ``fd-digits`` between its floor and its ceiling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.data import load
from experiments.metrics import Extractor, Scorer, build, protocols
from experiments.metrics.extractors.digits import RECIPE, train
from tests import sensitivity


def _accuracy(extractor: Extractor, split: str) -> float:
    images = load("digits", split)
    probabilities = extractor(images.images).probabilities
    assert probabilities is not None
    return float((probabilities.argmax(dim=1).numpy() == images.labels).mean())


def test_held_out_digits_are_recognised(digits: Extractor) -> None:
    assert _accuracy(digits, "test") >= 0.97


def test_training_again_gives_the_same_weights() -> None:
    images, recipe = load("digits", "train"), replace(RECIPE, epochs=2)
    torch.manual_seed(1)
    first = train(images, recipe).state_dict()
    torch.manual_seed(2)
    expected_draw = torch.rand(1)
    torch.manual_seed(2)
    again = train(images, recipe).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(torch.rand(1), expected_draw), "training must leave the caller's random numbers alone"


def test_weights_are_kept_and_a_damaged_file_is_made_again(digits: Extractor, cache: Path) -> None:
    (path,) = (cache / "weights").glob("digits-*.safetensors")
    written = path.stat().st_mtime_ns
    assert build("digits", cache).sha256 == digits.sha256
    assert path.stat().st_mtime_ns == written
    path.write_bytes(path.read_bytes()[:1000])
    assert build("digits", cache).sha256 == digits.sha256


def test_features_do_not_depend_on_the_batch(digits: Extractor) -> None:
    images = load("digits", "test").images[:32]
    whole = digits(images)
    assert whole.features.shape == (32, digits.dim)
    assert whole.features.dtype == torch.float32
    part = torch.from_numpy(images[5:9]).float()
    change = sensitivity.of(lambda pixels: digits(pixels).features, part, roundings=100)
    assert sensitivity.distance(digits(part).features, whole.features[5:9]) < change


def test_floor_and_ceiling_lie_far_apart(digits: Extractor, cache: Path) -> None:
    protocol, training, held_out = protocols.load("fd-digits"), load("digits", "train"), load("digits", "test")

    def score(pixels: np.ndarray, labels: np.ndarray | None = None) -> dict[str, float]:
        scorer = Scorer(protocol, training, cache, extractor=digits)
        scorer.update(pixels, labels)
        return scorer.result()

    random = np.random.RandomState(0)
    gaussian = np.clip(random.randn(1000, 8, 8, 1) * 127.5 + 127.5, 0, 255).astype(np.uint8)
    half_formed = np.concatenate([held_out.images[:250, :4], held_out.images[250:, 4:]], axis=1)
    floor, ceiling = score(held_out.images, held_out.labels), score(gaussian)
    assert floor["fd"] < 0.03 * ceiling["fd"]
    assert 0.1 * ceiling["fd"] < score(half_formed)["fd"] < ceiling["fd"]
    assert floor["kid"] < 0.05 * ceiling["kid"]
    assert floor["precision"] > 0.8 > 0.2 > ceiling["precision"]
    assert floor["class_accuracy"] >= 0.97
    assert "class_accuracy" not in ceiling


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 1)), np.zeros((2, 8, 8, 3), np.uint8)]
)
def test_other_arrays_than_grey_pixels_are_refused(digits: Extractor, pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"pixels must be|channels"):
        digits(pixels)
