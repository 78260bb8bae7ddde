"""One chain: its constants, its noise, known pixels. (Its stationary law is in test_gaussian.)"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cdrl import langevin, randomness
from cdrl.errors import UserError
from cdrl.langevin import KnownPixels, Langevin
from cdrl.networks import EnergyNet
from cdrl.noise import cosine_logsnr
from tests.reference import EXACT

SCHEDULE = cosine_logsnr().to("cpu", torch.float64)
LEVEL = torch.arange(1, 7)


@pytest.fixture
def chain() -> Callable[..., langevin.Refined]:
    """Runs chains of a small energy net, one at each level, in float64."""
    net = EnergyNet(8, 1, 4, (1, 2), 1).double()
    start, anchor = torch.randn(2, 6, 1, 8, 8, dtype=torch.float64)

    def run(settings: Langevin, known: KnownPixels | None = None, rows: slice = slice(None), seed: int = 0) -> Any:
        level = LEVEL[rows]
        return langevin.refine(
            langevin.Chain(
                energy=net.frozen(net.weights(), SCHEDULE.logsnr[level - 1]),
                start=start[rows],
                anchor=anchor[rows],
                constants=langevin.coefficients(SCHEDULE, level, settings),
                streams=randomness.keys(seed, "test", count=settings.steps),
                image_index=torch.arange(6)[rows],
                known=known,
            )
        )

    run.start = start  # type: ignore[attr-defined]
    return run


def test_published_coefficients() -> None:
    constants = langevin.coefficients(SCHEDULE, LEVEL, Langevin())
    assert constants.gain == 0.5
    steps = torch.tensor([0.00504, 0.04937, 0.08856, 0.12847, 0.17157, 0.21882], dtype=torch.float64)
    torch.testing.assert_close(constants.noise.flatten(), steps, rtol=0, atol=6e-6)
    ratio = SCHEDULE.sigma[:5] / SCHEDULE.sigma[0]
    torch.testing.assert_close(constants.tether.flatten()[:5], 2e-4 * ratio)
    assert float(constants.tether.flatten()[5]) == 0.0


def test_tether_is_the_gradient_of_the_transition() -> None:
    """``(b²/2)(σ_{t−1}/σ_0)`` equals ``½ s_t² / β_t``."""
    constants = langevin.coefficients(SCHEDULE, LEVEL, Langevin(step_multiplier=0.6))
    expected = 0.5 * constants.noise.flatten()[:5] ** 2 / SCHEDULE.beta[1:6]
    torch.testing.assert_close(constants.tether.flatten()[:5], expected)


def test_multiplier_scales_step_and_noise_scale_only_noise() -> None:
    plain, wide = (langevin.coefficients(SCHEDULE, LEVEL, Langevin(step_multiplier=m)) for m in (1.0, 3.0))
    quiet = langevin.coefficients(SCHEDULE, LEVEL, Langevin(noise_scale=0.99))
    assert wide.gain == pytest.approx(9 * plain.gain)
    torch.testing.assert_close(wide.tether, 9 * plain.tether)
    torch.testing.assert_close(wide.noise, 3 * plain.noise)
    torch.testing.assert_close(quiet.noise, 0.99 * plain.noise)
    torch.testing.assert_close(quiet.tether, plain.tether)


def test_no_step_changes_nothing(chain: Any) -> None:
    refined = chain(Langevin(steps=0))
    assert torch.equal(refined.y, chain.start)
    assert not refined.gradient.any()


def test_a_chain_is_the_sum_of_its_steps(chain: Any) -> None:
    """The first k steps of a longer chain are the chain of k steps."""
    states: list[Tensor] = []

    def stepper(*arguments: Any) -> langevin.Refined:
        state = langevin.step(*arguments)
        states.append(state.y)
        return state

    net = EnergyNet(8, 1, 4, (1, 2), 1).double()
    energy = net.frozen(net.weights(), SCHEDULE.logsnr[LEVEL - 1])
    constants = langevin.coefficients(SCHEDULE, LEVEL, Langevin())
    arguments: Any = (energy, chain.start, chain.start, constants)
    index = torch.arange(6)
    langevin.refine(langevin.Chain(*arguments, randomness.keys(0, "test", count=5), index), stepper)
    for k in range(1, 6):
        shorter = langevin.Chain(*arguments, randomness.keys(0, "test", count=k), index)
        assert torch.equal(langevin.refine(shorter).y, states[k - 1])


def test_a_chain_does_not_depend_on_its_batch(chain: Any) -> None:
    whole = chain(Langevin(steps=4)).y
    for rows in (slice(0, 1), slice(2, 6)):
        torch.testing.assert_close(chain(Langevin(steps=4), rows=rows).y, whole[rows], rtol=0, atol=EXACT)


def test_known_pixels_stay_exactly(chain: Any) -> None:
    mask = torch.zeros(6, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:5] = True
    value = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    for steps in (0, 3):
        refined = chain(Langevin(steps=steps), KnownPixels(mask, value)).y
        assert torch.equal(refined[mask], value[mask])
        assert torch.equal(refined[~mask], chain.start[~mask]) == (steps == 0)


def test_result_carries_no_history(chain: Any) -> None:
    refined = chain(Langevin(steps=2))
    assert not refined.y.requires_grad
    assert not refined.gradient.requires_grad


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1},
        {"steps": 1.5},
        {"steps": math.inf},
        {"steps": 10**9},
        {"step_variance": 0.0},
        {"step_variance": math.inf},
        {"step_multiplier": -2.0},
        {"step_multiplier": math.nan},
        {"step_multiplier": 1e20},
        {"step_multiplier": 1e200},
        {"noise_scale": math.inf},
        {"noise_scale": 1e38, "step_variance": 1e6},
    ],
)
def test_impossible_chains_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Langevin(**wrong)


def test_the_widest_chain_has_finite_constants() -> None:
    constants = langevin.coefficients(SCHEDULE, LEVEL, Langevin(step_variance=1e-2, step_multiplier=1e19))
    assert all(bool(values.isfinite().all()) for values in constants)
