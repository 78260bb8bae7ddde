"""Density, chains and gradients against closed forms: a Gaussian's energy is known, and so are its chains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cdrl.langevin import Coefficients, Langevin
from cdrl.networks import EnergyNet
from cdrl.noise import cosine_logsnr
from cdrl.recipe import CooperativeRecipe, ImageShape
from cdrl.sampler import Sampler
from experiments.data import DataSettings
from experiments.data.sets.toy import DENSITIES, density
from experiments.evaluate import TrainedRun
from experiments.evaluate.chains import Target, diagnose, walk
from experiments.evaluate.density import Grid, clean, divergence, evaluate, learned_log_density, level_grid
from experiments.evaluate.gradients import learning_gradient, total_variance
from experiments.metrics import Protocol
from tests.reference import EXACT


def gaussian_chain(step: float, n: int = 64) -> tuple[Target, Tensor]:
    """Chains at a standard normal of 4 dimensions, started in equilibrium: f = −s²|y|²/2, no tether, float64."""

    def energy(y: Tensor) -> Tensor:
        return -0.5 * step**2 * y.square().sum(dim=(1, 2, 3))

    zero = torch.zeros(n, 1, 1, 1, dtype=torch.float64)
    frozen: Any = energy
    target = Target(
        frozen,
        torch.zeros(n, 1, 2, 2, dtype=torch.float64),
        Coefficients(torch.tensor(0.5), zero, zero + step),
        zero[:, 0, 0, 0] + step**2,
        zero[:, 0, 0, 0],
    )
    return target, torch.randn(n, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def acceptance(step: float) -> float:
    target, start = gaussian_chain(step)
    return float(walk(target, start, 50, 2, 0, lambda done, text: None).acceptance.mean())


def test_small_steps_would_be_accepted_and_large_ones_not() -> None:
    assert acceptance(0.05) > 0.999
    assert 0.999 > acceptance(0.8) > acceptance(1.6)


def test_acceptance_of_one_move_by_hand() -> None:
    step = 0.9
    target, start = gaussian_chain(step, n=3)
    walked = walk(target, start, 1, 4, 0, lambda done, text: None)
    y, moved = start.flatten(1), torch.from_numpy(walked.pixels[0])
    mean = 1 - step**2 / 2
    log_ratio = (
        0.5 * (y.square() - moved.square())
        + 0.5 * ((moved - mean * y).square() - (y - mean * moved).square()) / step**2
    ).sum(dim=1)
    np.testing.assert_allclose(walked.acceptance[0], log_ratio.clamp(max=0).exp().numpy(), rtol=EXACT)


def test_diagnosis_of_chains_that_mix_and_of_a_drift() -> None:
    random = np.random.RandomState(0)
    log_density, pixels = random.standard_normal((1000, 2, 4)), random.standard_normal((1000, 2, 4, 3))
    found = diagnose(np.ones((1000, 2, 4)), log_density, pixels, warm_up=10)
    assert found["acceptance"] == 1
    assert found["rhat"] == pytest.approx(1, abs=0.02)
    assert found["ess"] == pytest.approx(1000, rel=0.2)
    assert abs(found["energy_drift"]) < 0.2
    drifting = log_density + np.linspace(0, 10, 1000)[:, None, None]
    assert diagnose(np.ones((1000, 2, 4)), drifting, pixels, warm_up=10)["energy_drift"] > 5


class ExactNet(EnergyNet):
    """Returns s_t² times the true log-density of the level, in energy units."""

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        schedule = cosine_logsnr(3)
        level = int((schedule.logsnr - logsnr[0]).abs().argmin())
        x = (y / schedule.scale[level + 1])[:, :, 0, 0].double().numpy()
        exact = density("rings").log_density(x, float(schedule.alpha[level]), float(schedule.sigma[level]))
        return torch.from_numpy(exact).float() * 4e-4 * schedule.unit_step[level + 1].square() + 0.01


@pytest.mark.parametrize("level", [0, 2])
def test_exact_energy_has_no_divergence(level: int) -> None:
    schedule = cosine_logsnr(3)
    sampler = Sampler(ExactNet(1, 2, 8, (1,), 1, kernel=1), None, schedule, (2, 1, 1))
    grid = level_grid(schedule, level, 60)
    estimate = learned_log_density(sampler, level, grid)
    exact = density("rings").log_density(grid.centres, float(schedule.alpha[level]), float(schedule.sigma[level]))
    assert divergence(estimate, exact) == pytest.approx(0, abs=0.01)
    assert np.exp(estimate).sum() * np.exp(grid.log_area) == pytest.approx(1)


def test_divergence_of_two_gaussians() -> None:
    grid = Grid(8.0, 200)
    first, second = (-0.5 * np.square(grid.centres - mean).sum(axis=1) for mean in (0.0, 0.5))
    assert divergence(second, first) == pytest.approx(0.25, rel=1e-3)  # |Δm|²/2 with Δm = (½, ½)
    assert list(grid.cell(grid.centres)) == list(range(200**2))


@pytest.mark.parametrize("name", sorted(DENSITIES))
def test_unsmoothed_truth_against_itself_and_against_its_smoothed_self(name: str) -> None:
    known, alpha, sigma = density(name), 0.9, 0.1
    grid, points = Grid(alpha + 4 * sigma, 256), known.draw(20_000, np.random.RandomState(0))
    smoothed = known.log_density(grid.centres, alpha, sigma)
    found = clean(known, alpha, smoothed, grid, points)
    drawn = known.log_density(points) - known.log_density(alpha * points, alpha, sigma) - 2 * np.log(alpha)
    assert found["kl"] == pytest.approx(drawn.mean(), abs=0.01)
    assert found["true_log_likelihood"] - found["log_likelihood"] == pytest.approx(drawn.mean(), abs=0.01)
    assert clean(known, alpha, known.log_density(grid.centres, alpha), grid, points)["kl"] == 0


def test_total_variance() -> None:
    vectors = torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 2
    assert total_variance(vectors) == pytest.approx(float(vectors.var(dim=0).sum()), rel=EXACT)


def test_learning_gradient_is_a_function_of_its_draw() -> None:
    torch.manual_seed(0)
    network = EnergyNet(1, 2, 8, (1,), 1, kernel=1)
    sampler = Sampler(network, None, cosine_logsnr(3), (2, 1, 1))
    x0 = torch.rand(8, 2, 1, 1) - 0.5
    first, again, other, independent = (
        learning_gradient(sampler, network, x0, 2, shared, 0, draw)
        for shared, draw in ((True, 0), (True, 0), (True, 1), (False, 0))
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, independent)


def test_density_measures_every_level(tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = CooperativeRecipe(
        levels=2,
        chain=Langevin(steps=1, step_variance=0.4),
        energy={"width": 8, "multipliers": (1,), "blocks": 1, "kernel": 1},
        initializer=None,
    )
    settings = DataSettings(name="rings", image_size=1, channels=2)
    points = settings.load("test")
    run = TrainedRun(
        recipe=recipe,
        data=settings,
        method=recipe.build(ImageShape(1, 2)),
        milestones=(),
        seed=0,
        device=torch.device("cpu"),
        train=points,
        test=points,
        protocol=Protocol("fd-digits", "digits", 40),
        cache=tmp_path,
    )
    measurements = evaluate(run, {"grid": 16, "samples": 50, "batch": 50}, tmp_path, lambda done, text: None)
    metrics = ("kl", "log_likelihood", "true_log_likelihood")
    expected = [(metric, level, "") for level in (0, 1) for metric in metrics] + [("sample_log_density", 0, "")]
    expected += [(metric, 0, "unsmoothed") for metric in (*metrics, "sample_log_density")]
    assert [(m.metric, m.level, m.variant) for m in measurements] == expected
    assert all(np.isfinite(m.value) for m in measurements)
    assert {(m.protocol, m.samples) for m in measurements} == {("grid", 50)}
