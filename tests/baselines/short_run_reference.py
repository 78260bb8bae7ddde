"""The equations of the short-run EBM written down plainly, in the manner of `tests.reference`."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.short_run import ShortRun, ShortRunSettings
from cdrl import randomness
from cdrl.networks import EnergyNet
from tests import reference
from tests.reference import Trained


@dataclass
class State:
    """All that a run of the reference changes or needs."""

    energy: Trained
    settings: ShortRunSettings
    logsnr: float
    seed: int
    iterations: int


def state_of(method: ShortRun) -> State:
    """A reference run that starts where ``method`` stands before its first iteration."""
    learner = method.learners["energy"]
    trained = Trained(copy.deepcopy(learner.network), learner.settings)
    return State(trained, method.settings, method.logsnr, method.seed, method.iterations)


def walk(net: EnergyNet, y: Tensor, logsnr: Tensor, streams: list[int], settings: ShortRunSettings) -> Tensor:
    """``y ← y + gain ∇f(y) + ω z``, one step per stream of noise."""
    index = torch.arange(len(y))
    for stream in streams:
        y = y.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(reference.energy(net, y, logsnr).sum(), y)
        z = randomness.normal(stream, index, tuple(y.shape[1:]), y.dtype)
        y = y + settings.gain * gradient + settings.step_noise * z
    return y.detach()


def step(state: State, x0: Tensor, iteration: int) -> tuple[Tensor, list[Tensor]]:
    """One training iteration; returns f(x⁺) − f(ỹ), ``(B,)``, and the clipped gradients."""
    settings, net, shape = state.settings, state.energy.network, tuple(x0.shape[1:])
    index, logsnr = torch.arange(len(x0)), x0.new_full((len(x0),), state.logsnr)

    def key(purpose: str, *counters: int) -> int:
        return randomness.key(state.seed, f"train/{purpose}", iteration, *counters)

    positive = x0 + settings.data_noise * randomness.normal(key("data"), index, shape, x0.dtype)
    start = 2 * randomness.uniform(key("start"), index, shape, x0.dtype) - 1
    reference.power_iteration(net)
    refined = walk(net, start, logsnr, [key("chain", number) for number in range(settings.steps)], settings)
    plus, minus = reference.energy(net, positive, logsnr), reference.energy(net, refined, logsnr)
    size = 0.5 * (plus.square().mean() + minus.square().mean())
    loss = (minus - plus).mean() + settings.energy_weight * size
    return (plus - minus).detach(), reference.descend(state.energy, loss, iteration, state.iterations)


def sample(state: State, n: int, seed: int, shape: tuple[int, ...]) -> Tensor:
    """Images by the training's chain on the averaged weights."""
    dtype = state.energy.network.readout.weight.dtype
    start = 2 * randomness.uniform(randomness.key(seed, "sample/start"), torch.arange(n), shape, dtype) - 1
    streams = [randomness.key(seed, "sample/chain", 0, number) for number in range(state.settings.steps)]
    net = reference.averaged(state.energy, "refresh")
    return walk(net, start, start.new_full((n,), state.logsnr), streams, state.settings).clamp(-1, 1)
