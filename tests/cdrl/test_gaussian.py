"""Gaussian data, for which every level's energy, conditional and best denoiser are known exactly.

Data N(μ, Σ) make x_t ~ N(α_t μ, α_t² Σ + σ_t² I), so ``f = s_t² log p(y)`` in closed form. With it as the energy net,
chains and the sampler must return the known moments, discretisation included. All in float64.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cdrl import langevin, randomness
from cdrl.langevin import Langevin
from cdrl.networks.energy import input_gradient
from cdrl.noise import NoiseSchedule, cosine_logsnr, linear_beta
from cdrl.sampler import Sampler
from tests.reference import EXACT

SHAPE, PIXELS = (1, 2, 2), 4
MEAN = torch.tensor([0.15, -0.1, 0.0, 0.05], dtype=torch.float64)
ROOT = torch.tensor(
    [[0.20, 0.0, 0.0, 0.0], [0.08, 0.15, 0.0, 0.0], [0.0, -0.1, 0.15, 0.0], [0.05, 0.0, 0.05, 0.18]],
    dtype=torch.float64,
)
COVARIANCE = ROOT @ ROOT.T
EYE = torch.eye(PIXELS, dtype=torch.float64)


class GaussianEnergy:
    """``f(y) = s_t² log p(y)`` with the interface of a frozen energy."""

    def __init__(self, mean: Tensor, precision: Tensor, variance: float) -> None:
        self.mean, self.precision, self.variance = mean, precision, variance

    def __call__(self, y: Tensor) -> Tensor:
        away = y.flatten(1) - self.mean
        return -0.5 * self.variance * torch.einsum("bi,ij,bj->b", away, self.precision, away)

    def gradient(self, y: Tensor) -> Tensor:
        return input_gradient(self, y)


class GaussianNet(nn.Module):
    """Stands in for an energy net trained to perfection with these settings."""

    channels, image_size, classes = 1, 2, 0

    def __init__(self, schedule: NoiseSchedule, step_variance: float) -> None:
        super().__init__()
        self.schedule, self.step_variance = schedule, step_variance
        self.place = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def weights(self) -> None:
        """Nothing to normalise."""

    def frozen(self, weights: None, logsnr: Tensor, label: Tensor | None = None, mix: Tensor | None = None) -> Any:
        t = 1 + int((self.schedule.logsnr - logsnr[0]).abs().argmin())
        mean, covariance = marginal_of_y(self.schedule, t)
        variance = self.step_variance * float(self.schedule.unit_step[t]) ** 2
        return GaussianEnergy(mean, covariance.inverse(), variance)


def marginal_of_y(schedule: NoiseSchedule, t: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of y = scale_t x_{t−1}."""
    alpha, sigma, scale = (float(v) for v in (schedule.alpha[t - 1], schedule.sigma[t - 1], schedule.scale[t]))
    return scale * alpha * MEAN, scale**2 * (alpha**2 * COVARIANCE + sigma**2 * EYE)


