"""What lies far outside the range of images is no image, and nothing that is not finite becomes pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from cdrl import pictures
from cdrl.bounds import OUTSIDE, RUNAWAY, Range, clamped, watched
from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from cdrl.langevin import Langevin


def test_images_are_clamped_and_those_that_ran_away_are_nan_as_a_whole() -> None:
    x = torch.randn(5, 1, 4, 4)
    for image, value in ((1, math.nan), (2, math.inf), (3, -1.01 * RUNAWAY), (4, 0.99 * RUNAWAY)):
        x[image, 0, 2, 3] = value
    actual = clamped(x)
    assert torch.equal(actual[[0, 4]], x[[0, 4]].clamp(-1, 1))
    assert bool(actual[1:4].isnan().all())


def test_what_is_outside_is_counted_where_somebody_watches() -> None:
    x = torch.zeros(4, 1, 4, 4)
    for image, value in ((1, 1.01 * OUTSIDE), (2, -0.99 * OUTSIDE), (3, math.nan)):
        x[image, 0, 0, 0] = value
    with watched(seen := Range()):
        clamped(x)
        clamped(x[:1])
    clamped(x)
    assert seen == Range(images=5, outside=2)


@pytest.mark.parametrize("noise_scale", [1e5, 1e30])
def test_a_chain_that_runs_away_gives_no_image(cooperative: Callable[..., Cooperative], noise_scale: float) -> None:
    method = cooperative(sampling=Langevin(steps=2, step_variance=1e-2, noise_scale=noise_scale))
    (images,) = method.sample(3, seed=0)
    assert bool(images.isnan().all())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nothing_but_numbers_becomes_pixels(value: float) -> None:
    images = torch.zeros(2, 1, 4, 4)
    images[1, 0, 1, 1] = value
    for convert in (pictures.to_uint8, pictures.unscale):
        with pytest.raises(UserError, match="not finite"):
            convert(images)
    assert pictures.to_uint8(1e30 * torch.ones(1, 1, 2, 2)).tolist() == [[[[255], [255]], [[255], [255]]]]
