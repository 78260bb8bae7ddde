"""DRL's published settings, and how little of CDRL is left (test_cooperative and test_sampler run its iterations)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from baselines.drl import drl_settings
from cdrl.cooperative import Cooperative
from cdrl.langevin import Langevin
from cdrl.learner import Optimisation
from cdrl.method import Batch
from cdrl.model import energy_sizes
from cdrl.noise import linear_beta
from cdrl.recipe import CooperativeRecipe, ImageShape


def test_published_settings() -> None:
    settings = drl_settings()
    assert settings.schedule.name == "linear_beta"
    assert not settings.shared_noise
    assert settings.chain == Langevin(steps=30, step_variance=2e-4)
    assert settings.sampling == Langevin(steps=30, step_variance=2e-4, noise_scale=0.99)
    assert settings.last_denoise == "none"
    assert drl_settings(levels=3).schedule.levels == 3


@pytest.mark.parametrize("levels", [1, 1000])
def test_one_level_or_a_thousand_train_and_sample(levels: int) -> None:
    """As DRL's T1 and T1k rows: the top of a thousand levels is noise alone."""
    recipe = CooperativeRecipe(
        levels=levels,
        schedule="linear_beta",
        shared_noise=False,
        last_denoise="none",
        chain=Langevin(steps=1, step_variance=2e-4),
        energy={"width": 4, "multipliers": (1,), "blocks": 1, "closed": True, "readout_bias": True},
        numbered_levels=True,
        initializer=None,
        optimisation=Optimisation(warm_up=0, power_iterations=3),
    )
    method = recipe.build(ImageShape(size=4, channels=1), iterations=2)
    for iteration in range(2):
        method.train_step([Batch.whole(torch.rand(64, 1, 4, 4) * 2 - 1)], iteration)
    assert all(value.isfinite().all() for value in method.state().values())
    (samples,) = method.sample(2, seed=0)
    assert samples.shape == (2, 1, 4, 4)
    # Two iterations teach a thousand levels nothing: they only magnify the noise, by 1/α_T, to what is no picture.
    assert bool(samples.isfinite().all()) == (levels == 1)


@pytest.mark.parametrize("levels", [3, 6])
def test_a_recipe_tells_the_network_its_levels(levels: int) -> None:
    recipe = CooperativeRecipe(
        levels=levels,
        schedule="linear_beta",
        energy={"width": 4, "multipliers": (1,), "blocks": 1},
        numbered_levels=True,
        initializer=None,
    )
    network = recipe.build(ImageShape(size=4, channels=1)).learners["energy"].network
    assert energy_sizes(network)["levels"] == linear_beta(levels).logsnr[:-1].tolist()


def test_chains_start_at_x_t(cooperative: Callable[..., Cooperative]) -> None:
    chain = Langevin(steps=2, step_variance=2e-4)
    method = cooperative(initializer=False, **vars(drl_settings(chain=chain)))
    seen: dict[tuple[str, int], torch.Tensor] = {}
    method.sampler()(torch.arange(2), 0, observe=lambda stage, level, x: seen.update({(stage, level): x}))
    assert torch.equal(seen["proposal", 5], seen["noise", 6])
    for t in range(1, 6):
        torch.testing.assert_close(seen["proposal", t - 1] * method.schedule.scale[t], seen["refined", t])
    torch.testing.assert_close(seen["sample", 0], seen["refined", 0].clamp(-1, 1))
    assert set(method.learners) == {"energy"}
    assert method.sampling_cost == 12
