"""Are the chains sampling? Long conditional chains at every level, watched.

A chain at transition t targets ``log π(y) = f(y; λ_{t−1})/s_t² − |y − x_t|²/(2β_t)`` (no tether at the top). Its moves
``y' ~ q(·|y) = N(y + drift(y), s_t² I)`` are never rejected; this computes how often a Metropolis–Hastings correction
would accept them,

    min(1, π(y') q(y|y') / π(y) q(y'|y)),

and does not apply it. For ``images`` held-out images, ``chains`` chains start from independent proposals given the same
x_t, and run ``steps`` steps, all levels at once. Measured per level, chains of one x_t together, then averaged:

    acceptance      mean acceptance probability
    rhat            split-R̂, the worst over log π and ``pixels`` fixed pixels
    ess             effective sample size per 1,000 steps of one chain, the smallest over the same quantities
    energy_drift    mean log π of the last tenth minus that of the tenth after the first K steps, in standard deviations
                    within a chain

Then whole samples with chains of other lengths: the protocol's first metric for the usual length and those in
``scored``, and of the run with seed ``pictured`` also ``pictures`` images for the usual length and those in ``long``.
Further settings: ``samples``, ``batch``. Written to ``chains.npz``: ``acceptance`` (levels, steps), ``log_density``
(levels, steps, images, chains); to ``long.npz``: uint8 pictures by length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl import langevin, randomness
from cdrl.langevin import Coefficients
from cdrl.networks import FrozenEnergy
from cdrl.noise import marginal
from cdrl.randomness import Draws
from cdrl.sampler import Sampler
from experiments import data
from experiments.evaluate import Diverged, OnProgress, TrainedRun, chain_start, samples
from experiments.measurement import Measurement
from experiments.metrics import to_pixels
from experiments.metrics.mixing import effective_sample_size, split_rhat

SCORES = True
_CHAINS_SHARE = 0.4
_PICTURES_SHARE = 0.7
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """The conditional densities of a batch of chains: energies, anchors and step constants per image."""

    energy: FrozenEnergy
    anchor: Tensor
    constants: Coefficients
    variance: Tensor
    """s_t² ``(B,)``: f is divided by it."""
    tether: Tensor
    """1/β_t ``(B,)``, 0 at the top."""

    @torch.no_grad()
    def density_and_move(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """log π up to a constant ``(B,)``, and the mean of the next move, like ``y``."""
        with torch.enable_grad():
            y = y.detach().requires_grad_(True)
            value = self.energy(y)
            (gradient,) = torch.autograd.grad(value.sum(), y)
        pull = (y - self.anchor).square().sum(dim=(1, 2, 3))
        log_density = value.double() / self.variance - 0.5 * self.tether * pull.double()
        mean = y + self.constants.gain * gradient - self.constants.tether * (y - self.anchor)
        return log_density.detach(), mean.detach()


@dataclass(frozen=True)
class Walk:
    """Along chains: ``(steps, B)`` acceptance probabilities and log π, ``(steps, B, pixels)`` pixels."""

    acceptance: Array
    log_density: Array
    pixels: Array


def evaluate(run: TrainedRun, settings: dict[str, Any], out: Path, progress: OnProgress) -> list[Measurement]:
    """See the module's docstring."""
    sampler = run.sampler()
    images, chains, levels = settings["images"], settings["chains"], sampler.schedule.levels

    # Long chains, all levels at once.
    x0 = data.to_float(run.test.images[:images]).to(run.device).repeat_interleave(chains, dim=0).repeat(levels, 1, 1, 1)
    level = torch.arange(1, levels + 1, device=run.device).repeat_interleave(images * chains)
    target, start = conditional(sampler, x0, level, run.seed, same=chains)
    walked = walk(target, start, settings["steps"], settings["pixels"], run.seed, progress)
    if not all(np.isfinite(values).all() for values in vars(walked).values()):
        raise Diverged("long chains are not finite")
    by_level = {
        name: np.moveaxis(values.reshape(len(values), levels, images, chains, *values.shape[2:]), 1, 0)
        for name, values in vars(walked).items()
    }
    np.savez_compressed(
        out / "chains.npz",
        acceptance=by_level["acceptance"].mean(axis=(2, 3)).astype(np.float32),
        log_density=by_level["log_density"].astype(np.float32),
    )
    measurements = []
    for number in range(levels):
        values = diagnose(**{name: traces[number] for name, traces in by_level.items()}, warm_up=sampler.chain.steps)
        about = partial(Measurement, protocol="chains", level=number, samples=images * chains)
        measurements += [about(metric=metric, value=value) for metric, value in values.items()]

    # Pictures from longer and longer chains.
    def longer(steps: int) -> Sampler:
        return replace(sampler, chain=replace(sampler.chain, steps=steps))

    if run.seed == settings["pictured"]:
        pictures: dict[str, Any] = {}
        lengths = [sampler.chain.steps, *settings["long"]]
        for number, steps in enumerate(lengths):
            share = _CHAINS_SHARE + (_PICTURES_SHARE - _CHAINS_SHARE) * number / len(lengths)
            progress(share, f"pictures with {steps} steps per level")
            few = settings["pictures"]
            (drawn,) = run.healthy(longer(steps).batches(few, run.seed, batch_size=few))
            pictures[str(steps)] = data.to_uint8(drawn).cpu().numpy()
        np.savez_compressed(out / "long.npz", **pictures)

    # Scores of whole samples.
    scored = (sampler.chain.steps, *settings["scored"])
    for number, steps in enumerate(scored):
        share = _PICTURES_SHARE + (1 - _PICTURES_SHARE) * number / len(scored)
        progress(share, f"scoring samples with {steps} steps per level")
        batches = run.healthy(longer(steps).batches(settings["samples"], run.seed, None, settings["batch"]))
        value = samples.headline(run, (to_pixels(batch, run.protocol.rounding) for batch in batches))
        measurement = Measurement(
            metric=run.protocol.metrics[0], protocol=run.protocol.name, value=value, samples=settings["samples"],
            steps=steps, grad_evals=longer(steps).cost,
        )  # fmt: skip
        measurements.append(measurement)
    return measurements


