"""One training iteration: pair → proposal → refinement → two losses (Zhu et al. 2024, algorithm 1).

    energy net     minimise  mean_i w_t (f(ỹ_i) − f(y⁺_i)),   y⁺ = scale_t x_{t−1},   w_t = √(β_1/β_t)
    initializer    minimise  mean_i |ỹ_i − ŷ_i|²

The initializer learns from the same refined samples as the energy net: it teaches itself to jump where the chain
would walk. Every departure from this (DRL's, the ablations', the released code's quirks) is a field of `Settings` or
of `cdrl.learner.Optimisation`; `cdrl.released` has the release's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from cdrl import cost
from cdrl.conditions import NULL_LABEL, Condition
from cdrl.ema import SPECTRAL_MODES
from cdrl.errors import UserError
from cdrl.fast import EAGER, Engine
from cdrl.langevin import Langevin
from cdrl.learner import Learner, Optimisation
from cdrl.method import Batch, Meters, Method, reach, rms
from cdrl.networks import EnergyNet, Initializer
from cdrl.networks.energy import Context, Weights, energies, freeze
from cdrl.noise import NoiseSchedule, cosine_logsnr
from cdrl.randomness import Draws
from cdrl.sampler import LAST_DENOISE, Sampler
from cdrl.transition import Transitions

INITIALIZER_TARGETS = ("noisy", "mean")


@dataclass(frozen=True)
class Settings:
    """The switches of a series of energies; the defaults are CDRL's.

    Attributes:
        schedule: noise levels.
        shared_noise: one noise for both members of a pair (the variance reduction), or independent draws.
        chain: the chain in training.
        sampling: the chain in sampling; None takes the training's.
        last_denoise: see `cdrl.sampler.Sampler`.
        spectral_ema: "refresh" or "live" (as released), see `cdrl.ema`.
        initializer_target: whether the regression starts from the "noisy" proposal (as released: its gradient is then
            refined minus initial) or from its "mean".
        label_dropout: probability that a training label becomes the null label.
    """

    schedule: NoiseSchedule = field(default_factory=cosine_logsnr)
    shared_noise: bool = True
    chain: Langevin = field(default_factory=Langevin)
    sampling: Langevin | None = None
    last_denoise: str = "consistent"
    spectral_ema: str = "refresh"
    initializer_target: str = "noisy"
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("last_denoise", self.last_denoise, LAST_DENOISE),
            ("spectral_ema", self.spectral_ema, SPECTRAL_MODES),
            ("initializer_target", self.initializer_target, INITIALIZER_TARGETS),
        ):
            if value not in choices:
                raise UserError(f"unknown {name} '{value}'; choose one of {', '.join(choices)}")
        if not 0 <= self.label_dropout <= 1:
            raise UserError(f"label_dropout must be 0 … 1, not {self.label_dropout}")
        if self.sampling is not None and self.sampling.step_variance != self.chain.step_variance:
            raise UserError("sampling.step_variance must equal the training's: it is part of the energy's scale")


class Cooperative(Method):
    """CDRL; without an initializer, chains start at x_t and what is left is diffusion recovery likelihood.

    Args:
        energy_net: f, on the training device.
        initializer: g on the same device, or None.
        settings: switches.
        optimisation: how f is trained.
        initializer_optimisation: how g is trained.
        seed: of all draws.
        iterations: planned length of the run, which learning-rate decays refer to.
        engine: the form in which the hot loop runs.

    Raises:
        UserError: the two networks know different channels or classes.
    """

    METERS = ("energy_gap", "displacement", "gradient_norm", "proposal_error", "refined_error", "range")
    """Per level: mean gap f(y⁺) − f(ỹ); RMS over pixels of the chain's move, of its last gradient, and of the distance
    to the data pair's y⁺ before (noisy proposal) and after refinement; the largest |pixel| of ỹ. Then each network's
    gradient norm."""

    def __init__(
        self,
        energy_net: EnergyNet,
        initializer: Initializer | None,
        settings: Settings,
        optimisation: Optimisation,
        initializer_optimisation: Optimisation | None = None,
        seed: int = 0,
        iterations: int = 400_000,
        engine: Engine = EAGER,
    ) -> None:
        if initializer is not None and initializer.domain != energy_net.domain:
            energy, proposal = ("{} channels and {} classes".format(*net.domain) for net in (energy_net, initializer))
            raise UserError(f"the energy network knows {energy}, the initializer {proposal}")
        self.energy_net, self.initializer, self.settings = energy_net, initializer, settings
        self.learners = {"energy": Learner(energy_net, optimisation)}
        if initializer is not None:
            self.learners["initializer"] = Learner(initializer, initializer_optimisation or optimisation)
        self.shape = energy_net.shape
        self.seed, self.iterations, self.engine = seed, iterations, engine
        self._values = engine.prepare(energies)
        self._proposal_mean = engine.prepare(initializer) if initializer is not None else None
        self.schedule = settings.schedule.to(self.device, self.dtype)
        self.transitions = Transitions(self.schedule, settings.chain, settings.shared_noise)
        norms = tuple(f"{name}_grad" for name in self.learners)
        self.meters = Meters(self.METERS, norms, settings.schedule.levels + 1, self.device, self.dtype)

    @property
    def training_cost(self) -> float:
        return self.settings.chain.steps + cost.LEARN_ENERGY + cost.LEARN_NETWORK * self._proposal_cost

    @property
    def sampling_cost(self) -> float:
        return self.sampler(live=True).cost

    @cached_property
    def _proposal_cost(self) -> float:
        return self.sampler(live=True).proposal_cost

    def losses(self, batch: Batch, iteration: int) -> dict[str, Tensor]:
        self.energy_net.check_images(batch.images)
        draws = Draws(self.seed, "train", (iteration,), batch.image_index, self.shape, self.dtype)

        # Pair.
        level = 1 + draws.integers("level", self.schedule.levels)
        label = self._label_dropout(batch.labels, draws)
        lower, upper = self.transitions.pair(batch.images, level, draws)
        positive = self.transitions.scaled(lower, level)

        # Proposal.
        mean, proposal = self._propose(upper, level, label, draws)

        # Chain.
        weights = self.energy_net.weights()
        context = self._context(weights, level, label)
        walk = self.transitions.walk(freeze(weights, context), proposal, upper, level, draws)
        refined = self.engine.refine(walk)

        # Two losses: the energy's positive and negative images are one batch.
        gap = energy_gap(self._values, weights, context, positive, refined.y)
        losses = {"energy": self.transitions.energy_loss(gap, level)}
        if self.initializer is not None:
            start = proposal if self.settings.initializer_target == "noisy" else mean
            losses["initializer"] = (refined.y - start).square().sum(dim=(1, 2, 3)).mean()

        self.meters.add(
            level,
            energy_gap=gap,
            displacement=rms(refined.y - proposal),
            gradient_norm=rms(refined.gradient),
            proposal_error=rms(proposal - positive),
            refined_error=rms(refined.y - positive),
            range=reach(refined.y),
        )
        return losses

    def sampler(self, settings: Settings | None = None, live: bool = False) -> Sampler:
        """A sampler on the averaged weights as they are now, or on the ``live`` ones, which go on changing.

        Args:
            settings: others than the method's: what they say of sampling counts.
            live: take the live weights.
        """
        settings = settings or self.settings
        networks = {
            name: learner.network.eval() if live else learner.ema.synchronised(settings.spectral_ema)
            for name, learner in self.learners.items()
        }
        energy_net, initializer = networks["energy"], networks.get("initializer")
        assert isinstance(energy_net, EnergyNet)
        assert initializer is None or isinstance(initializer, Initializer)
        return Sampler(
            energy_net=energy_net,
            initializer=initializer,
            schedule=settings.schedule,
            shape=self.shape,
            chain=settings.sampling or settings.chain,
            shared_noise=settings.shared_noise,
            last_denoise=settings.last_denoise,
            engine=self.engine,
        )

    def sample(
        self,
        n: int,
        seed: int,
        condition: Condition | None = None,
        batch_size: int = 256,
        first: int = 0,
        every: int = 1,
    ) -> Iterator[Tensor]:
        return self.sampler().batches(n, seed, condition, batch_size, first, every)

    def _label_dropout(self, label: Tensor | None, draws: Draws) -> Tensor | None:
        """The labels, some of them replaced by the null label; None where the network is unconditional."""
        if label is None or not self.energy_net.classes:
            return None
        return torch.where(draws.uniform("label") < self.settings.label_dropout, NULL_LABEL, label)

    def _propose(self, upper: Tensor, level: Tensor, label: Tensor | None, draws: Draws) -> tuple[Tensor, Tensor]:
        """The initializer's mean, with its history, and the noisy proposal that the chain starts from."""
        if self.initializer is None or self._proposal_mean is None:
            return upper, upper
        dropout = self.initializer.dropout_masks(draws)
        mean = self._proposal_mean(upper, self.schedule.logsnr[level], label, dropout)
        return mean, self.transitions.proposal(mean, level, draws)

    def _context(self, weights: Weights, level: Tensor, label: Tensor | None) -> Context:
        """What the energy is told of each image; without labels the T lower levels are all there is to compute."""
        logsnr = self.schedule.logsnr
        if label is not None:
            return self.energy_net.context(weights, logsnr[level - 1], label)
        lower = torch.arange(self.schedule.levels, device=level.device)
        chosen = (level[:, None] - 1 == lower).to(logsnr.dtype)
        return self.energy_net.context(weights, logsnr[:-1]).select(chosen)


def energy_gap(
    values: Callable[[Tensor, Weights, Context], Tensor],
    weights: Weights,
    context: Context,
    positive: Tensor,
    refined: Tensor,
) -> Tensor:
    """f(y⁺) − f(ỹ) of each image, ``(B,)``, to be learned from; both signs run through the network as one batch.

    Args:
        values: `cdrl.networks.energy.energies`, or a faster form of it.
        weights, context: of the energies, with their history.
        positive, refined: y⁺ and ỹ, ``(B, C, H, W)``.
    """
    both = values(torch.cat((positive, refined)), weights, context.repeat(2))
    return both[: len(positive)] - both[len(positive) :]
