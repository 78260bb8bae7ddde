"""Sampling: all levels from pure noise to a clean image, and the last denoise.

    x_T ~ N(0, I);   for t = T … 1:   ŷ = g(x_t; λ_t) + τ_t z,   ỹ = chain(ŷ),   x_{t−1} = ỹ / scale_t
    x ← (x_0 + σ_0² ∇ log p(x_0)) / α_0,   log p(x_0) = f(a_1 x_0; λ_0) / s_1²          (Tweedie)

(Zhu et al. 2024, algorithm 2 and appendix A.2.) Every draw is a function of (seed, image index, level, step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from cdrl import conditions
from cdrl.bounds import clamped
from cdrl.conditions import Condition
from cdrl.cost import forward_share
from cdrl.errors import UserError
from cdrl.fast import EAGER, Engine
from cdrl.langevin import KnownPixels, Langevin
from cdrl.networks import EnergyNet, FrozenEnergy, Initializer
from cdrl.networks.energy import constant
from cdrl.noise import NoiseSchedule, marginal
from cdrl.randomness import Draws
from cdrl.transition import Transitions

LAST_DENOISE = ("consistent", "official", "none")

Observer = Callable[[str, int, Tensor], None]
"""Called with a stage ("noise", "proposal", "refined", "sample"), its level, and images ``(B, C, H, W)``."""


def index_batches(n: int, batch_size: int, first: int = 0, every: int = 1) -> Iterator[Tensor]:
    """The indices ``first`` … ``n − 1``, int64, in batches, or one batch in ``every`` so many: a process's share.

    Raises `UserError` for counts that are not positive.
    """
    if n < 1 or batch_size < 1 or first < 0:
        raise UserError(f"cannot draw images {first} … {n - 1} in batches of {batch_size}; counts must be positive")
    for start in range(first, n, batch_size * every):
        yield torch.arange(start, min(start + batch_size, n))


@dataclass
class Sampler:
    """Draws images from a trained series of energies.

    Attributes:
        energy_net: f, in evaluation mode.
        initializer: g, or None: chains then start at x_t (DRL).
        schedule: the noise levels the networks were trained on.
        shape: (C, H, W) of an image.
        chain: steps and step size while sampling; ``step_variance`` must be the training's.
        shared_noise: whether training pairs shared their noise; known pixels then follow the same kind of pair.
        last_denoise: "consistent" with the chain's energy scale; "official" as in the released code, whose denoise
            divides by the step built from b²/2 and from m, and so takes 2/m² times the score; or "none".
        engine: the form in which the chains run.
    """

    energy_net: EnergyNet
    initializer: Initializer | None
    schedule: NoiseSchedule
    shape: tuple[int, int, int]
    chain: Langevin = field(default_factory=Langevin)
    shared_noise: bool = True
    last_denoise: str = "consistent"
    engine: Engine = EAGER

    def __post_init__(self) -> None:
        if self.last_denoise not in LAST_DENOISE:
            raise UserError(f"unknown last_denoise '{self.last_denoise}'; choose one of {', '.join(LAST_DENOISE)}")

    @property
    def device(self) -> torch.device:
        return next(self.energy_net.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the energy network's parameters, in which images are drawn."""
        return next(self.energy_net.parameters()).dtype

    @property
    def transitions(self) -> Transitions:
        """The moves between its levels, where the energy network is and in its type."""
        return Transitions(self.schedule.to(self.device, self.dtype), self.chain, self.shared_noise)

    @property
    def cost(self) -> float:
        """Of an image, in the unit of `cdrl.cost`: T chains and proposals, and one gradient for the last denoise."""
        return self.schedule.levels * (self.chain.steps + self.proposal_cost) + (self.last_denoise != "none")

    @cached_property
    def proposal_cost(self) -> float:
        """Of one proposal, in the same unit."""
        if self.initializer is None:
            return 0.0
        return forward_share(self.initializer, self.energy_net, self.shape)

    def batches(
        self,
        n: int,
        seed: int,
        condition: Condition | None = None,
        batch_size: int = 256,
        first: int = 0,
        every: int = 1,
    ) -> Iterator[Tensor]:
        """Samples in batches ``(B, C, H, W)``, clamped to [−1, 1], of `index_batches`; NaN, and errors, as of calls."""
        if condition is not None:
            condition.check_rows(n)
        for index in index_batches(n, batch_size, first, every):
            yield self(index, seed, condition)

    @torch.no_grad()
    def __call__(
        self,
        index: Tensor,
        seed: int,
        condition: Condition | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """The images with these global indices.

        Args:
            index: int64 ``(B,)``; also the images' positions in ``condition``.
            seed: any integer.
            condition: see `cdrl.conditions`; None is unconditional.
            observe: called at every stage.

        Returns:
            ``(B, C, H, W)`` in [−1, 1], on the device and in the type of the energy network; NaN as a whole where an
            image's chain ran away, see `cdrl.bounds`.

        Raises:
            UserError: the condition names a class that the network does not know, has too few rows, or known pixels
                that are not of such an image.
        """
        condition = condition or conditions.unconditional()
        condition.check_classes(self.energy_net.classes)
        condition.check_pixels(self.shape)
        here = condition.batch(index, self.device, self.dtype)
        return _Batch(self, index.to(self.device), seed, here, observe).run()


class _Batch:
    """One batch of images: what stays the same from level to level, and the moves between levels."""

    def __init__(
        self, sampler: Sampler, index: Tensor, seed: int, condition: Condition, observe: Observer | None
    ) -> None:
        self.sampler, self.index, self.seed, self.condition = sampler, index, seed, condition
        self.transitions = sampler.transitions
        self.schedule = self.transitions.schedule
        self.weights = constant(sampler.energy_net.weights())
        self.mix = condition.mix(sampler.dtype)
        self.observe = observe or (lambda stage, level, images: None)

    def run(self) -> Tensor:
        """All levels from pure noise, and the last denoise."""
        top = self.schedule.levels
        x = self._draws().normal("start")
        x = self._with_known(x, lambda image: marginal(self.schedule, image, self._level(top), x))
        self.observe("noise", top, x)
        for t in range(top, 0, -1):
            x = self._transition(x, t, 0)
            for repeat in range(1, self.condition.repeats + 1):
                x = self._transition(self._forward(x, t, repeat), t, repeat)
        x = clamped(self._with_known(self._last_denoise(x), lambda image: image))
        self.observe("sample", 0, x)
        return x

    def _transition(self, x: Tensor, t: int, repeat: int) -> Tensor:
        """From x_t to x_{t−1}: propose, refine, rescale."""
        level, draws, scale = self._level(t), self._draws(t, repeat), self.schedule.scale[t]
        proposal = self._proposal(x, level, draws)
        self.observe("proposal", t - 1, proposal / scale)
        walk = self.transitions.walk(self._energy(t), proposal, x, level, draws, self._known(x, level, draws))
        lower = self.sampler.engine.refine(walk).y / scale
        self.observe("refined", t - 1, lower)
        return lower

    def _proposal(self, x: Tensor, level: Tensor, draws: Draws) -> Tensor:
        """``Σ_j w_j g(x_t; λ_t, c_j) + τ_t z``, or x_t itself without an initializer."""
        initializer, mix = self.sampler.initializer, self.mix
        if initializer is None:
            return x
        labels = self.condition.labels.flatten()
        concepts = len(self.condition.weights)
        logsnr = self.schedule.logsnr[level].repeat(concepts)
        mean = initializer(x.repeat(concepts, 1, 1, 1), logsnr, labels)
        if mix is not None:
            mean = torch.einsum("j,jbchw->bchw", mix, mean.unflatten(0, (concepts, -1)))
        return self.transitions.proposal(mean, level, draws)

    def _energy(self, t: int) -> FrozenEnergy:
        """The combined energy of the transition that ends at level t − 1."""
        labels = self.condition.labels.flatten()
        logsnr = self.schedule.logsnr[t - 1].expand(len(labels))
        return self.sampler.energy_net.frozen(self.weights, logsnr, labels, self.mix)

    def _forward(self, x: Tensor, t: int, repeat: int) -> Tensor:
        """From x_{t−1} back to x_t with fresh noise (Lugmayr et al. 2022, "RePaint")."""
        return self.schedule.a[t] * x + self.schedule.beta[t].sqrt() * self._draws(t, repeat).normal("repeat")

    def _known(self, x: Tensor, level: Tensor, draws: Draws) -> KnownPixels | None:
        """The known pixels at level t − 1 given those of x_t, in ``y`` units: pairs of the kind seen in training."""
        image, mask = self.condition.image, self.condition.mask
        if image is None or mask is None:
            return None
        lower = self.transitions.partner(image.expand_as(x), x, level, draws)
        return KnownPixels(mask.expand_as(x), self.transitions.scaled(lower, level))

    def _with_known(self, x: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        """``x`` with its known pixels replaced by their own values at x's level."""
        image, mask = self.condition.image, self.condition.mask
        return x if image is None or mask is None else torch.where(mask, value(image.expand_as(x)), x)

    def _last_denoise(self, x: Tensor) -> Tensor:
        """The image from x_0: its posterior mean by Tweedie's formula; or, with "none", x_0 as it is or rescaled."""
        sampler, schedule = self.sampler, self.schedule
        if sampler.last_denoise == "none":
            return x / schedule.alpha[0] if sampler.initializer is not None else x
        variance = self.transitions.step_variance(1)
        if sampler.last_denoise == "official":
            variance = 0.5 * variance * sampler.chain.step_multiplier**2
        score = schedule.scale[1] * self._energy(1).gradient(schedule.scale[1] * x) / variance
        return (x + schedule.sigma[0].square() * score) / schedule.alpha[0]

    def _level(self, t: int) -> Tensor:
        return torch.full_like(self.index, t)

    def _draws(self, *counters: int) -> Draws:
        return Draws(self.seed, "sample", counters, self.index, self.sampler.shape, self.sampler.dtype)
