"""The short-run EBM against its equations written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from baselines.short_run import ShortRun, ShortRunSettings
from cdrl import conditions
from cdrl.errors import UserError
from cdrl.learner import Optimisation
from cdrl.method import Batch
from cdrl.networks import EnergyNet
from tests import reference
from tests.baselines import short_run_reference
from tests.reference import EXACT

SHAPE = (1, 8, 8)


def short_run(seed: int = 0, **settings: float) -> ShortRun:
    """In float64; weights are away from their initial zeros and ones."""
    torch.manual_seed(0)
    net = EnergyNet(8, 1, 8, (1, 2), 1)
    for parameter in net.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    net.double()
    optimisation = Optimisation(learning_rate=1e-3, warm_up=2, clip=None, ema=0.9)
    return ShortRun(net, ShortRunSettings(**{"steps": 4, **settings}), optimisation, seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{}, {"gain": 0.5, "step_noise": 0.05, "data_noise": 0.1}, {"energy_weight": 0.3}])
def test_iteration_matches_the_equations(settings: dict[str, float]) -> None:
    method = short_run(**settings)
    state = short_run_reference.state_of(method)
    for iteration in range(3):
        images = 2 * torch.rand(10, *SHAPE, dtype=torch.float64) - 1
        method.train_step([Batch.whole(images)], iteration)
        expected, gradients = short_run_reference.step(state, images, iteration)

        (gap,) = method.meters.read()["energy_gap"]
        assert gap == pytest.approx(expected.mean().item(), rel=EXACT, abs=0)
        learner = method.learners["energy"]
        assert reference.distance([p.grad for p in learner.parameters], gradients) < EXACT
        assert reference.distance(learner.parameters, state.energy.network.parameters()) < EXACT
        assert reference.distance(learner.ema.average.parameters(), state.energy.average) < EXACT


def test_sampling_is_the_training_chain_on_averages() -> None:
    method = short_run()
    state, images = short_run_reference.state_of(method), 2 * torch.rand(6, *SHAPE, dtype=torch.float64) - 1
    method.train_step([Batch.whole(images)], 0)
    short_run_reference.step(state, images, 0)
    (samples,) = method.sample(5, 9)
    torch.testing.assert_close(samples, short_run_reference.sample(state, 5, 9, SHAPE), rtol=0, atol=EXACT)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    """Equal noise to the last bit; the network's sums may be grouped by batch size."""
    method = short_run()
    whole = torch.cat(list(method.sample(9, 5, batch_size=9)))
    for options in ({"batch_size": 1}, {"batch_size": 4}, {"first": 6}):
        part = torch.cat(list(method.sample(9, 5, **options)))
        torch.testing.assert_close(part, whole[-len(part) :], rtol=0, atol=EXACT)


def test_published_settings_and_cost() -> None:
    settings = ShortRunSettings()
    assert (settings.steps, settings.gain, settings.step_noise, settings.data_noise) == (100, 1.0, 0.01, 0.03)
    method = short_run(steps=100)
    assert (method.training_cost, method.sampling_cost) == (103, 100)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match="unconditional"):
        next(short_run().sample(1, 0, conditions.labelled([1])))
    with pytest.raises(UserError, match="at least one step"):
        ShortRunSettings(steps=0)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 10**9}, {"gain": math.inf}, {"step_noise": 1e20}, {"data_noise": math.nan}, {"energy_weight": -1.0}],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"at most 1,000,000|not (inf|nan|1e\+20|-1\.0)"):
        ShortRunSettings(**wrong)
