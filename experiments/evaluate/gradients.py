"""Does shared noise make the learning gradient less noisy? Same networks, same images, many draws of the noise.

The energy network's gradient ``g = ∇_θ mean_i w_t (f(ỹ_i) − f(y⁺_i))`` of one batch at one level is a random vector
through the pair's noise, the proposal's and the chain's. Both kinds of pairs have members of the same laws; what they
may change is how much g varies. Measured per level, at every milestone and at the end of training:

    variance_ratio    tr Cov(g), shared noise / tr Cov(g), independent noise,  tr Cov = Σ_k |g_k − ḡ|²/(n − 1)

over ``draws`` n of each kind, on ``images`` images; below 1, shared noise helps. Further setting: none. Written to
``gradients.npz``: for each kind tr Cov, ``(points, levels)``, and ``trained``, the shares of training ``(points,)``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdrl import langevin
from cdrl.cooperative import energy_gap
from cdrl.networks import EnergyNet
from cdrl.networks.energy import energies, freeze
from cdrl.randomness import Draws
from cdrl.sampler import Sampler
from experiments import data
from experiments.evaluate import OnProgress, TrainedRun, at_milestone, chain_start
from experiments.measurement import Measurement

PAIRS = ("shared", "independent")


def evaluate(run: TrainedRun, settings: dict[str, Any], out: Path, progress: OnProgress) -> list[Measurement]:
    """See the module's docstring."""
    assert run.method is not None
    x0 = data.to_float(run.train.images[: settings["images"]]).to(run.device)
    earlier = [at_milestone(run.method, folder) for folder in run.milestones]
    points = [(iteration / run.method.iterations, method) for iteration, method in earlier] + [(1.0, run.method)]

    # tr Cov of both kinds, at every point of training and every level.
    levels = run.sampler().schedule.levels
    variances: dict[str, Any] = {kind: np.zeros((len(points), levels)) for kind in PAIRS}
    for point, (_, method) in enumerate(points):
        sampler = replace(run, method=method).sampler()
        network = copy.deepcopy(sampler.energy_net).requires_grad_(True)
        for level in range(levels):
            for kind in PAIRS:
                draws = (
                    learning_gradient(sampler, network, x0, level + 1, kind == "shared", run.seed, draw)
                    for draw in range(settings["draws"])
                )
                variances[kind][point, level] = total_variance(draws)
            done = (point * levels + level + 1) / (len(points) * levels)
            progress(done, f"point {point + 1} of {len(points)}, level {level}")
    np.savez(out / "gradients.npz", trained=[share for share, _ in points], **variances)

    ratios = variances["shared"] / variances["independent"]
    return [
        Measurement(
            metric="variance_ratio",
            protocol="gradient",
            value=float(ratios[point, level]),
            samples=settings["draws"],
            level=level,
            trained=None if share == 1.0 else round(share, 3),
        )
        for point, (share, _) in enumerate(points)
        for level in range(levels)
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


def total_variance(draws: Iterable[Tensor]) -> float:
    """tr Cov of an iterable of at least two vectors."""
    count, mean, squares = 0, torch.zeros(()), 0.0
    for vector in draws:  # Welford, so that only two vectors are held
        count += 1
        vector = vector.double()
        step = vector - mean
        mean = mean + step / count
        squares += float(step @ (vector - mean))
    return squares / (count - 1)
