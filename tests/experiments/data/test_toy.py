"""The toy densities integrate to one, agree with their own draws, and take noise as they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cdrl.errors import UserError
from experiments import data
from experiments.data import PointBatches, PointSet
from experiments.data.sets.toy import DENSITIES, Boxes, Gaussians, density

NOISE = [(1.0, 0.0), (0.6, 0.0), (1.0, 0.05), (0.6, 0.8)]


def cells(half: float, count: int) -> tuple[np.ndarray, float]:
    axis = (np.arange(count) + 0.5) * 2 * half / count - half
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2), (2 * half / count) ** 2


@pytest.mark.parametrize("name", sorted(DENSITIES))
@pytest.mark.parametrize(("alpha", "sigma"), NOISE)
def test_integrates_to_one(name: str, alpha: float, sigma: float) -> None:
    centres, area = cells(alpha + 5 * sigma, 120)
    assert np.exp(density(name).log_density(centres, alpha, sigma)).sum() * area == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("name", sorted(DENSITIES))
def test_density_is_that_of_the_draws(name: str) -> None:
    known, random = density(name), np.random.RandomState(0)
    x = 0.8 * known.draw(20_000, random) + 0.3 * random.standard_normal((20_000, 2))
    centres, area = cells(1.0, 8)
    counts, _, _ = np.histogram2d(x[:, 1], x[:, 0], bins=8, range=[[-1, 1], [-1, 1]])
    fine = np.exp(known.log_density(cells(1.0, 64)[0], 0.8, 0.3)).reshape(8, 8, 8, 8).mean(axis=(1, 3))
    assert len(centres) == 64
    np.testing.assert_allclose(counts / len(x), fine * area, atol=5 * np.sqrt(0.05 / len(x)))


def test_boxes_without_noise_and_in_the_far_tail() -> None:
    square = Boxes(np.array([[0.0, 0.0]]), 0.5)
    inside, outside = np.array([[0.1, 0.4]]), np.array([[0.6, 0.1]])
    assert square.log_density(inside) == pytest.approx([np.log(4)])
    assert np.isneginf(square.log_density(outside)).all()
    assert np.isfinite(square.log_density(np.array([[2.0, 2.0], [-1.5, -1.5]]), 1.0, 0.05)).all()


def test_a_single_gaussian() -> None:
    known = Gaussians(np.array([[0.3, -0.2]]), 0.5)
    x = np.array([[0.1, 0.7]])
    law = torch.distributions.MultivariateNormal(torch.tensor([0.24, -0.16]), (0.16 + 0.09) * torch.eye(2))
    assert known.log_density(x, 0.8, 0.3) == pytest.approx(law.log_prob(torch.tensor(x).float()).numpy(), rel=1e-5)


def test_loads_as_images_of_one_pixel() -> None:
    train = data.load("checkerboard", "train")
    assert isinstance(train, PointSet)
    assert (train.image_size, train.channels, train.classes) == (1, 2, 0)
    assert np.abs(train.points).max() < 1
    assert train.checksum == data.load("checkerboard", "train").checksum != data.load("checkerboard", "test").checksum


def test_batches_do_not_depend_on_their_split() -> None:
    batches = PointBatches(data.load("rings", "test"), 8, seed=3)  # type: ignore[arg-type]
    whole = batches.batch(5)
    assert whole.labels is None
    assert whole.images.shape == (8, 2, 1, 1)
    halves = torch.cat([batches.batch(5, 0, 3).images, batches.batch(5, 3).images])
    assert torch.equal(whole.images, halves)
    assert not torch.equal(whole.images, batches.batch(6).images)


def test_unknown_density() -> None:
    with pytest.raises(UserError, match="density of 'digits'"):
        density("digits")
