"""A plain DDPM (Ho et al. 2020) whose network is CDRL's initializer: the gap between energies and diffusion as a curve.

    x_k = √ᾱ_k x_0 + √(1 − ᾱ_k) ε          loss = mean |ε̂(x_k; λ_k) − ε|²          λ_k = ln ᾱ_k/(1 − ᾱ_k)
    x̂_0 = clip((x_k − √(1 − ᾱ_k) ε̂)/√ᾱ_k)                                          (then ε̂ is what x̂_0 leaves of x_k)
    x_j = √ᾱ_j x̂_0 + √(1 − ᾱ_j − ω²) ε̂ + ω z,    ω² = η² (1 − ᾱ_j)/(1 − ᾱ_k) (1 − ᾱ_k/ᾱ_j)      j < k

(Song et al. 2021, eq. 12 and 16: η = 0 is DDIM, η = 1 ancestral sampling.)

It has no energy: what it spends is counted in gradients of the energy network that it is compared with (`cdrl.cost`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cdrl import cost, randomness
from cdrl.conditions import Condition
from cdrl.errors import UserError
from cdrl.fast import Engine
from cdrl.learner import Learner, Optimisation
from cdrl.method import Batch, Meters, Method
from cdrl.networks import EnergyNet, Initializer
from cdrl.noise import MOST_LEVELS, per_image
from cdrl.randomness import Draws
from cdrl.recipe import ImageShape, Recipe, network
from cdrl.sampler import index_batches

Predictor = Callable[[Tensor, Tensor], Tensor]
"""(x_k ``(B, C, H, W)``, λ_k ``(B,)``) → ε̂, like x_k."""


@dataclass(frozen=True)
class DDPMSettings:
    """Diffusion and sampling.

    Attributes:
        schedule: "cosine" (Nichol & Dhariwal 2021, eq. 17) or "linear" (β from 1e-4 to 0.02).
        diffusion_steps: number of noise levels trained on, at most `cdrl.noise.MOST_LEVELS`.
        sampling_steps: network evaluations per sample, spread evenly over the levels.
        eta: η, 0 for DDIM and 1 for ancestral sampling.
    """

    schedule: str = "cosine"
    diffusion_steps: int = 1000
    sampling_steps: int = 50
    eta: float = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UserError(f"unknown schedule '{self.schedule}'; choose one of {', '.join(SCHEDULES)}")
        if not 1 <= self.diffusion_steps <= MOST_LEVELS:
            raise UserError(f"diffusion_steps must be in 1 … {MOST_LEVELS:,}, not {self.diffusion_steps}")
        if not 1 <= self.sampling_steps <= self.diffusion_steps:
            raise UserError(f"sampling_steps must be in 1 … {self.diffusion_steps}, not {self.sampling_steps}")
        if not 0.0 <= self.eta <= 1.0:
            raise UserError(f"eta must be in [0, 1], not {self.eta}")

    def logsnr(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """λ_k of the noise levels, decreasing, ``(diffusion_steps,)``; computed in float64 and rounded to ``dtype``."""
        signal = SCHEDULES[self.schedule](self.diffusion_steps)
        return (signal.log() - torch.log1p(-signal)).to(dtype)


def cosine_signal(steps: int, offset: float = 0.008, largest_beta: float = 0.999) -> Tensor:
    """ᾱ of the cosine schedule, float64 ``(steps,)``."""
    angle = (torch.arange(steps + 1, dtype=torch.float64) / steps + offset) / (1 + offset) * (math.pi / 2)
    square = torch.cos(angle).square()
    beta = (1 - square[1:] / square[:-1]).clamp(max=largest_beta)
    return torch.cumprod(1 - beta, dim=0)


def linear_signal(steps: int) -> Tensor:
    """ᾱ of the linear-β schedule, float64 ``(steps,)``."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, steps, dtype=torch.float64), dim=0)


SCHEDULES = {"cosine": cosine_signal, "linear": linear_signal}


