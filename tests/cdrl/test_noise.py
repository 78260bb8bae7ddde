"""Noise levels: published numbers, identities, and the distribution of training pairs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cdrl.errors import UserError
from cdrl.noise import (
    NoiseSchedule,
    cosine_logsnr,
    independent_pair,
    linear_beta,
    marginal,
    posterior,
    same_noise,
    shared_noise_pair,
)
from tests.reference import EXACT

SCHEDULES = {
    "cosine": cosine_logsnr(),
    "linear": linear_beta(),
    "three": cosine_logsnr(3, 6.0, -2.0),
    "ten": linear_beta(10),
    "one": cosine_logsnr(1),
}
QUANTITIES = (
    *("logsnr", "alpha", "sigma", "a", "scale", "beta", "tether"),
    *("proposal_std", "posterior_std", "loss_weight", "unit_step"),
)
COSINE = {
    "logsnr": [9.8, 2.6888, 1.1969, 0.1411, -0.8761, -2.1724, -5.1],
    "sigma": [0.00745, 0.25226, 0.48170, 0.68176, 0.84024, 0.94749, 0.99697],
}
COSINE_TRANSITIONS = {
    "a²": [0.93642, 0.82016, 0.69692, 0.54930, 0.34782, 0.05926],
    "√β": [0.25216, 0.42407, 0.55053, 0.67134, 0.80757, 0.96992],
    "s": [0.00504, 0.04937, 0.08856, 0.12847, 0.17157, 0.21882],
    "w": [1.0, 0.5946, 0.4580, 0.3756, 0.3122, 0.2600],
}


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    """In float64: identities hold to rounding, which is too small there to hide anything."""
    return SCHEDULES[request.param].to("cpu", torch.float64)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=EXACT, atol=1e-14)


def rounded(values: Tensor, expected: list[float], digits: int) -> bool:
    """Equal to the printed number, whichever way its last digit was rounded."""
    return bool(((values.double() - torch.tensor(expected, dtype=torch.float64)).abs() <= 1.01 * 10**-digits).all())


def test_published_levels_of_the_cosine_schedule() -> None:
    schedule = cosine_logsnr()
    assert rounded(schedule.logsnr, COSINE["logsnr"], 4)
    assert rounded(schedule.sigma, COSINE["sigma"], 5)
    assert rounded(schedule.a[1:].square(), COSINE_TRANSITIONS["a²"], 5)
    assert rounded(schedule.beta[1:].sqrt(), COSINE_TRANSITIONS["√β"], 5)
    assert rounded(math.sqrt(4e-4) * schedule.unit_step[1:], COSINE_TRANSITIONS["s"], 5)
    assert rounded(schedule.loss_weight[1:], COSINE_TRANSITIONS["w"], 4)


def test_published_levels_of_the_linear_schedule() -> None:
    schedule = linear_beta()
    assert rounded(schedule.alpha[:1], [0.99995], 5)
    assert rounded(schedule.a[1:], [0.94617, 0.85629, 0.77480, 0.70092, 0.63396, 0.02278], 5)
    assert rounded(schedule.logsnr[:-1], [9.21, 2.14, 0.65, -0.43, -1.43, -2.47], 2)
    assert rounded(schedule.logsnr[-1:], [-10.1], 1)


@pytest.mark.parametrize(
    ("levels", "cuts"),
    [
        (1, [0, 999]),
        (2, [0, 500, 999]),
        (4, [0, 166, 332, 498, 999]),
        (6, [0, 100, 200, 300, 400, 500, 999]),
        (501, [*range(501), 999]),
        (999, [*range(999), 999]),
    ],
)
def test_cuts_of_the_linear_schedule(levels: int, cuts: list[int]) -> None:
    signal = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    alpha = linear_beta(levels).to("cpu", torch.float64).alpha
    torch.testing.assert_close(alpha.square(), signal[cuts], rtol=1e-12, atol=0)


def test_a_thousand_levels_are_every_step_and_then_noise() -> None:
    schedule = linear_beta(1000).to("cpu", torch.float64)
    assert_equal(schedule.beta[1:1000], torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)[1:])
    assert (float(schedule.alpha[-1]), float(schedule.sigma[-1]), float(schedule.beta[-1])) == (0.0, 1.0, 1.0)
    for name in QUANTITIES[1:]:
        assert bool(getattr(schedule, name)[1:].isfinite().all()), name
    with pytest.raises(UserError, match="use 1000 or fewer"):
        linear_beta(1001)


def test_process_keeps_the_variance(schedule: NoiseSchedule) -> None:
    assert_equal(schedule.alpha**2 + schedule.sigma**2, torch.ones(schedule.levels + 1).double())
    assert_equal((schedule.alpha / schedule.sigma).log() * 2, schedule.logsnr)


def test_transitions_compose_to_the_marginals(schedule: NoiseSchedule) -> None:
    assert_equal(schedule.alpha[0] * schedule.a[1:].cumprod(0), schedule.alpha[1:])
    variance = schedule.a[1:] ** 2 * schedule.sigma[:-1] ** 2 + schedule.beta[1:]
    assert_equal(variance, schedule.sigma[1:] ** 2)


def test_top_level_has_no_tether_and_no_scale(schedule: NoiseSchedule) -> None:
    assert float(schedule.scale[-1]) == 1.0
    assert float(schedule.tether[-1]) == 0.0
    assert torch.equal(schedule.scale[1:-1], schedule.a[1:-1])
    assert_equal(schedule.tether[1:-1], schedule.sigma[:-2] / schedule.sigma[0])
    assert_equal(schedule.proposal_std[1:], schedule.scale[1:] * schedule.posterior_std[1:])


def test_level_zero_has_no_transition(schedule: NoiseSchedule) -> None:
    names = ("a", "scale", "beta", "tether", "proposal_std", "posterior_std", "loss_weight", "unit_step")
    assert all(math.isnan(getattr(schedule, name)[0]) for name in names)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_float32_and_rounded_once(name: str) -> None:
    """Whatever it was moved to before, its quantities are rounded from float64."""
    schedule = SCHEDULES[name]
    exact = schedule.to("cpu", torch.float64)
    for moved in (schedule, schedule.to("cpu"), exact.to("cpu", torch.float32)):
        assert (moved.levels, moved.name, moved.arguments) == (schedule.levels, schedule.name, schedule.arguments)
        for quantity in QUANTITIES:
            value, truth = getattr(moved, quantity), getattr(exact, quantity)
            assert (value.dtype, truth.dtype) == (torch.float32, torch.float64)
            assert torch.equal(value.nan_to_num(), truth.float().nan_to_num())
    assert not torch.equal(exact.logsnr, exact.logsnr.float().double())
    assert exact.to("cpu").logsnr.dtype == torch.float64


def covariance_of(pair: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """The exact covariance of (x_{t−1}, x_t), from what the pair makes of each unit of noise."""
    units = torch.eye(2, dtype=torch.float64)[:, :, None, None, None]
    lower, upper = pair(units[0], units[1])
    jacobian = torch.stack((lower.flatten(), upper.flatten()))
    return jacobian @ jacobian.T


def test_independent_pairs_have_the_forward_joint(schedule: NoiseSchedule) -> None:
    x0 = torch.zeros(2, 1, 1, 1).double()
    for t in range(1, schedule.levels + 1):
        level = torch.full((2,), t)
        joint = covariance_of(lambda e, z, level=level: independent_pair(schedule, x0, level, e, z))  # type: ignore[misc]
        low = schedule.sigma[t - 1] ** 2
        cross = schedule.a[t] * low
        exact = torch.stack((torch.stack((low, cross)), torch.stack((cross, schedule.sigma[t] ** 2))))
        assert_equal(joint, exact)


def test_shared_noise_keeps_the_marginals_and_correlates_fully(schedule: NoiseSchedule) -> None:
    x0 = torch.zeros(2, 1, 1, 1).double()
    for t in range(1, schedule.levels + 1):
        level = torch.full((2,), t)
        joint = covariance_of(lambda e, z, level=level: shared_noise_pair(schedule, x0, level, e))  # type: ignore[misc]
        std = schedule.sigma[t - 1 : t + 1]
        assert_equal(joint, std[:, None] * std[None, :])


@pytest.mark.parametrize("pair", ["shared", "independent"])
def test_pairs_have_the_marginal_means(pair: str, schedule: NoiseSchedule) -> None:
    x0, level = torch.rand(schedule.levels, 1, 2, 2).double(), torch.arange(1, schedule.levels + 1)
    zero = torch.zeros_like(x0)
    made = shared_noise_pair(schedule, x0, level, zero)
    if pair == "independent":
        made = independent_pair(schedule, x0, level, zero, zero)
    assert_equal(made[0], schedule.alpha[level - 1, None, None, None] * x0)
    assert_equal(made[1], schedule.alpha[level, None, None, None] * x0)


def test_the_partner_of_x_t_is_found_from_x_t(schedule: NoiseSchedule) -> None:
    level = torch.arange(1, schedule.levels + 1)
    x0, noise, other = torch.rand(3, schedule.levels, 1, 2, 2).double()
    lower, upper = shared_noise_pair(schedule, x0, level, noise)
    assert_equal(same_noise(schedule, x0, upper, level), lower)
    drawn = independent_pair(schedule, x0, level, noise, other)
    assert torch.equal(posterior(schedule, x0, drawn[1], level, other), drawn[0])
    assert torch.equal(marginal(schedule, x0, level, noise), upper)


@pytest.mark.parametrize(
    "make",
    [
        lambda: cosine_logsnr(levels=0),
        lambda: linear_beta(levels=-1),
        lambda: cosine_logsnr(logsnr_max=-6.0),
        lambda: NoiseSchedule(torch.tensor([1.0, 2.0])),
        lambda: NoiseSchedule(torch.tensor([1.0])),
        lambda: NoiseSchedule(torch.ones(2, 2)),
        lambda: NoiseSchedule(torch.tensor([1.0, float("nan")])),
        lambda: NoiseSchedule(torch.tensor([float("inf"), 1.0])),
        lambda: NoiseSchedule(torch.arange(20_000.0).flip(0)),
        lambda: cosine_logsnr(levels=10**9),
        lambda: cosine_logsnr(levels=float("nan")),  # type: ignore[arg-type]
        lambda: cosine_logsnr(logsnr_max=float("inf")),
        lambda: cosine_logsnr(logsnr_min=-2000.0),
        lambda: linear_beta(levels=10**9),
    ],
)
def test_impossible_schedules_are_refused(make: Callable[[], NoiseSchedule]) -> None:
    with pytest.raises(UserError):
        make()
