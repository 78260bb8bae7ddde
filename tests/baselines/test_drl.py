"""DRL's published settings, and how little of CDRL is left (test_cooperative and test_sampler run its iterations)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from baselines.drl import drl_settings
from cdrl.cooperative import Cooperative
from cdrl.langevin import Langevin


def test_published_settings() -> None:
    settings = drl_settings()
    assert settings.schedule.name == "linear_beta"
    assert not settings.shared_noise
    assert settings.chain == Langevin(steps=30, step_variance=2e-4)
    assert settings.sampling == Langevin(steps=30, step_variance=2e-4, noise_scale=0.99)
    assert settings.last_denoise == "none"
    assert drl_settings(levels=3).schedule.levels == 3


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
