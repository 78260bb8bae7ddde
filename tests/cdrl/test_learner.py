"""Optimiser settings, learning-rate schedules, clipping, meters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cdrl.errors import UserError
from cdrl.learner import Learner, Optimisation
from cdrl.method import Meters


def test_defaults_are_the_published_ones() -> None:
    settings = Optimisation()
    assert (settings.learning_rate, settings.betas, settings.weight_decay) == (1e-4, (0.9, 0.999), 0.0)
    assert (settings.warm_up, settings.decay, settings.clip, settings.ema) == (10_000, "none", 1.0, 0.9999)


def test_optimiser_gets_its_settings() -> None:
    settings = Optimisation(learning_rate=3e-4, betas=(0.5, 0.9), weight_decay=0.2)
    (group,) = Learner(nn.Linear(2, 2), settings).optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (3e-4, (0.5, 0.9), 0.2, 1e-8)


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        (Optimisation(1.0, warm_up=4), {0: 0.25, 1: 0.5, 3: 1.0, 50: 1.0, 100: 1.0}),
        (Optimisation(1.0, warm_up=4, warm_up_start=0), {0: 0.0, 1: 0.25, 4: 1.0}),
        (Optimisation(1.0, warm_up=10_000, warm_up_start=500), {0: 0.05, 9_500: 1.0}),
        (Optimisation(1.0, warm_up=0), {0: 1.0, 100: 1.0}),
        (Optimisation(1.0, warm_up=0, decay="linear"), {0: 1.0, 25: 0.75, 100: 0.0, 200: 0.0}),
        (Optimisation(1.0, warm_up=0, decay="cosine"), {0: 1.0, 50: 0.5, 100: 0.0}),
        (Optimisation(2.0, warm_up=0, decay="cosine", final=0.1), {0: 2.0, 50: 1.1, 100: 0.2}),
        (Optimisation(1.0, warm_up=100, decay="linear"), {49: 0.5 * 0.51}),
    ],
)
def test_learning_rate(settings: Optimisation, rates: dict[int, float]) -> None:
    for iteration, rate in rates.items():
        assert settings.rate(iteration, 100) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("clip", 0.0),
        ("clip", -1.0),
        ("ema", 1.5),
        ("warm_up", -5),
        ("warm_up_start", -1),
        ("ema_ramp", -1),
        ("epsilon", 0.0),
        ("power_iterations", 0),
        ("learning_rate", float("nan")),
        ("betas", (1.0, 0.9)),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(UserError, match=setting):
        Optimisation(**{setting: value})


def test_descend_clips_reports_the_norm_and_uses_the_rate() -> None:
    network = nn.Linear(3, 1, bias=False)
    learner = Learner(network, Optimisation(learning_rate=0.1, warm_up=2, clip=1.0))
    before = network.weight.detach().clone()
    network(torch.tensor([[3.0, 0.0, 4.0]])).sum().backward()
    norm = learner.descend(0, 10)
    assert float(norm) == pytest.approx(5.0)
    torch.testing.assert_close(network.weight.grad, torch.tensor([[0.6, 0.0, 0.8]]))
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    torch.testing.assert_close(network.weight.detach(), before - torch.tensor([[0.05, 0.0, 0.05]]))


@pytest.mark.parametrize("corrected", [True, False])
def test_epsilon_beside_the_corrected_moment_or_the_plain_one(corrected: bool) -> None:
    """The two orders of Kingma & Ba 2015, section 2, on gradients no larger than epsilon."""
    network = nn.Linear(1, 1, bias=False).double()
    settings = Optimisation(0.1, (0.5, 0.9), epsilon=1e-3, epsilon_corrected=corrected, warm_up=0, clip=None)
    learner, expected, m, v = Learner(network, settings), float(network.weight), 0.0, 0.0
    for t, gradient in enumerate((1e-3, -3e-4, 2e-4), start=1):
        network.weight.grad = torch.full((1, 1), gradient, dtype=torch.float64)
        learner.descend(t - 1, 10)
        m, v = 0.5 * m + 0.5 * gradient, 0.9 * v + 0.1 * gradient**2
        if corrected:
            expected -= 0.1 * (m / (1 - 0.5**t)) / ((v / (1 - 0.9**t)) ** 0.5 + 1e-3)
        else:
            expected -= 0.1 * (1 - 0.9**t) ** 0.5 / (1 - 0.5**t) * m / (v**0.5 + 1e-3)
        assert float(network.weight) == pytest.approx(expected, rel=1e-12)


def test_no_clip_leaves_the_gradient() -> None:
    network = nn.Linear(2, 1, bias=False)
    network(torch.tensor([[30.0, 40.0]])).sum().backward()
    Learner(network, Optimisation(clip=None)).descend(0, 10)
    torch.testing.assert_close(network.weight.grad, torch.tensor([[30.0, 40.0]]))


def test_state_restores_weights_averages_and_moments() -> None:
    def step(learner: Learner, iteration: int) -> None:
        learner.clear_gradient()
        learner.network(torch.ones(1, 3)).square().sum().backward()
        learner.descend(iteration, 10)

    first, second = (Learner(nn.Linear(3, 2), Optimisation(learning_rate=0.1, warm_up=0)) for _ in range(2))
    for iteration in range(3):
        step(first, iteration)
    second.load_state({name: value.clone() for name, value in first.state().items()})
    for learner in (first, second):
        step(learner, 3)
    assert first.state().keys() == second.state().keys()
    assert all(torch.equal(value, second.state()[name]) for name, value in first.state().items())


@pytest.mark.parametrize("wrong", [{"learning_rate": 0.0}, {"learning_rate": -1.0}, {"decay": "exponential"}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Optimisation(**wrong)


def test_a_gradient_is_one_vector() -> None:
    learner = Learner(nn.Linear(3, 2), Optimisation())
    learner.network(torch.ones(1, 3)).square().sum().backward()
    vector, norm = learner.gradient(), learner.descend(0, 10)
    assert vector.shape == (learner.size,) == (8,)
    assert float(vector.norm()) == pytest.approx(float(norm))
    learner.clear_gradient()
    assert not learner.gradient().any()
    learner.put_gradient(vector)
    assert torch.equal(learner.gradient(), vector)


def test_meters_average_per_level_until_read() -> None:
    """Shards add to an iteration, whose norms count as each of its images'."""
    meters = Meters(("gap", "size"), ("norm",), 3, torch.device("cpu"))
    meters.add(torch.tensor([1, 2, 1]), size=torch.tensor([0.0, 2.0, 0.0]), gap=torch.tensor([1.0, 5.0, 3.0]))
    meters.add(torch.tensor([1]), gap=torch.tensor([8.0]), size=torch.tensor([3.0]))
    meters.conclude([torch.tensor(2.0)], 0)
    meters.add(torch.tensor([1]), gap=torch.tensor([8.0]), size=torch.tensor([3.0]))
    meters.conclude([torch.tensor(6.0)], 1)
    assert meters.read() == {"gap": [None, 5.0, 5.0], "size": [None, 1.5, 2.0], "norm": [None, 3.0, 2.0]}
    assert meters.read() == {"gap": [None] * 3, "size": [None] * 3, "norm": [None] * 3}


@pytest.mark.parametrize("names", [("gap",), ("gap", "size", "norm"), ("gap", "norm")])
def test_meters_take_every_name_and_no_other(names: tuple[str, ...]) -> None:
    meters = Meters(("gap", "size"), ("norm",), 3, torch.device("cpu"))
    with pytest.raises(TypeError, match="missing or unknown"):
        meters.add(torch.tensor([1]), **dict.fromkeys(names, torch.ones(1)))
    assert not meters.fresh.any()
