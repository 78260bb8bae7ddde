"""Short-run EBM (Nijkamp et al. 2019): one noise level, and chains that start from uniform noise every time.

    x⁺ = x + δ ε        y ← y + ∇f(y) + ω z   (K times, from uniform(−1, 1))        loss = mean f(ỹ) − f(x⁺)

The energy network is CDRL's, told one constant log-SNR; there is nothing to propose, nothing to tether to, and sampling
is the same chain as training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cdrl import cost
from cdrl.bounds import clamped
from cdrl.conditions import Condition
from cdrl.errors import UserError
from cdrl.fast import EAGER, Engine
from cdrl.langevin import MOST_STEPS, Chain, Coefficients, Refined
from cdrl.learner import Learner, Optimisation
from cdrl.method import Batch, Meters, Method, reach, rms
from cdrl.networks import EnergyNet, FrozenEnergy
from cdrl.networks.energy import energies, freeze
from cdrl.randomness import Draws
from cdrl.recipe import ImageShape, Recipe, network
from cdrl.sampler import index_batches

_LARGEST = 1e6
"""Of a chain's constants; they are about 1."""


@dataclass(frozen=True)
class ShortRunSettings:
    """The defaults are the published ones.

    Attributes:
        steps: K.
        gain: the step's factor on the gradient.
        step_noise: ω, standard deviation of the noise of a step.
        data_noise: δ, standard deviation of the noise on the data.
        energy_weight: factor on the squared energies added to the loss, which keeps their size in bounds
            (Du & Mordatch 2019); 0 is off.
    """

    steps: int = 100
    gain: float = 1.0
    step_noise: float = 0.01
    data_noise: float = 0.03
    energy_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise UserError(f"a short-run chain needs at least one step and at most {MOST_STEPS:,}, not {self.steps}")
        ranges = {
            "gain": 0 < self.gain <= _LARGEST,
            "step_noise": 0 <= self.step_noise <= _LARGEST,
            "data_noise": 0 < self.data_noise <= _LARGEST,
            "energy_weight": 0 <= self.energy_weight <= _LARGEST,
        }
        for name, valid in ranges.items():  # positive comparisons, which no NaN passes
            if not valid:
                raise UserError(f"{name} must be 0 or more, gain and data_noise above it, not {getattr(self, name)}")


class ShortRun(Method):
    """See the module's docstring; arguments as in `cdrl.cooperative.Cooperative`."""

    METERS = ("energy_gap", "displacement", "gradient_norm", "range")

    def __init__(
        self,
        energy_net: EnergyNet,
        settings: ShortRunSettings,
        optimisation: Optimisation,
        seed: int = 0,
        iterations: int = 100_000,
        engine: Engine = EAGER,
    ) -> None:
        self.energy_net, self.settings = energy_net, settings
        self.learners = {"energy": Learner(energy_net, optimisation)}
        self.seed, self.iterations, self.engine = seed, iterations, engine
        self._values = engine.prepare(energies)
        self.meters = Meters(self.METERS, ("energy_grad",), 1, self.device, self.dtype)
        self.logsnr = -2.0 * math.log(settings.data_noise)
        self._level = torch.full((1,), self.logsnr, device=self.device, dtype=self.dtype)
        self.shape = energy_net.shape

    @property
    def training_cost(self) -> int:
        return self.settings.steps + cost.LEARN_ENERGY

    @property
    def sampling_cost(self) -> int:
        return self.settings.steps

    def losses(self, batch: Batch, iteration: int) -> dict[str, Tensor]:
        self.energy_net.check_images(batch.images)
        draws = Draws(self.seed, "train", (iteration,), batch.image_index, self.shape, self.dtype)
        positive = batch.images + self.settings.data_noise * draws.normal("data")
        weights = self.energy_net.weights()
        context = self.energy_net.context(weights, self._level)
        start = self._start(draws)
        refined = self._chain(freeze(weights, context), start, draws)
        values = self._values(torch.cat((positive, refined.y)), weights, context)
        gap = values[: len(positive)] - values[len(positive) :]
        self.meters.add(
            torch.zeros_like(batch.image_index),
            energy_gap=gap,
            displacement=rms(refined.y - start),
            gradient_norm=rms(refined.gradient),
            range=reach(refined.y),
        )
        return {"energy": -gap.mean() + self.settings.energy_weight * values.square().mean()}

    @torch.no_grad()
    def sample(
        self,
        n: int,
        seed: int,
        condition: Condition | None = None,
        batch_size: int = 256,
        first: int = 0,
        every: int = 1,
    ) -> Iterator[Tensor]:
        if condition is not None:
            raise UserError("the short-run EBM is unconditional; use a CDRL or DRL run")
        network = self.learners["energy"].ema.synchronised()
        assert isinstance(network, EnergyNet)
        energy = network.frozen(network.weights(), self._level)
        for index in index_batches(n, batch_size, first, every):
            index = index.to(self.device)
            start = self._start(Draws(seed, "sample", (), index, self.shape, self.dtype))
            walked = self._chain(energy, start, Draws(seed, "sample", (0,), index, self.shape, self.dtype))
            yield clamped(walked.y)

    def _start(self, draws: Draws) -> Tensor:
        return 2.0 * draws.uniform("start", self.shape) - 1.0

    def _chain(self, energy: FrozenEnergy, start: Tensor, draws: Draws) -> Refined:
        settings, zero = self.settings, start.new_zeros(len(start), 1, 1, 1)
        chain = Chain(
            energy=energy,
            start=start,
            anchor=start,
            constants=Coefficients(start.new_full((), settings.gain), zero, zero + settings.step_noise),
            streams=draws.streams("chain", settings.steps),
            image_index=draws.index,
        )
        return self.engine.refine(chain)


@dataclass(frozen=True, kw_only=True)
class ShortRunRecipe(Recipe, ShortRunSettings):
    """The settings with the network and how it is trained; see `cdrl.recipe`.

    Attributes:
        energy: sizes of the energy network, arguments of `cdrl.networks.EnergyNet`.
        optimisation: how it is trained.
    """

    energy: Mapping[str, Any] = field(default_factory=dict)
    optimisation: Optimisation = field(default_factory=Optimisation)

    def _build(self, shape: ImageShape, seed: int, iterations: int, device: torch.device, engine: Engine) -> ShortRun:
        energy_net = network(EnergyNet, shape, self.energy, device)
        return ShortRun(energy_net, self, self.optimisation, seed, iterations, engine)
