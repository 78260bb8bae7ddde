"""The DDPM: schedules, exact sampling with an exact predictor, cost, and a training step that learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from baselines.ddpm import DDPM, DDPMSettings, denoise, linear_signal, scales
from cdrl.errors import UserError
from cdrl.learner import Optimisation
from cdrl.method import Batch
from cdrl.networks import EnergyNet, Initializer
from tests.reference import EXACT

MEAN, DEVIATION = 0.2, 0.15


def exact(x: Tensor, logsnr: Tensor) -> Tensor:
    """E[ε | x_k] for independent pixels N(MEAN, DEVIATION²)."""
    alpha, sigma = scales(logsnr)
    return sigma * (x - alpha * MEAN) / (alpha.square() * DEVIATION**2 + sigma.square())


def small(iterations: int = 100) -> DDPM:
    torch.manual_seed(0)
    network = Initializer(1, 2, 18, (1,), 1, dropout=0.0, attention_sizes=(), kernel=1).double()  # groups of 9
    optimisation = Optimisation(learning_rate=3e-3, warm_up=1, ema=0.9)
    reference = EnergyNet(1, 2, 16, (1,), 1, kernel=1)
    return DDPM(network, reference, DDPMSettings(sampling_steps=10), optimisation, (2, 1, 1), iterations=iterations)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_exact_predictor_gives_the_data(schedule: str, eta: float) -> None:
    settings = DDPMSettings(schedule, sampling_steps=1000 if eta else 100, eta=eta)
    x = denoise(exact, settings.logsnr(), settings, torch.arange(1000), (2, 1, 1), seed=1)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(x.std()) == pytest.approx(DEVIATION, rel=0.07)


def test_schedules() -> None:
    assert float(linear_signal(1000)[-1]) == pytest.approx(4.04e-5, rel=0.01)
    for schedule in ("cosine", "linear"):
        logsnr = DDPMSettings(schedule).logsnr()
        assert bool((logsnr.diff() < 0).all())
        assert bool(logsnr.isfinite().all())


def test_learns_and_samples() -> None:
    method = small()
    x0 = torch.randn(256, 2, 1, 1, generator=torch.Generator().manual_seed(0)).double() * DEVIATION + MEAN
    errors = []
    for iteration in range(100):
        method.train_step([Batch.whole(x0)], iteration)
        errors.append(method.meters.read()["noise_error"][0])
    assert sum(errors[-10:]) < 0.7 * sum(errors[:10])
    whole = torch.cat(list(method.sample(6, seed=2)))
    parts = torch.cat([*method.sample(4, seed=2, batch_size=3), *method.sample(6, seed=2, first=4)])
    torch.testing.assert_close(whole, parts, rtol=0, atol=EXACT)
    assert whole.dtype == torch.float64
    assert float(whole.abs().max()) <= 1


def test_mistakes() -> None:
    with pytest.raises(UserError, match="unknown schedule"):
        DDPMSettings("quadratic")
    with pytest.raises(UserError, match="sampling_steps"):
        DDPMSettings(sampling_steps=0)
    with pytest.raises(UserError, match="diffusion_steps"):
        DDPMSettings(diffusion_steps=10**9)
