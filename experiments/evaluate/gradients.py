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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl import langevin
from cdrl.cooperative import energy_gap
from cdrl.networks import EnergyNet
from cdrl.networks.energy import energies, freeze
from cdrl.randomness import Draws
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
    transitions = replace(sampler.transitions, shared_noise=shared)
    index = torch.arange(len(x0), device=x0.device)
    level, logsnr = torch.full_like(index, t), transitions.schedule.logsnr[t - 1].expand(len(x0))
    draws = Draws(seed, "gradients", (t, draw), index, sampler.shape)

    # As in training.
    lower, upper = transitions.pair(x0, level, draws)
    weights = network.weights()
    context = network.context(weights, logsnr)
    start = chain_start(sampler, upper, level, draws)
    refined = langevin.refine(transitions.walk(freeze(weights, context), start, upper, level, draws))
    gap = energy_gap(energies, weights, context, transitions.scaled(lower, level), refined.y)
    parts = torch.autograd.grad(transitions.energy_loss(gap, level), list(network.parameters()))
    return torch.cat([part.flatten() for part in parts])


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