def conditional_of_y(schedule: NoiseSchedule, t: int, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of y given x_t = y + √β_t ε; at the top level those of y alone."""
    mean, covariance = marginal_of_y(schedule, t)
    if t == schedule.levels:
        return mean, covariance
    gain = covariance @ (covariance + float(schedule.beta[t]) * EYE).inverse()
    return mean + gain @ (x_t.flatten() - mean), covariance - gain @ covariance


def chain(schedule: NoiseSchedule, t: int, start: Tensor, x_t: Tensor, settings: Langevin, seed: int = 0) -> Tensor:
    """Chains at one level, all with the same x_t."""
    energy = GaussianNet(schedule, settings.step_variance).frozen(None, schedule.logsnr[t - 1].expand(len(start)))
    return langevin.refine(
        langevin.Chain(
            energy=energy,
            start=start,
            anchor=x_t.expand_as(start),
            constants=langevin.coefficients(schedule, torch.full((len(start),), t), settings),
            streams=randomness.keys(seed, "test", count=settings.steps),
            image_index=torch.arange(len(start)),
        )
    ).y


def moments(images: Tensor) -> tuple[Tensor, Tensor]:
    rows = images.flatten(1)
    return rows.mean(0), rows.T.cov()


def assert_moments(images: Tensor, mean: Tensor, covariance: Tensor, slack: float = 0.0) -> None:
    """Within five standard errors of independent Gaussian draws, plus a relative ``slack``."""
    actual_mean, actual_covariance = moments(images)
    scale = covariance.diagonal().sqrt()
    assert bool(((actual_mean - mean).abs() < (5 / math.sqrt(len(images)) + slack) * scale).all())
    error = (actual_covariance - covariance).abs() / (scale[:, None] * scale[None, :])
    assert float(error.max()) < 5 * math.sqrt(2 / len(images)) + slack


SCHEDULES = {
    name: schedule.to("cpu", torch.float64)
    for name, schedule in (
        ("cosine", cosine_logsnr()),
        ("linear", linear_beta()),
        ("two", cosine_logsnr(2)),
        ("one", cosine_logsnr(1)),
    )
}
LEVELS = [(name, t) for name, schedule in SCHEDULES.items() for t in range(1, schedule.levels + 1)]


@pytest.mark.parametrize(("name", "t"), LEVELS)
def test_one_step_follows_the_exact_conditional_score(name: str, t: int) -> None:
    schedule = SCHEDULES[name]
    settings = Langevin(steps=1, step_variance=3e-4, step_multiplier=1.7, noise_scale=0.9)
    y, x_t = (0.3 * torch.randn(n, *SHAPE, dtype=torch.float64) for n in (64, 1))
    mean, covariance = conditional_of_y(schedule, t, x_t)
    step = 1.7 * math.sqrt(3e-4) * float(schedule.unit_step[t])
    score = -(y.flatten(1) - mean) @ covariance.inverse()
    noise = randomness.normal(randomness.key(0, "test", 0), torch.arange(64), SHAPE, y.dtype)
    expected = y.flatten(1) + 0.5 * step**2 * score + 0.9 * step * noise.flatten(1)
    moved = chain(schedule, t, y, x_t, settings).flatten(1)
    torch.testing.assert_close(moved - y.flatten(1), expected - y.flatten(1), rtol=0, atol=EXACT)


def walking(schedule: NoiseSchedule, t: int, x_t: Tensor, share: float, lengths: float) -> tuple[Langevin, float]:
    """A chain whose squared step is ``share`` of the narrowest variance, ``lengths`` relaxation times long."""
    eigenvalues = torch.linalg.eigvalsh(conditional_of_y(schedule, t, x_t)[1])
    squared_step = share * float(eigenvalues[0])
    steps = math.ceil(lengths * 2 * float(eigenvalues[-1]) / squared_step)
    multiplier = math.sqrt(squared_step / 4e-4) / float(schedule.unit_step[t])
    return Langevin(steps=steps, step_variance=4e-4, step_multiplier=multiplier), squared_step


@pytest.mark.parametrize(("name", "t"), LEVELS)
def test_chain_converges_to_the_exact_conditional(name: str, t: int) -> None:
    """From one point far away. Steps of variance h widen a Gaussian of precision P to P⁻¹ (1 − h P / 4)⁻¹ exactly."""
    schedule, x_t = SCHEDULES[name], torch.tensor([0.4, -0.2, 0.1, -0.5]).double().reshape(1, *SHAPE)
    mean, covariance = conditional_of_y(schedule, t, x_t)
    settings, squared_step = walking(schedule, t, x_t, share=0.5, lengths=8)
    widened = covariance @ (EYE - 0.25 * squared_step * covariance.inverse()).inverse()
    assert_moments(chain(schedule, t, torch.ones(3000, *SHAPE).double(), x_t, settings), mean, widened)


@pytest.mark.parametrize(("name", "t"), LEVELS)
def test_chain_leaves_the_exact_conditional_invariant(name: str, t: int) -> None:
    schedule, x_t = SCHEDULES[name], torch.tensor([-0.1, 0.3, 0.2, 0.6]).double().reshape(1, *SHAPE)
    mean, covariance = conditional_of_y(schedule, t, x_t)
    draws = mean + torch.randn(3000, PIXELS, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    settings, _ = walking(schedule, t, x_t, share=0.05, lengths=1)
    after = chain(schedule, t, draws.reshape(-1, *SHAPE), x_t, settings)
    assert_moments(after, mean, covariance, slack=0.0125)


def sampler(schedule: NoiseSchedule, settings: Langevin, last_denoise: str) -> Sampler:
    net: Any = GaussianNet(schedule, settings.step_variance)
    return Sampler(net, None, schedule, SHAPE, settings, last_denoise=last_denoise)


def denoised(schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """Gain of E[x | x_0] on x_0 − α_0 μ, and the covariance of E[x | x_0]."""
    alpha, sigma = float(schedule.alpha[0]), float(schedule.sigma[0])
    gain = alpha * COVARIANCE @ (alpha**2 * COVARIANCE + sigma**2 * EYE).inverse()
    return gain, alpha * gain @ COVARIANCE


@pytest.mark.parametrize("last_denoise", ["none", "consistent"])
def test_sampler_returns_the_data_distribution(last_denoise: str) -> None:
    schedule = cosine_logsnr(levels=3, logsnr_max=4.0, logsnr_min=-3.0).to("cpu", torch.float64)
    images = sampler(schedule, Langevin(steps=300, step_variance=5e-3), last_denoise)(torch.arange(3000), seed=3)
    alpha, sigma = float(schedule.alpha[0]), float(schedule.sigma[0])
    if last_denoise == "none":
        assert_moments(images, alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * EYE, slack=0.03)
    else:
        assert_moments(images, MEAN, denoised(schedule)[1], slack=0.03)


def test_last_denoise_is_the_posterior_mean() -> None:
    """No step at all leaves x_0 known; "official" takes twice the score."""
    schedule, seen = cosine_logsnr(levels=3, logsnr_max=3.0, logsnr_min=-3.0).to("cpu", torch.float64), {}

    def keep(stage: str, level: int, images: Tensor) -> None:
        seen[stage, level] = images

    result = {}
    for mode in ("consistent", "official"):
        still = Langevin(steps=0, step_variance=4e-4)
        result[mode] = sampler(schedule, still, mode)(torch.arange(500), 1, observe=keep).flatten(1)
    x_0 = seen["refined", 0].flatten(1)
    alpha = float(schedule.alpha[0])
    exact = MEAN + (x_0 - alpha * MEAN) @ denoised(schedule)[0].T
    twice = x_0 / alpha + 2 * (exact - x_0 / alpha)
    torch.testing.assert_close(result["consistent"], exact.clamp(-1, 1), rtol=0, atol=EXACT)
    torch.testing.assert_close(result["official"], twice.clamp(-1, 1), rtol=0, atol=EXACT)
    assert all(float((images.abs() < 1).double().mean()) > 0.5 for images in result.values())
