"""Diffusion recovery likelihood (Gao et al. 2021): CDRL without its three additions, and the network as released.

No initializer (a chain starts where it is, at x_t), pairs with independent noise, and the linear-β schedule; chains are
twice as long with half the step variance, there is no last denoise, and the noise is scaled by 0.99 in sampling.

    method drl                 these on CDRL's energy network with CDRL's optimiser
    method drl_as_released     these on the authors' network (`released_network`) with their optimiser

The second gives the energies and gradients of the authors' TensorFlow code (tests/baselines/test_drl_released.py). Two
differences to it are left. The release makes a power iteration in every pass of the network, 33 in an iteration of
K = 30 steps; here as many are made before the iteration, so that all its passes see one function: docs/architecture.md
says what that changes. And samples become 8-bit numbers by rounding, as for every method (a matter of the protocols),
where the release truncates and so is half a grey level darker.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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


def released_network(levels: int = 6) -> dict[str, Any]:
    """The arguments of `cdrl.networks.EnergyNet`, beside its sizes, that make it the released network."""
    return {
        "levels": tuple(linear_beta(levels).logsnr[:-1].tolist()),
        "closed": True,
        "time_activation": False,
        "readout_bias": True,
        "glorot": True,
    }
