"""Inpainting against closed-form Gaussian conditioning: two correlated pixels, one of them known.

The energies are those of noised Gaussian data, exactly: level t − 1 has the covariance ``C = α² Σ + σ² 1``. Given the
known pixel at level 0, the other is normal with the usual conditional moments, widened by the known pixel's own noise.
Steps are small, because unadjusted Langevin widens a Gaussian of precision P by the factor ``1/(1 − s² P/4)``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cdrl import conditions
from cdrl.langevin import Langevin
from cdrl.noise import NoiseSchedule, cosine_logsnr
from cdrl.sampler import Sampler

MEAN = torch.tensor([0.1, -0.1])
COVARIANCE = torch.tensor([[0.06, 0.045], [0.045, 0.05]])
CHAIN = Langevin(steps=80, step_variance=0.012)
KNOWN = 0.4
N = 3000


class GaussianEnergy(nn.Module):
    """``f(y) = s² log p(y)`` of noised Gaussian images of one row of two pixels, in the place of an `EnergyNet`."""

    classes = 0

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.device_of = nn.Parameter(torch.zeros(()))

    def weights(self) -> None:
        return None

    def frozen(
        self, weights: None, logsnr: Tensor, label: Tensor | None = None, mix: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        schedule = self.schedule
        level = 1 + int((schedule.logsnr - logsnr[0]).abs().argmin())
        centre, covariance = noised(schedule, level - 1)
        precision = torch.linalg.inv(schedule.scale[level] ** 2 * covariance)
        step = CHAIN.step_variance * schedule.unit_step[level] ** 2

        def energy(y: Tensor) -> Tensor:
            difference = y.flatten(1) - schedule.scale[level] * centre
            return -0.5 * step * ((difference @ precision) * difference).sum(dim=1)

        return energy


def noised(schedule: NoiseSchedule, level: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of ``x_level``."""
    alpha, sigma = schedule.alpha[level], schedule.sigma[level]
    return alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * torch.eye(2)


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return cosine_logsnr(levels=3, logsnr_max=4.0, logsnr_min=-5.0)


def completed(schedule: NoiseSchedule, repeats: int) -> Tensor:
    """The second pixel of N samples at level 0, where the first is known to be ``KNOWN``."""
    sampler = Sampler(
        energy_net=GaussianEnergy(schedule),  # type: ignore[arg-type]
        initializer=None,
        schedule=schedule,
        shape=(1, 1, 2),
        chain=CHAIN,
        shared_noise=False,
        last_denoise="none",
    )
    image, known = torch.full((1, 1, 1, 2), KNOWN), torch.tensor([True, False]).reshape(1, 1, 1, 2)
    condition = conditions.unconditional().inpainting(image, known, repeats)
    return sampler(torch.arange(N), 0, condition)[:, 0, 0, 1]


def test_the_hole_follows_the_conditional_distribution(schedule: NoiseSchedule) -> None:
    hole = completed(schedule, repeats=4)
    centre, covariance = noised(schedule, 0)
    slope = covariance[0, 1] / covariance[0, 0]
    mean = centre[1] + slope * (schedule.alpha[0] * KNOWN - centre[0])
    variance = covariance[1, 1] - slope * covariance[0, 1] + (slope * schedule.sigma[0]) ** 2
    assert hole.mean() == pytest.approx(float(mean), abs=0.02)
    assert hole.std() == pytest.approx(float(variance) ** 0.5, rel=0.06)
    assert abs(mean - centre[1]) > 0.1  # conditioning matters here