@torch.no_grad()
def conditional(sampler: Sampler, x0: Tensor, level: Tensor, seed: int, same: int = 1) -> tuple[Target, Tensor]:
    """The targets of chains from x_t to level t − 1, and their proposals.

    Args:
        sampler: networks, schedule and chain.
        x0: clean images ``(B, C, H, W)``, ``same`` in a row alike.
        level: t in 1 … T, int64 ``(B,)``.
        seed: any integer.
        same: this many consecutive images share one x_t, and differ in their proposals.
    """
    transitions, index = sampler.transitions, torch.arange(len(x0), device=sampler.device)
    schedule = transitions.schedule
    draws = Draws(seed, "chains", (), index, sampler.shape)
    upper = marginal(schedule, x0, level, replace(draws, index=index // same).normal("upper"))
    target = Target(
        energy=sampler.energy_net.frozen(sampler.energy_net.weights(), schedule.logsnr[level - 1]),
        anchor=upper,
        constants=langevin.coefficients(schedule, level, sampler.chain),
        variance=transitions.step_variance(level),
        tether=transitions.tether(level),
    )
    return target, chain_start(sampler, upper, level, draws)


def walk(target: Target, start: Tensor, steps: int, pixels: int, seed: int, progress: OnProgress) -> Walk:
    """Uncorrected Langevin steps from ``start``, with the acceptance each would have had."""
    index = torch.arange(len(start), device=start.device)
    streams = randomness.keys(seed, "chains/step", count=steps, device=start.device)
    watched = torch.linspace(0, start[0].numel() - 1, pixels).round().long().to(start.device)
    y, (value, mean) = start, target.density_and_move(start)
    rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def log_move(to: Tensor, mean: Tensor) -> Tensor:  # log q up to the constant that both directions share
        return -0.5 * ((to - mean).double() / target.constants.noise).square().sum(dim=(1, 2, 3))

    for number, stream in enumerate(streams.unbind()):
        moved = mean + target.constants.noise * randomness.normal(stream, index, tuple(y.shape[1:]), y.dtype)
        new_value, new_mean = target.density_and_move(moved)
        ratio = new_value - value + log_move(y, new_mean) - log_move(moved, mean)
        rows.append((ratio.clamp(max=0).exp(), new_value, moved.flatten(1)[:, watched].double()))
        y, value, mean = moved, new_value, new_mean
        if number % 100 == 0:
            progress(_CHAINS_SHARE * number / steps, f"step {number} of {steps}")
    return Walk(*(torch.stack(column).cpu().numpy() for column in zip(*rows, strict=True)))


def diagnose(acceptance: Array, log_density: Array, pixels: Array, warm_up: int) -> dict[str, float]:
    """The measurements of one level from traces ``(steps, images, chains[, pixels])``; see the module's docstring."""
    kept = slice(min(warm_up, len(acceptance) // 10), None)
    quantities = np.concatenate((log_density[kept, ..., None], pixels[kept]), axis=3)
    rhat, size = [], []
    for traces in np.transpose(quantities, (1, 3, 2, 0)):  # (quantities, chains, steps) of one x_t
        rhat.append(np.nanmax([split_rhat(trace) for trace in traces]))
        size.append(np.nanmin([effective_sample_size(trace) for trace in traces]))
    tail = log_density[kept]
    tenth = max(1, len(tail) // 10)
    drift = (tail[-tenth:].mean(axis=0) - tail[:tenth].mean(axis=0)) / tail[-tenth:].std(axis=0)
    return {
        "acceptance": float(acceptance.mean()),
        "rhat": float(np.mean(rhat)),
        "ess": float(np.mean(size)) * 1000 / (len(tail) * log_density.shape[2]),
        "energy_drift": float(drift.mean()),
    }
