"""The equations of CDRL and DRL written down plainly: what every fast path must match.

Numbers have the type of the images or of the networks that are passed. In float64 a fast path that is right agrees to
`EXACT`, whatever the processor; in float32 chains and Adam make much more of a rounding (see `tests.sensitivity`).

Nothing is cached or fused: each forward pass normalises its own weights, the positive and the negative pass are
separate, chains follow the gradient of ``log p(y | x_t)`` itself, Adam and the moving average are their textbook
formulas. Shared with the package are the random numbers, the settings, and the modules as holders of parameters (the
U-Net, which has nothing to optimise away, also as a function).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdrl import randomness
from cdrl.cooperative import Cooperative, Settings
from cdrl.langevin import Langevin
from cdrl.learner import Optimisation
from cdrl.networks import EnergyNet, Initializer
from cdrl.networks.initializer import Dropout
from cdrl.noise import NoiseSchedule

Energy = Callable[[Tensor], Tensor]
EXACT = 1e-9
"""How far apart, relatively, two computations of the same thing in float64 may end."""


@dataclass
class Trained:
    """A network's parameters, their Adam moments and their moving averages."""

    network: Any
    settings: Optimisation
    first: list[Tensor] = field(default_factory=list)
    second: list[Tensor] = field(default_factory=list)
    average: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        parameters = [p.detach() for p in self.network.parameters()]
        self.first, self.second = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
        self.average = [p.clone() for p in parameters]


@dataclass
class State:
    """All that a run of the reference changes or needs."""

    energy: Trained
    initializer: Trained | None
    settings: Settings
    seed: int
    iterations: int


class Transition(NamedTuple):
    """The constants of t−1 → t for each image: log-SNRs ``(B,)``, all else ``(B, 1, 1, 1)``."""

    lower: Tensor
    upper: Tensor
    alpha: Tensor
    sigma: Tensor
    alpha_lower: Tensor
    sigma_lower: Tensor
    beta: Tensor
    scale: Tensor
    step: Tensor
    proposal: Tensor
    weight: Tensor
    tethered: Tensor


def state_of(method: Cooperative) -> State:
    """A reference run that starts where ``method`` stands before its first iteration."""
    learners = {name: Trained(copy.deepcopy(x.network), x.settings) for name, x in method.learners.items()}
    return State(learners["energy"], learners.get("initializer"), method.settings, method.seed, method.iterations)


def transition(
    schedule: NoiseSchedule, level: Tensor, step_variance: float, dtype: torch.dtype = torch.float32
) -> Transition:
    """From the log-SNRs alone, computed in float64 and rounded to ``dtype``."""
    logsnr = schedule.to(level.device, torch.float64).logsnr
    upper, lower = logsnr[level], logsnr[level - 1]
    alpha, sigma = upper.sigmoid().sqrt(), (-upper).sigmoid().sqrt()
    alpha_lower, sigma_lower = lower.sigmoid().sqrt(), (-lower).sigmoid().sqrt()
    beta = 1 - (alpha / alpha_lower) ** 2
    beta_1 = 1 - logsnr[1].sigmoid() / logsnr[0].sigmoid()
    below_top = level < len(logsnr) - 1
    scale = torch.where(below_top, alpha / alpha_lower, 1.0)
    step = (step_variance * sigma_lower / (-logsnr[0]).sigmoid().sqrt() * beta).sqrt()
    proposal = scale * sigma_lower * beta.sqrt() / sigma
    values = (alpha, sigma, alpha_lower, sigma_lower, beta, scale, step, proposal, (beta_1 / beta).sqrt(), below_top)
    return Transition(lower.to(dtype), upper.to(dtype), *(v.to(dtype)[:, None, None, None] for v in values))


def normalised(layer: Any) -> Tensor:
    """The weight over its estimated largest singular value ``uᵀ W v``; where bounded, as DRL's release computes it."""
    sigma = torch.einsum("o,oi,i->", layer.u.clone(), layer.weight.flatten(1), layer.v.clone())
    if layer.bounded:
        return layer.weight / (sigma + 1e-6) * torch.minimum(sigma + 1e-6, torch.ones_like(sigma))
    return layer.weight / sigma


def power_iteration(network: nn.Module, times: int = 1) -> None:
    """Improves ``u`` and ``v`` of every layer that has them."""
    for layer in network.modules():
        for _ in range(times if hasattr(layer, "u") else 0):
            matrix = layer.weight.detach().flatten(1)
            layer.v = matrix.T @ layer.u / (matrix.T @ layer.u).norm()
            layer.u = matrix @ layer.v / (matrix @ layer.v).norm()


