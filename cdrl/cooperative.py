"""One training iteration: pair → proposal → refinement → two losses (Zhu et al. 2024, algorithm 1).

    energy net     minimise  mean_i w_t (f(ỹ_i) − f(y⁺_i)),   y⁺ = scale_t x_{t−1},   w_t = √(β_1/β_t)
    initializer    minimise  mean_i |ỹ_i − ŷ_i|²

The initializer learns from the same refined samples as the energy net: it teaches itself to jump where the chain
would walk. Every departure from this (DRL's, the ablations', the released code's quirks) is a field of `Settings`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cdrl import langevin, randomness
from cdrl.conditions import NULL_LABEL, Condition
from cdrl.ema import SPECTRAL_MODES
from cdrl.errors import UserError
from cdrl.fast import EAGER, Engine
from cdrl.langevin import Langevin
from cdrl.learner import Learner, Optimisation
from cdrl.method import Meters, Method, rms
from cdrl.networks import EnergyNet, Initializer
from cdrl.networks.energy import Context, Weights, energies, freeze
from cdrl.networks.spectral import iterate_all
from cdrl.noise import NoiseSchedule, cosine_logsnr, independent_pair, per_image, shared_noise_pair
from cdrl.sampler import LAST_DENOISE, Sampler

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

    METERS = (
        "energy_gap",
        "displacement",
        "gradient_norm",
        "proposal_error",
        "refined_error",
        "energy_grad",
        "initializer_grad",
    )
    """Per level: mean gap f(y⁺) − f(ỹ); RMS over pixels of the chain's move, of its last gradient, and of the distance
    to the data pair's y⁺ before (noisy proposal) and after refinement; the two networks' gradient norms."""

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
        self.meters = Meters(self.METERS, settings.schedule.levels + 1, self.device, self.dtype)

    @property
    def training_cost(self) -> int:
        return self.settings.chain.steps + 2

    @property
    def sampling_cost(self) -> int:
        chain = self.settings.sampling or self.settings.chain
        return self.schedule.levels * chain.steps + (self.settings.last_denoise != "none")

    def train_step(self, x0: Tensor, label: Tensor | None, iteration: int) -> None:
        self.energy_net.check_images(x0)

        # Pair.
        index = torch.arange(len(x0), device=x0.device)
        level = 1 + randomness.integers(self._key("level", iteration), index, self.schedule.levels)
        label = self._label_dropout(label, index, iteration)
        lower, upper = self._pair(x0, level, index, iteration)
        positive = per_image(self.schedule.scale[level]) * lower

        # Proposal.
        mean, proposal = self._propose(upper, level, label, index, iteration)

        # Chain. The one power iteration comes first: chain, positive and negative pass share its result.
        iterate_all(self.energy_net)
        weights = self.energy_net.weights()
        context = self._context(weights, level, label)
        steps = self.settings.chain.steps
        chain = langevin.Chain(
            energy=freeze(weights, context),
            start=proposal,
            anchor=upper,
            constants=langevin.coefficients(self.schedule, level, self.settings.chain),
            streams=randomness.keys(self.seed, "train/chain", iteration, count=steps, device=x0.device),
            image_index=index,
        )
        refined = self.engine.refine(chain)

        # Two losses.
        gap, energy_norm = self._learn_energy(weights, context, refined.y, positive, level, iteration)
        initializer_norm = self._learn_initializer(mean, proposal, refined.y, iteration)

        self.meters.add(
            level,
            energy_gap=gap,
            displacement=rms(refined.y - proposal),
            gradient_norm=rms(refined.gradient),
            proposal_error=rms(proposal - positive),
            refined_error=rms(refined.y - positive),
            energy_grad=energy_norm.expand(len(x0)),
            initializer_grad=initializer_norm.expand(len(x0)),
        )

    def sampler(self, live: bool = False) -> Sampler:
        """A sampler on the averaged weights, or on the ``live`` ones; good until the next step of training."""
        networks = {
            name: learner.network.eval() if live else learner.ema.synchronised(self.settings.spectral_ema)
            for name, learner in self.learners.items()
        }
        energy_net, initializer = networks["energy"], networks.get("initializer")
        assert isinstance(energy_net, EnergyNet)
        assert initializer is None or isinstance(initializer, Initializer)
        return Sampler(
            energy_net=energy_net,
            initializer=initializer,
            schedule=self.settings.schedule,
            shape=self.shape,
            chain=self.settings.sampling or self.settings.chain,
            shared_noise=self.settings.shared_noise,
            last_denoise=self.settings.last_denoise,
            engine=self.engine,
        )

    def sample(
        self, n: int, seed: int, condition: Condition | None = None, batch_size: int = 256, first: int = 0
    ) -> Iterator[Tensor]:
        return self.sampler().batches(n, seed, condition, batch_size, first)

    def _key(self, purpose: str, iteration: int) -> int:
        return randomness.key(self.seed, f"train/{purpose}", iteration)

    def _noise(self, purpose: str, index: Tensor, iteration: int) -> Tensor:
        return randomness.normal(self._key(purpose, iteration), index, self.shape, self.dtype)

    def _label_dropout(self, label: Tensor | None, index: Tensor, iteration: int) -> Tensor | None:
        """The labels, some of them replaced by the null label; None where the network is unconditional."""
        if label is None or not self.energy_net.classes:
            return None
        dropped = randomness.uniform(self._key("label", iteration), index) < self.settings.label_dropout
        return torch.where(dropped, NULL_LABEL, label)

    def _pair(self, x0: Tensor, level: Tensor, index: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        """(x_{t−1}, x_t) of the images, each ``(B, C, H, W)``."""
        noise = self._noise("pair", index, iteration)
        if self.settings.shared_noise:
            return shared_noise_pair(self.schedule, x0, level, noise)
        return independent_pair(self.schedule, x0, level, noise, self._noise("posterior", index, iteration))

    def _propose(
        self, upper: Tensor, level: Tensor, label: Tensor | None, index: Tensor, iteration: int
    ) -> tuple[Tensor, Tensor]:
        """The initializer's mean, with its history, and the noisy proposal that the chain starts from."""
        if self.initializer is None or self._proposal_mean is None:
            return upper, upper
        self.initializer.train()
        with randomness.global_generator(self._key("dropout", iteration), upper.device):
            mean = self._proposal_mean(upper, self.schedule.logsnr[level], label)
        noise = self._noise("proposal", index, iteration)
        return mean, mean + per_image(self.schedule.proposal_std[level]) * noise

    def _context(self, weights: Weights, level: Tensor, label: Tensor | None) -> Context:
        """What the energy is told of each image; without labels the T lower levels are all there is to compute."""
        logsnr = self.schedule.logsnr
        if label is not None:
            return self.energy_net.context(weights, logsnr[level - 1], label)
        lower = torch.arange(self.schedule.levels, device=level.device)
        chosen = (level[:, None] - 1 == lower).to(logsnr.dtype)
        return self.energy_net.context(weights, logsnr[:-1]).select(chosen)

    def _learn_energy(
        self,
        weights: Weights,
        context: Context,
        refined: Tensor,
        positive: Tensor,
        level: Tensor,
        iteration: int,
    ) -> tuple[Tensor, Tensor]:
        """The energy step, both signs as one batch; returns f(y⁺) − f(ỹ) ``(B,)`` and the gradient's norm."""
        values = self._values(torch.cat((positive, refined)), weights, context.repeat(2))
        gap = values[: len(positive)] - values[len(positive) :]
        loss = -(self.schedule.loss_weight[level] * gap).mean()
        return gap, self.learners["energy"].descend(loss, iteration, self.iterations)

    def _learn_initializer(self, mean: Tensor, proposal: Tensor, refined: Tensor, iteration: int) -> Tensor:
        if self.initializer is None:
            return refined.new_zeros(())
        start = proposal if self.settings.initializer_target == "noisy" else mean
        loss = (refined - start).square().sum(dim=(1, 2, 3)).mean()
        return self.learners["initializer"].descend(loss, iteration, self.iterations)
