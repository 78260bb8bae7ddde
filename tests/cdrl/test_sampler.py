"""Progressive sampling against its plain transcription, and what a sample may depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.drl import drl_settings, released_network
from cdrl import conditions
from cdrl.conditions import Condition
from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from cdrl.langevin import Langevin
from cdrl.method import Batch
from tests import reference
from tests.reference import EXACT

Build = Callable[..., Cooperative]
LABELS = torch.tensor([1, 3, 2, 2, 1])
NONE = torch.zeros_like(LABELS)
N = 100

CASES: dict[str, tuple[dict[str, Any], Condition | None, list[tuple[float, Tensor | None]]]] = {
    "unconditional": ({}, None, [(1.0, None)]),
    "official denoise": ({"last_denoise": "official"}, None, [(1.0, None)]),
    "no denoise": ({"last_denoise": "none"}, None, [(1.0, None)]),
    "live spectral norm": ({"spectral_ema": "live"}, None, [(1.0, None)]),
    "null label": ({"classes": 3}, None, [(1.0, None)]),
    "labelled": ({"classes": 3}, conditions.labelled(LABELS), [(1.0, LABELS)]),
    "guided": ({"classes": 3}, conditions.guided(LABELS, 1.5), [(2.5, LABELS), (-1.5, NONE)]),
    "composed": (
        {"classes": 3},
        conditions.composed(torch.stack((LABELS, LABELS % 3 + 1)), (3.0, -0.5)),
        [(-1.5, NONE), (3.0, LABELS), (-0.5, LABELS % 3 + 1)],
    ),
    "drl": ({"initializer": False, **vars(drl_settings(chain=Langevin(4, 5e-3)))}, None, [(1.0, None)]),
    "drl-as-released": (
        {"initializer": False, "energy": released_network(), **vars(drl_settings(chain=Langevin(4, 5e-3)))},
        None,
        [(1.0, None)],
    ),
}


@pytest.fixture
def trained(cooperative: Build) -> Callable[..., tuple[Cooperative, reference.State]]:
    """A method and a reference, both two iterations into training, so that averages differ from live weights."""

    def build(**settings: Any) -> tuple[Cooperative, reference.State]:
        method = cooperative(**settings, dtype=torch.float64)
        state = reference.state_of(method)
        images = 2 * torch.rand(6, 1, 8, 8, dtype=torch.float64) - 1
        for iteration in range(2):
            method.train_step([Batch.whole(images)], iteration)
            reference.reference_step(state, images, None, iteration)
        return method, state

    return build


@pytest.mark.parametrize("case", CASES)
def test_sampler_matches_the_reference(case: str, trained: Callable[..., tuple[Cooperative, reference.State]]) -> None:
    settings, condition, concepts = CASES[case]
    method, state = trained(**settings)
    index = torch.arange(5)
    actual = method.sampler()(index, 11, condition)
    expected = reference.reference_sample(state, index, 11, (1, 8, 8), concepts)
    assert int((expected.abs() < 1).sum()) > 16  # clamped pixels prove nothing
    torch.testing.assert_close(actual, expected, rtol=0, atol=EXACT)


def test_a_sample_does_not_depend_on_its_batch(cooperative: Build) -> None:
    """Equal noise to the last bit; the networks' sums may be grouped by batch size."""
    method = cooperative(classes=3, dtype=torch.float64)
    condition = conditions.guided(torch.arange(7) % 4, 0.7)
    whole = torch.cat(list(method.sample(7, 5, condition, batch_size=7)))
    for options in ({"batch_size": 1}, {"batch_size": 5}, {"first": 4}):
        part = torch.cat(list(method.sample(7, 5, condition, **options)))
        torch.testing.assert_close(part, whole[-len(part) :], rtol=0, atol=EXACT)


