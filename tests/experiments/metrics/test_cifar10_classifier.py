"""The classifier of CIFAR-10 at 16×16 pixels: the weights that come with the repository, and what they see."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from numpy.typing import NDArray

from cdrl.errors import UserError
from experiments.data import ImageSet, load
from experiments.files import sha256
from experiments.metrics import Extractor, Scorer, build, protocols, weights
from experiments.metrics.extractors import cifar10
from experiments.metrics.extractors.cifar10 import FILE, RECIPE, SHA256, train

PROTOCOL = protocols.load("fd-cifar10-16")


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    return build("cifar10-16", tmp_path_factory.mktemp("cache"))


def blurred_noise(n: int) -> NDArray[np.uint8]:
    """``n`` images of 2×2 squares of random colours, every pixel a little different."""
    random = np.random.RandomState(0)
    coarse = random.randint(30, 226, (n, 2, 2, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return (coarse + random.randint(-20, 21, (n, 16, 16, 3))).astype(np.uint8)


def about() -> dict[str, str]:
    with safetensors.safe_open(FILE, "pt") as file:
        return json.loads(file.metadata()["record"])


def test_the_weights_come_with_the_repository(extractor: Extractor) -> None:
    assert extractor.sha256 == SHA256 == sha256(FILE)
    assert FILE.stat().st_size < 350_000
    tensors = weights.load(FILE)
    assert tensors is not None
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert sum(parameter.numel() for parameter in cifar10.Network(RECIPE.width).parameters()) < 150_000


def test_the_file_says_how_good_it_is_and_how_it_was_made() -> None:
    facts = about()
    accuracy, _, images = facts["accuracy"].partition(" of ")
    assert float(accuracy) > 0.7
    assert images == "10000 test images"
    assert "13ce6883715e7e5d" in facts["data"]
    assert facts["recipe"] == str(vars(RECIPE))


def test_its_verdicts_are_those_of_the_day_it_was_made(extractor: Extractor) -> None:
    probabilities = extractor(blurred_noise(24)).probabilities
    assert probabilities is not None
    first, second = probabilities.topk(2).values.T
    sure = first - second > 0.02  # whatever the processor's rounding
    assert sure.sum() >= 20
    verdicts = probabilities.argmax(dim=1)
    assert torch.equal(verdicts[sure], torch.tensor(VERDICTS)[sure])


VERDICTS = [0, 5, 0, 2, 3, 0, 0, 2, 2, 2, 0, 3, 3, 2, 0, 2, 3, 2, 4, 2, 3, 2, 4, 0]


def test_features_are_a_function_of_the_image_alone(extractor: Extractor) -> None:
    images = blurred_noise(20)
    whole = extractor(images).features
    assert whole.shape == (20, extractor.dim)
    assert torch.equal(extractor(images[3:5]).features, whole[3:5])


def test_other_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    other = tmp_path / FILE.name
    content = bytearray(FILE.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    for path, words in ((other, f"has SHA-256 {sha256(other)}, not {SHA256}"), (tmp_path / "none", "no weight file")):
        with pytest.raises(UserError, match=words) as error:
            build("cifar10-16", tmp_path, weights=path)
        assert "\n" not in str(error.value)
    assert build("cifar10-16", tmp_path, weights=other, expected=sha256(other)).sha256 == sha256(other)


def test_images_of_other_sizes_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    images = ImageSet(np.zeros((4, 8, 8, 3), np.uint8), None, "small", "train", "made up")
    with pytest.raises(UserError, match="fd-cifar10-16 cannot look at 8x8 images of 3 channels") as error:
        Scorer(PROTOCOL, images, tmp_path)
    assert "\n" not in str(error.value)


def test_classes_alone_need_no_reference_statistics(extractor: Extractor, tmp_path: Path) -> None:
    images = ImageSet(blurred_noise(24), None, "squares", "train", "made up")
    scorer = Scorer(PROTOCOL.judge, images, tmp_path, extractor=extractor)
    predicted = extractor(images.images).probabilities
    assert predicted is not None
    labels = predicted.argmax(dim=1)
    labels[:6] = (labels[:6] + 1) % 10
    scorer.update(images.images, labels)
    assert scorer.result() == {"class_accuracy": pytest.approx(18 / 24)}
    assert scorer.reference_samples == 0
    assert not list(tmp_path.iterdir())


def test_training_again_gives_the_same_weights() -> None:
    labels = np.arange(64) % 10
    images = ImageSet(blurred_noise(64), labels, "squares", "train", "made up", tuple("0123456789"))
    recipe = replace(RECIPE, epochs=1, width=8, batch_size=16)
    torch.manual_seed(1)
    first = train(images, recipe).state_dict()
    torch.manual_seed(2)
    again = train(images, recipe).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = train(images, replace(recipe, seed=1)).state_dict()
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.skipif("CDRL_DATA_CIFAR10" not in os.environ, reason="CDRL_DATA_CIFAR10 names no folder")
@pytest.mark.slow
def test_its_accuracy_on_test_images_is_what_the_file_says(extractor: Extractor, tmp_path: Path) -> None:
    images = load("cifar10", "test", data_cache=tmp_path, size=cifar10.SIZE)
    said = float(about()["accuracy"].partition(" of ")[0])
    assert cifar10.accuracy(extractor, images) == pytest.approx(said, abs=5e-4)
