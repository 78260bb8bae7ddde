"""What lies between two neighbouring levels: the pair, the proposal, the chain, and the density they all speak of.

    pair        (x_{t−1}, x_t) of an image
    proposal    ŷ = g(x_t; λ_t) + τ_t z, or x_t itself without an initializer
    chain       K Langevin steps from ŷ to the refined ỹ, tethered to x_t
    density     log p(y | x_t) = f(y; λ_{t−1})/s_t² − |y − x_t|²/(2β_t)      s_t² = b² (σ_{t−1}/σ_0) β_t

(Gao et al. 2021, section 3; Zhu et al. 2024, eq. 6.) Training, sampling, densities and evaluations all take them from
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cdrl import langevin
from cdrl.langevin import Chain, KnownPixels, Langevin
from cdrl.networks.energy import FrozenEnergy
from cdrl.noise import NoiseSchedule, independent_pair, per_image, posterior, same_noise, shared_noise_pair
from cdrl.randomness import Draws


class Pair(NamedTuple):
    """An image at two neighbouring levels, each ``(B, C, H, W)``."""

    lower: Tensor
    """x_{t−1}."""
    upper: Tensor
    """x_t."""


@dataclass(frozen=True)
class Transitions:
    """The moves between the levels of one process.

    Attributes:
        schedule: noise levels, on the images' device and in their type.
        chain: steps and step size.
        shared_noise: one noise for both members of a pair (CDRL's variance reduction), or independent draws (DRL's).
    """

    schedule: NoiseSchedule
    chain: Langevin
    shared_noise: bool = True

    def pair(self, x0: Tensor, level: Tensor, draws: Draws) -> Pair:
        """Images ``(B, C, H, W)`` in [−1, 1] at levels t − 1 and t; ``level`` is t in 1 … T, int64 ``(B,)``."""
        noise = draws.normal("pair")
        if self.shared_noise:
            return Pair(*shared_noise_pair(self.schedule, x0, level, noise))
        return Pair(*independent_pair(self.schedule, x0, level, noise, draws.normal("posterior")))

    def partner(self, x0: Tensor, upper: Tensor, level: Tensor, draws: Draws) -> Tensor:
        """x_{t−1} of known images given their x_t (``upper``), as in a training pair; arguments as in `pair`."""
        if self.shared_noise:
            return same_noise(self.schedule, x0, upper, level)
        return posterior(self.schedule, x0, upper, level, draws.normal("known"))

    def scaled(self, lower: Tensor, level: Tensor) -> Tensor:
        """``y = scale_t x_{t−1}``, the unit in which energies and chains live."""
        return per_image(self.schedule.scale[level]) * lower

    def proposal(self, mean: Tensor, level: Tensor, draws: Draws) -> Tensor:
        """The initializer's draw ŷ around its ``mean``, ``(B, C, H, W)``."""
        return mean + per_image(self.schedule.proposal_std[level]) * draws.normal("proposal")

    def walk(
        self,
        energy: FrozenEnergy,
        start: Tensor,
        upper: Tensor,
        level: Tensor,
        draws: Draws,
        known: KnownPixels | None = None,
    ) -> Chain:
        """The chain from a proposal to level t − 1, for an engine to run.

        Args:
            energy: at the log-SNR of level t − 1.
            start: ŷ, ``(B, C, H, W)``.
            upper: x_t, which the tether pulls to.
            level: t in 1 … T, int64 ``(B,)``.
            draws: of the chain's noise.
            known: pixels that stay as they are.
        """
        return Chain(
            energy=energy,
            start=start,
            anchor=upper,
            constants=langevin.coefficients(self.schedule, level, self.chain),
            streams=draws.streams("chain", self.chain.steps),
            image_index=draws.index,
            known=known,
        )

    def step_variance(self, level: Tensor | int) -> Tensor:
        """s_t², the energy's scale, of any shape that ``level`` has."""
        return self.chain.step_variance * self.schedule.unit_step[level].square()

    def tether(self, level: Tensor) -> Tensor:
        """1/β_t, the precision of the pull towards x_t; 0 at the top. ``(B,)``."""
        return torch.where(level < self.schedule.levels, 1.0 / self.schedule.beta[level], 0.0)

    def energy_loss(self, gap: Tensor, level: Tensor) -> Tensor:
        """mean_i w_t (f(ỹ_i) − f(y⁺_i)) of the gaps f(y⁺) − f(ỹ), ``(B,)``; its gradient is minus the likelihood's."""
        return -(self.schedule.loss_weight[level] * gap).mean()
