"""How noisy is the learning gradient, with and without shared noise? Same networks, same images, many noise draws.

The energy network's gradient ``g = ∇_θ mean_i w_t (f(ỹ_i) − f(y⁺_i))`` of one batch at one level is a random vector
through the pair's noise, the proposal's and the chain's. Measured per level, over ``draws`` draws g_k with mean ḡ:

    gradient_variance    tr Cov(g) / |ḡ|²,  tr Cov = Σ_k |g_k − ḡ|²/(n − 1),  |ḡ|² less its own bias tr Cov / n

the noise-to-signal ratio of the gradient (for batches of ``images``), for pairs with shared and independent noise.

Settings: ``images``, ``draws``. Written to ``gradients.npz``: for each kind tr Cov and |ḡ|², ``(levels, 2)``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl import langevin, randomness
from cdrl.networks import EnergyNet
from cdrl.networks.energy import energies
from cdrl.noise import independent_pair, per_image, shared_noise_pair
from cdrl.sampler import Sampler
from experiments import data
from experiments.evaluate import OnProgress, TrainedRun, chain_start
from experiments.measurement import Measurement

PAIRS = ("shared", "independent")
Array = NDArray[np.float64]


def evaluate(run: TrainedRun, settings: dict[str, Any], out: Path, progress: OnProgress) -> list[Measurement]:
    """See the module's docstring."""
    sampler = run.sampler()
    network = copy.deepcopy(sampler.energy_net).requires_grad_(True)
    x0 = data.to_float(run.train.images[: settings["images"]]).to(run.device)
    levels = sampler.schedule.levels
    moments: dict[str, Any] = {kind: np.zeros((levels, 2)) for kind in PAIRS}
    for number in range(levels):
        for kind in PAIRS:
            draws = (
                learning_gradient(sampler, network, x0, number + 1, kind == "shared", run.seed, draw)
                for draw in range(settings["draws"])
            )
            moments[kind][number] = spread(draws)
        progress((number + 1) / levels, f"level {number}")
    np.savez(out / "gradients.npz", **moments)
    measured = partial(Measurement, metric="gradient_variance", protocol="gradient", samples=settings["draws"])
    return [
        measured(value=float(total / square), level=number, variant=f"{kind} noise")
        for kind in PAIRS
        for number, (total, square) in enumerate(moments[kind])
    ]


def learning_gradient(
    sampler: Sampler, network: EnergyNet, x0: Tensor, t: int, shared: bool, seed: int, draw: int
) -> Tensor:
    """One draw of the energy network's gradient at level ``t`` for images ``x0`` ``(B, C, H, W)``, as a flat vector."""
    schedule, index = sampler.schedule.to(x0.device), torch.arange(len(x0), device=x0.device)
    level = torch.full_like(index, t)

    def normal(purpose: str) -> Tensor:
        return randomness.normal(randomness.key(seed, f"gradients/{purpose}", t, draw), index, sampler.shape)

    if shared:
        lower, upper = shared_noise_pair(schedule, x0, level, normal("pair"))
    else:
        lower, upper = independent_pair(schedule, x0, level, normal("pair"), normal("posterior"))
    positive = per_image(schedule.scale[level]) * lower
    weights = network.weights()
    chain = langevin.Chain(
        energy=network.frozen(weights, schedule.logsnr[level - 1]),
        start=chain_start(sampler, schedule, upper, level, normal("proposal")),
        anchor=upper,
        constants=langevin.coefficients(schedule, level, sampler.chain),
        streams=randomness.keys(seed, "gradients/chain", t, draw, count=sampler.chain.steps, device=x0.device),
        image_index=index,
    )
    refined = langevin.refine(chain)
    context = network.context(weights, schedule.logsnr[level - 1]).repeat(2)
    negative, held = energies(torch.cat((refined.y, positive)), weights, context).chunk(2)
    loss = schedule.loss_weight[t] * (negative - held).mean()
    parts = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    return torch.cat([part.flatten() for part in parts if part is not None])


def spread(draws: Iterable[Tensor]) -> Array:
    """Total variance and squared mean norm (its bias removed) of an iterable of at least two vectors, ``(2,)``."""
    count, mean, squares = 0, torch.zeros(()), 0.0
    for vector in draws:  # Welford, so that only two vectors are held
        count += 1
        vector = vector.double()
        step = vector - mean
        mean = mean + step / count
        squares += float(step @ (vector - mean))
    total = squares / (count - 1)
    return np.array([total, max(float(mean @ mean) - total / count, np.finfo(np.float64).tiny)])
