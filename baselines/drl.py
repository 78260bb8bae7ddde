"""Diffusion recovery likelihood (Gao et al. 2021): CDRL without its three additions.

No initializer (a chain starts where it is, at x_t), pairs with independent noise, and the linear-β schedule; chains are
twice as long with half the step variance, there is no last denoise, and the noise is scaled by 0.99 in sampling.
"""

from __future__ import annotations

from dataclasses import replace

from cdrl.cooperative import Settings
from cdrl.langevin import Langevin
from cdrl.noise import linear_beta

TEST_NOISE_SCALE = 0.99


def drl_settings(
    levels: int = 6, chain: Langevin | None = None, test_noise_scale: float = TEST_NOISE_SCALE
) -> Settings:
    """DRL's switches for `cdrl.cooperative.Cooperative` with ``initializer=None``; the defaults are as released."""
    chain = chain or Langevin(steps=30, step_variance=2e-4)
    return Settings(
        schedule=linear_beta(levels),
        shared_noise=False,
        chain=chain,
        sampling=replace(chain, noise_scale=test_noise_scale),
        last_denoise="none",
    )