def test_seeds_and_images_differ_and_repeat(cooperative: Build) -> None:
    sampler = cooperative().sampler()
    images = sampler(torch.arange(3), 0)
    assert torch.equal(images, sampler(torch.arange(3), 0))
    assert not torch.equal(images, sampler(torch.arange(3), 1))
    assert len(images.flatten(1).unique(dim=0)) == 3


def test_live_weights_and_averages_are_different_samplers(
    trained: Callable[..., tuple[Cooperative, reference.State]],
) -> None:
    method, _ = trained()
    average, live = method.sampler()(torch.arange(2), 0), method.sampler(live=True)(torch.arange(2), 0)
    assert not torch.allclose(average, live, atol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("repeats", [0, 2])
def test_known_pixels_stay_exact_and_follow_the_noise_levels(shared: bool, repeats: int, cooperative: Build) -> None:
    sampler = cooperative(shared_noise=shared).sampler()
    image, mask = 2 * torch.rand(N, 1, 8, 8) - 1, torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., :3] = True
    levels: dict[int, Tensor] = {}

    def observe(stage: str, level: int, images: Tensor) -> None:
        if stage in ("noise", "refined"):
            levels[level] = images

    condition = conditions.unconditional().inpainting(image, mask, repeats)
    result = sampler(torch.arange(N), 0, condition, observe)
    assert torch.equal(result[..., :3], image[..., :3])
    schedule, noise = sampler.schedule, {}
    for t, images in levels.items():
        noise[t] = ((images - schedule.alpha[t] * image) / schedule.sigma[t])[..., :3].flatten()
        assert float(noise[t].mean()) == pytest.approx(0.0, abs=0.07)
        assert float(noise[t].std()) == pytest.approx(1.0, abs=0.07)
    for t in range(1, 7) if repeats == 0 else ():
        correlation = float(torch.corrcoef(torch.stack((noise[t - 1], noise[t])))[0, 1])
        exact = 1.0 if shared else float(schedule.a[t] * schedule.sigma[t - 1] / schedule.sigma[t])
        assert correlation == pytest.approx(exact, abs=0.07)


def test_an_image_wholly_known_comes_back(cooperative: Build) -> None:
    image = 2 * torch.rand(3, 1, 8, 8) - 1
    condition = conditions.unconditional().inpainting(image, torch.ones(1, 1, 8, 8, dtype=torch.bool))
    assert torch.equal(cooperative().sampler()(torch.arange(3), 0, condition), image)


def test_observer_sees_every_stage_in_order(cooperative: Build) -> None:
    seen: list[tuple[str, int]] = []
    cooperative().sampler()(torch.arange(1), 0, observe=lambda stage, level, images: seen.append((stage, level)))
    descent = [(stage, level) for level in range(5, -1, -1) for stage in ("proposal", "refined")]
    assert seen == [("noise", 6), *descent, ("sample", 0)]


def test_conditions_that_do_not_fit_are_refused(cooperative: Build) -> None:
    sampler = cooperative(classes=3).sampler()
    with pytest.raises(UserError, match="1 … 3"):
        sampler(torch.arange(2), 0, conditions.labelled([1, 4]))
    with pytest.raises(UserError, match="too few for image 4"):
        sampler(torch.arange(5), 0, conditions.labelled([1, 2]))
    with pytest.raises(UserError, match="last_denoise"):
        replace(sampler, last_denoise="twice")


def test_live_weights_are_sampled_without_dropout(cooperative: Build) -> None:
    method = cooperative(dropout=0.5)
    method.train_step([Batch.whole(torch.zeros(2, 1, 8, 8))], 0)
    first, again = (method.sampler(live=True)(torch.arange(3), 0) for _ in range(2))
    assert torch.equal(first, again)


def test_networks_that_know_different_things_are_refused(cooperative: Build) -> None:
    method, other = cooperative(), cooperative(classes=3)
    with pytest.raises(UserError, match="knows 1 channels and 0 classes"):
        Cooperative(method.energy_net, other.initializer, method.settings, method.learners["energy"].settings)
