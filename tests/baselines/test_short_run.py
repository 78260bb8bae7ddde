"""The short-run EBM against its equations written out."""

from __future__ import annotations

import pytest
import torch

from baselines.short_run import ShortRun, ShortRunSettings
from cdrl import conditions
from cdrl.errors import UserError
from cdrl.learner import Optimisation
from cdrl.networks import EnergyNet
from tests import reference
from tests.baselines import short_run_reference

SHAPE = (1, 8, 8)


def short_run(seed: int = 0, **settings: float) -> ShortRun:
    torch.manual_seed(0)
    net = EnergyNet(8, 1, 8, (1, 2), 1)
    for parameter in net.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    optimisation = Optimisation(learning_rate=1e-3, warm_up=2, clip=None, ema=0.9)
    return ShortRun(net, ShortRunSettings(**{"steps": 4, **settings}), optimisation, seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{}, {"gain": 0.5, "step_noise": 0.05, "data_noise": 0.1}, {"energy_weight": 0.3}])
def test_iteration_matches_the_equations(settings: dict[str, float]) -> None:
    """The first step only: after it Adam has made whole steps of the rounding of vanishing gradients."""
    # Not seed 0: there one activation lies within rounding of its kink, and the two gradients take different sides.
    for seed in (1, 2, 3):
        method = short_run(seed=seed, **settings)
        state, images = short_run_reference.state_of(method), 2 * torch.rand(10, *SHAPE) - 1
        method.train_step(images, None, 0)
        expected, gradients = short_run_reference.step(state, images, 0)

        (gap,) = method.meters.read()["energy_gap"]
        assert gap == pytest.approx(expected.mean().item(), rel=1e-4, abs=1e-5)
        learner = method.learners["energy"]
        assert reference.distance([p.grad for p in learner.parameters], gradients) < 1e-4
        assert reference.distance(learner.parameters, state.energy.network.parameters()) < 1e-3
        assert reference.distance(learner.ema.average.parameters(), state.energy.average) < 1e-3


def test_sampling_is_the_training_chain_on_averages() -> None:
    method = short_run()
    state, images = short_run_reference.state_of(method), 2 * torch.rand(6, *SHAPE) - 1
    method.train_step(images, None, 0)
    short_run_reference.step(state, images, 0)
    (samples,) = method.sample(5, 9)
    torch.testing.assert_close(samples, short_run_reference.sample(state, 5, 9, SHAPE), rtol=0, atol=1e-4)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    """Equal noise to the last bit; the network's sums are grouped by batch size, hence 1e-5 on the images."""
    method = short_run()
    whole = torch.cat(list(method.sample(9, 5, batch_size=9)))
    for size in (1, 4):
        torch.testing.assert_close(torch.cat(list(method.sample(9, 5, batch_size=size))), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat(list(method.sample(9, 5, first=6))), whole[6:], rtol=0, atol=1e-5)


def test_published_settings_and_cost() -> None:
    settings = ShortRunSettings()
    assert (settings.steps, settings.gain, settings.step_noise, settings.data_noise) == (100, 1.0, 0.01, 0.03)
    method = short_run(steps=100)
    assert (method.training_cost, method.sampling_cost) == (102, 100)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match="unconditional"):
        next(short_run().sample(1, 0, conditions.labelled([1])))
    with pytest.raises(UserError, match="at least one step"):
        ShortRunSettings(steps=0)