class DDPM(Method):
    """See the module's docstring.

    Args:
        network: the initializer's U-Net, unconditional; it predicts the noise.
        reference: the energy network whose gradient evaluation is the unit of cost; it is neither trained nor kept.
        settings: diffusion and sampling.
        optimisation: how the network is trained.
        shape: (C, H, W) of an image.
        seed: of all draws.
        iterations: planned length of the run.
    """

    METERS = ("noise_error",)

    def __init__(
        self,
        network: Initializer,
        reference: EnergyNet,
        settings: DDPMSettings,
        optimisation: Optimisation,
        shape: tuple[int, int, int],
        seed: int = 0,
        iterations: int = 100_000,
    ) -> None:
        self.network, self.settings, self.shape = network, settings, shape
        self.learners = {"network": Learner(network, optimisation)}
        self.seed, self.iterations = seed, iterations
        self.meters = Meters(self.METERS, ("network_grad",), 1, self.device, self.dtype)
        self.logsnr = settings.logsnr(self.dtype).to(self.device)
        self.forward_share = cost.forward_share(network, reference, shape)
        """One forward pass, in energy gradients."""

    @property
    def training_cost(self) -> float:
        return cost.LEARN_NETWORK * self.forward_share

    @property
    def sampling_cost(self) -> float:
        return self.settings.sampling_steps * self.forward_share

    def losses(self, batch: Batch, iteration: int) -> dict[str, Tensor]:
        draws = Draws(self.seed, "train", (iteration,), batch.image_index, self.shape, self.dtype)
        logsnr = self.logsnr[draws.integers("level", len(self.logsnr))]
        noise, (alpha, sigma) = draws.normal("noise"), scales(logsnr)
        noisy = alpha * batch.images + sigma * noise
        predicted = self.network(noisy, logsnr, dropout=self.network.dropout_masks(draws))
        error = (predicted - noise).square().mean(dim=(1, 2, 3))
        self.meters.add(torch.zeros_like(batch.image_index), noise_error=error)
        return {"network": error.mean()}

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
            raise UserError("the DDPM baseline is unconditional; use a CDRL or DRL run")
        network = self.learners["network"].ema.synchronised()
        for index in index_batches(n, batch_size, first, every):
            index = index.to(self.device)
            yield denoise(network, self.logsnr, self.settings, index, self.shape, seed)


def scales(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """``√ᾱ`` and ``√(1 − ᾱ)``, each ``(B, 1, 1, 1)``, of log-SNRs ``(B,)``."""
    return per_image(torch.sigmoid(logsnr).sqrt()), per_image(torch.sigmoid(-logsnr).sqrt())


def denoise(
    predict: Predictor, logsnr: Tensor, settings: DDPMSettings, index: Tensor, shape: tuple[int, ...], seed: int
) -> Tensor:
    """From pure noise to images ``(B, *shape)`` in [−1, 1].

    Args:
        predict: the noise predictor.
        logsnr: λ of all noise levels, decreasing; images are drawn in its type.
        settings: how many of them are visited, and η.
        index: global image indices, int64 ``(B,)``.
        shape: of one image.
        seed: any integer.
    """
    visited = torch.linspace(len(logsnr) - 1, 0, settings.sampling_steps, dtype=torch.float64).round().long().tolist()
    x = randomness.normal(randomness.key(seed, "sample/start"), index, shape, logsnr.dtype)
    clean = x
    for k, j in itertools.zip_longest(visited, visited[1:]):
        level = logsnr[k].expand(len(x))
        alpha, sigma = scales(level)
        clean = ((x - sigma * predict(x, level)) / alpha).clamp(-1.0, 1.0)
        if j is None:
            break
        lower_alpha, lower_sigma = scales(logsnr[j].expand(len(x)))
        spread = settings.eta * (lower_sigma / sigma) * (1 - (alpha / lower_alpha).square()).sqrt()
        left = (x - alpha * clean) / sigma
        fresh = randomness.normal(randomness.key(seed, "sample/noise", k), index, shape, logsnr.dtype)
        x = lower_alpha * clean + (lower_sigma.square() - spread.square()).clamp(min=0).sqrt() * left + spread * fresh
    return clean


@dataclass(frozen=True, kw_only=True)
class DDPMRecipe(Recipe, DDPMSettings):
    """The settings with the network and how it is trained; see `cdrl.recipe`. It has no chains for an engine to run.

    Attributes:
        network: sizes of the U-Net, arguments of `cdrl.networks.Initializer`.
        energy: sizes of the energy network whose gradient evaluation is the unit of cost; it is never trained.
        optimisation: how the U-Net is trained.
    """

    network: Mapping[str, Any] = field(default_factory=dict)
    energy: Mapping[str, Any] = field(default_factory=dict)
    optimisation: Optimisation = field(default_factory=Optimisation)

    def _build(self, shape: ImageShape, seed: int, iterations: int, device: torch.device, engine: Engine) -> DDPM:
        unet = network(Initializer, shape, self.network, device)
        unit = network(EnergyNet, shape, self.energy, torch.device("meta"))
        images = (shape.channels, shape.size, shape.size)
        return DDPM(unet, unit, self, self.optimisation, images, seed, iterations)
