"""Sampling: all levels from pure noise to a clean image, and the last denoise.

    x_T ~ N(0, I);   for t = T … 1:   ŷ = g(x_t; λ_t) + τ_t z,   ỹ = chain(ŷ),   x_{t−1} = ỹ / scale_t
    x ← (x_0 + σ_0² ∇ log p(x_0)) / α_0,   log p(x_0) = f(a_1 x_0; λ_0) / s_1²          (Tweedie)

(Zhu et al. 2024, algorithm 2 and appendix A.2.) Every draw is a function of (seed, image index, level, step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cdrl import conditions, langevin, randomness
from cdrl.conditions import Condition
from cdrl.langevin import KnownPixels, Langevin, Stepper
from cdrl.networks import EnergyNet, FrozenEnergy, Initializer
from cdrl.networks.energy import Weights
from cdrl.noise import NoiseSchedule

LAST_DENOISE = ("consistent", "official", "none")

Observer = Callable[[str, int, Tensor], None]
"""Called with a stage ("noise", "proposal", "refined", "sample"), the level it belongs to, and images ``(B, C, H, W)``."""


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
        last_denoise: "consistent" with the chain's energy scale; "official" as in the released code, whose denoise divides by the
            step built from b²/2 and so takes twice the score; or "none".
        stepper: the form of the Langevin step.
    """

    energy_net: EnergyNet
    initializer: Initializer | None
    schedule: NoiseSchedule
    shape: tuple[int, int, int]
    chain: Langevin = field(default_factory=Langevin)
    shared_noise: bool = True
    last_denoise: str = "consistent"
    stepper: Stepper = langevin.step

    @property
    def device(self) -> torch.device:
        return next(self.energy_net.parameters()).device

    @property
    def gradient_evaluations(self) -> int:
        """Energy-gradient evaluations per image: T·K, and one for the last denoise."""
        return self.schedule.levels * self.chain.steps + (self.last_denoise != "none")

    def batches(
        self, n: int, seed: int, condition: Condition | None = None, batch_size: int = 256, first: int = 0
    ) -> Iterator[Tensor]:
        """Samples number ``first`` … ``n − 1`` in batches ``(B, C, H, W)``, clamped to [−1, 1]."""
        for start in range(first, n, batch_size):
            yield self(torch.arange(start, min(start + batch_size, n)), seed, condition)

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
            ``(B, C, H, W)`` in [−1, 1] on the network's device.
        """
        condition = (condition or conditions.unconditional()).batch(index, self.device)
        index = index.to(self.device)
        weights = self.energy_net.weights()
        schedule = self.schedule.to(self.device)
        tell = observe or (lambda stage, level, images: None)

        x = randomness.normal(randomness.key(seed, "sample/start"), index, self.shape)
        tell("noise", schedule.levels, x)
        known = _KnownTrajectory(self, schedule, condition, seed, index, x)
        for t in range(schedule.levels, 0, -1):
            for repeat in range(condition.repeats + 1):
                if repeat:
                    x = self._noised_again(schedule, x, t, seed, index, repeat)
                x = self._descend(schedule, weights, x, t, seed, index, condition, known.lower(t, repeat), tell, repeat)
        x = self._denoised(schedule, weights, x, condition)
        x = (known.clean(x)).clamp(-1.0, 1.0)
        tell("sample", 0, x)
        return x

    def proposal_mean(self, schedule: NoiseSchedule, x: Tensor, t: int, condition: Condition) -> Tensor:
        """``Σ_j w_j g(x_t; λ_t, c_j)``, or x_t itself without an initializer."""
        if self.initializer is None:
            return x
        concepts = len(condition.weights)
        logsnr = schedule.logsnr[t].expand(concepts * len(x))
        proposals = self.initializer(x.repeat(concepts, 1, 1, 1), logsnr, condition.labels.flatten())
        if condition.mix is None:
            return proposals
        return torch.einsum("j,jbchw->bchw", condition.mix, proposals.unflatten(0, (concepts, -1)))

    def energy(self, schedule: NoiseSchedule, weights: Weights, t: int, condition: Condition) -> FrozenEnergy:
        """The combined energy of the transition that ends at level t − 1."""
        labels = condition.labels.flatten()
        logsnr = schedule.logsnr[t - 1].expand(len(labels))
        return self.energy_net.frozen(weights, logsnr, labels, condition.mix)

    def _descend(
        self,
        schedule: NoiseSchedule,
        weights: Weights,
        x: Tensor,
        t: int,
        seed: int,
        index: Tensor,
        condition: Condition,
        known: KnownPixels | None,
        tell: Observer,
        repeat: int,
    ) -> Tensor:
        """From x_t to x_{t−1}."""
        proposal = self.proposal_mean(schedule, x, t, condition)
        if self.initializer is not None:
            key = randomness.key(seed, "sample/proposal", t, repeat)
            proposal = proposal + schedule.proposal_std[t] * randomness.normal(key, index, self.shape)
        tell("proposal", t - 1, proposal / schedule.scale[t])
        refined = langevin.refine(
            energy=self.energy(schedule, weights, t, condition),
            start=proposal,
            anchor=x,
            constants=langevin.coefficients(schedule, torch.full_like(index, t), self.chain),
            streams=randomness.keys(seed, "sample/chain", t, repeat, count=self.chain.steps, device=self.device),
            index=index,
            stepper=self.stepper,
            known=known,
        )
        lower = refined.y / schedule.scale[t]
        tell("refined", t - 1, lower)
        return lower

    def _noised_again(
        self, schedule: NoiseSchedule, x: Tensor, t: int, seed: int, index: Tensor, repeat: int
    ) -> Tensor:
        """From x_{t−1} back to x_t with fresh noise (Lugmayr et al. 2022, "RePaint", eq. 8)."""
        key = randomness.key(seed, "sample/repeat", t, repeat)
        return schedule.a[t] * x + schedule.beta[t].sqrt() * randomness.normal(key, index, self.shape)

    def _denoised(self, schedule: NoiseSchedule, weights: Weights, x: Tensor, condition: Condition) -> Tensor:
        if self.last_denoise == "none":
            return x / schedule.alpha[0] if self.initializer is not None else x
        variance = self.chain.step_variance * schedule.unit_step[1].square()
        if self.last_denoise == "official":
            variance = 0.5 * variance * self.chain.step_multiplier**2
        energy = self.energy(schedule, weights, 1, condition)
        score = schedule.scale[1] * energy.gradient(schedule.scale[1] * x) / variance
        return (x + schedule.sigma[0].square() * score) / schedule.alpha[0]


class _KnownTrajectory:
    """The known pixels' own way through the levels, in step with the chain; nothing when no pixel is known."""

    def __init__(
        self, sampler: Sampler, schedule: NoiseSchedule, condition: Condition, seed: int, index: Tensor, top: Tensor
    ) -> None:
        self.schedule, self.condition, self.seed, self.index = schedule, condition, seed, index
        self.shared_noise, self.top = sampler.shared_noise, top

    def lower(self, t: int, repeat: int) -> KnownPixels | None:
        """The pins of the chain that ends at level t − 1, in ``y`` units."""
        image, mask = self.condition.image, self.condition.mask
        if image is None or mask is None:
            return None
        purpose = "sample/known" if self.shared_noise else f"sample/known/{t}"
        epsilon = randomness.normal(randomness.key(self.seed, purpose, repeat), self.index, tuple(self.top.shape[1:]))
        value = self.schedule.alpha[t - 1] * image + self.schedule.sigma[t - 1] * epsilon
        return KnownPixels(mask.expand_as(value), self.schedule.scale[t] * value)

    def clean(self, x: Tensor) -> Tensor:
        """The final images with every known pixel exact."""
        if self.condition.image is None or self.condition.mask is None:
            return x
        return torch.where(self.condition.mask, self.condition.image, x)