def embedding(logsnr: Tensor, width: int, levels: list[float] | None = None) -> Tensor:
    time = 1000 * torch.arctan(torch.exp(-logsnr / 2)) / (math.pi / 2)
    if levels is not None:
        numbers = [next(i for i, level in enumerate(levels) if abs(level - float(x)) < 1e-3) for x in logsnr]
        time = torch.tensor(numbers).to(logsnr)
    exponents = torch.arange(width // 2, device=logsnr.device).to(logsnr.dtype) / (width // 2 - 1)
    frequencies = torch.exp(-math.log(10_000) * exponents)
    return torch.cat((torch.sin(time[:, None] * frequencies), torch.cos(time[:, None] * frequencies)), 1)


def energy(net: EnergyNet, y: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
    """``f(y; λ)``, ``(B,)``."""

    def linear(layer: Any, x: Tensor) -> Tensor:
        return x @ normalised(layer).T + layer.bias

    def conv(layer: Any, x: Tensor) -> Tensor:
        return F.conv2d(x, normalised(layer), layer.bias, padding=layer.weight.shape[-1] // 2)

    def act(x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.2)

    levels = None if net.levels is None else net.levels.tolist()
    emb = linear(net.embed_out, act(linear(net.embed_in, embedding(logsnr, net.width, levels))))
    if net.classes:
        label = torch.zeros_like(logsnr, dtype=torch.long) if label is None else label
        emb = emb + linear(net.embed_label, F.one_hot(label, net.classes + 1).to(emb.dtype))
    emb = act(emb)
    h = conv(net.stem, y)
    for block in net.blocks:
        assert not isinstance(block, Tensor)
        time = linear(block.time, emb)
        inner = conv(block.first, act(h)) + (act(time) if block.time_activation else time)[:, :, None, None]
        inner = conv(block.second, act(inner)) * block.gain[:, None, None]  # type: ignore[union-attr,index]
        h = inner + (conv(block.shortcut, h) if block.shortcut is not None else h)
        h = F.avg_pool2d(h, 2) if block.pool else h
    readout = emb @ net.readout.weight.T + (0 if net.readout.bias is None else net.readout.bias)
    return (F.relu(h).sum((2, 3)) * readout).sum(1)


def log_density(f: Energy, y: Tensor, x_t: Tensor, at: Transition) -> Tensor:
    """``log p(y | x_t)`` up to a constant, ``(B,)``; at the top level ``log p(y)``."""
    tether = (at.tethered * (y - x_t) ** 2 / (2 * at.beta)).sum((1, 2, 3))
    return f(y) / at.step.flatten() ** 2 - tether


def reference_chain(
    f: Energy, y: Tensor, x_t: Tensor, at: Transition, settings: Langevin, streams: list[int], index: Tensor
) -> Tensor:
    """K Langevin steps on ``log p(y | x_t)``, one per stream of noise."""
    step = settings.step_multiplier * at.step
    for stream in streams:
        y = y.detach().requires_grad_()
        (score,) = torch.autograd.grad(log_density(f, y, x_t, at).sum(), y)
        z = randomness.normal(stream, index, tuple(y.shape[1:]), y.dtype)
        y = y + step**2 / 2 * score + settings.noise_scale * step * z
    return y.detach()


def reference_step(state: State, x0: Tensor, label: Tensor | None, iteration: int) -> dict[str, Any]:
    """One training iteration; returns the losses, levels, energy gaps, refined samples and clipped gradients."""
    settings, net, index = state.settings, state.energy.network, torch.arange(len(x0), device=x0.device)

    def key(purpose: str, *counters: int) -> int:
        return randomness.key(state.seed, f"train/{purpose}", iteration, *counters)

    def noise(purpose: str) -> Tensor:
        return randomness.normal(key(purpose), index, tuple(x0.shape[1:]), x0.dtype)

    level = 1 + randomness.integers(key("level"), index, settings.schedule.levels)
    at = transition(settings.schedule, level, settings.chain.step_variance, x0.dtype)
    if label is not None and net.classes:
        label = torch.where(randomness.uniform(key("label"), index) < settings.label_dropout, 0, label)
    x_t = at.alpha * x0 + at.sigma * noise("pair")
    x_lower = at.alpha_lower * x0 + at.sigma_lower * noise("pair")
    if not settings.shared_noise:
        x_lower = posterior_sample(at, x0, x_t, noise("posterior"))

    mean = start = x_t
    if state.initializer is not None:
        network = state.initializer.network
        keys = torch.tensor([key("dropout", block) for block in range(network.residual_blocks)])
        mean = network(x_t, at.upper, label, Dropout(network.dropout, keys, index) if network.dropout else None)
        start = mean + at.proposal * noise("proposal")

    power_iteration(net, state.energy.settings.power_iterations)
    streams = [key("chain", step) for step in range(settings.chain.steps)]
    refined = reference_chain(lambda y: energy(net, y, at.lower, label), start, x_t, at, settings.chain, streams, index)

    positive = energy(net, at.scale * x_lower, at.lower, label)
    negative = energy(net, refined, at.lower, label)
    loss = (at.weight.flatten() * (negative - positive)).mean()
    result = {"level": level, "gap": (positive - negative).detach(), "refined": refined, "energy_loss": loss.detach()}
    result["energy_gradients"] = descend(state.energy, loss, iteration, state.iterations)
    if state.initializer is not None:
        target = start if settings.initializer_target == "noisy" else mean
        loss = ((refined - target) ** 2).sum((1, 2, 3)).mean()
        result["initializer_loss"] = loss.detach()
        result["initializer_gradients"] = descend(state.initializer, loss, iteration, state.iterations)
    return result


def posterior_sample(at: Transition, x0: Tensor, x_t: Tensor, z: Tensor) -> Tensor:
    """x_{t−1} ~ q(x_{t−1} | x_t, x_0), by conditioning a joint Gaussian."""
    a = at.alpha / at.alpha_lower
    gain = a * at.sigma_lower**2 / at.sigma**2  # cov(x_{t−1}, x_t) / var(x_t), given x_0
    variance = at.sigma_lower**2 - gain * a * at.sigma_lower**2
    return at.alpha_lower * x0 + gain * (x_t - at.alpha * x0) + variance.clamp(min=0).sqrt() * z


@torch.no_grad()
def descend(trained: Trained, loss: Tensor, iteration: int, iterations: int) -> list[Tensor]:
    """Gradient, clip, Adam with warm-up, moving average; returns the clipped gradients."""
    settings, parameters = trained.settings, list(trained.network.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    clip = min(1.0, settings.clip / (norm + 1e-6)) if settings.clip else 1.0
    gradients = tuple(g * clip for g in gradients)
    rate, (beta_1, beta_2) = settings.rate(iteration, iterations), settings.betas
    decay, n = settings.ema, iteration + 1
    if settings.ema_ramp is not None:
        decay = min(decay, (n + settings.ema_ramp) / (9 + n + settings.ema_ramp))
    for p, g, m, v, mean in zip(parameters, gradients, trained.first, trained.second, trained.average, strict=True):
        m.mul_(beta_1).add_((1 - beta_1) * g)
        v.mul_(beta_2).add_((1 - beta_2) * g**2)
        if settings.epsilon_corrected:  # Kingma & Ba 2015, algorithm 1
            step = m / (1 - beta_1**n) / ((v / (1 - beta_2**n)).sqrt() + settings.epsilon)
        else:  # the same article's other order, and TensorFlow's
            step = math.sqrt(1 - beta_2**n) / (1 - beta_1**n) * m / (v.sqrt() + settings.epsilon)
        p -= rate * (step + settings.weight_decay * p)
        mean.copy_(decay * mean + (1 - decay) * p)
    return list(gradients)


def averaged(trained: Trained, spectral: str = "live") -> Any:
    """A network with the averaged weights; its power iterations are the live ones, or ten better."""
    network = copy.deepcopy(trained.network).eval()
    for p, mean in zip(network.parameters(), trained.average, strict=True):
        p.data.copy_(mean)
    power_iteration(network, 10 if spectral == "refresh" else 0)
    return network


def reference_sample(
    state: State,
    index: Tensor,
    seed: int,
    shape: tuple[int, ...],
    concepts: list[tuple[float, Tensor | None]] | None = None,
) -> Tensor:
    """Images by progressive sampling; ``concepts`` are pairs of a weight and labels ``(B,)`` that are combined."""
    settings = state.settings
    net = averaged(state.energy, settings.spectral_ema)
    proposer: Initializer | None = averaged(state.initializer) if state.initializer else None
    concepts, chain = concepts or [(1.0, None)], settings.sampling or settings.chain
    dtype = net.readout.weight.dtype

    def noise(purpose: str, *counters: int) -> Tensor:
        return randomness.normal(randomness.key(seed, f"sample/{purpose}", *counters), index, shape, dtype)

    def f_at(at: Transition) -> Energy:
        return lambda y: torch.stack([w * energy(net, y, at.lower, c) for w, c in concepts]).sum(0)

    x = noise("start")
    for t in range(settings.schedule.levels, 0, -1):
        at = transition(settings.schedule, torch.full_like(index, t), chain.step_variance, dtype)
        y = x
        if proposer is not None:
            with torch.no_grad():
                y = torch.stack([w * proposer(x, at.upper, c) for w, c in concepts]).sum(0)
            y = y + at.proposal * noise("proposal", t, 0)
        streams = [randomness.key(seed, "sample/chain", t, 0, step) for step in range(chain.steps)]
        x = reference_chain(f_at(at), y, x, at, chain, streams, index) / at.scale
    if settings.last_denoise != "none":
        variance = at.step**2 / (2 if settings.last_denoise == "official" else 1)
        x = x.requires_grad_()
        (score,) = torch.autograd.grad((f_at(at)(at.scale * x) / variance.flatten()).sum(), x)
        x = (x + at.sigma_lower**2 * score) / at.alpha_lower
    elif proposer is not None:
        x = x / at.alpha_lower
    return x.detach().clamp(-1, 1)


def distance(actual: Iterable[Any], expected: Iterable[Tensor]) -> float:
    """The distance between two lists of tensors as one vector each, relative to the norm of ``expected``."""
    a, b = (torch.cat([x.detach().double().flatten() for x in tensors]) for tensors in (actual, expected))
    return float((a - b).norm() / b.norm())
