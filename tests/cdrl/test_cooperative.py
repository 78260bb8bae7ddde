"""The training iteration against its plain transcription, and its switches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.drl import drl_settings
from cdrl.cooperative import Cooperative, Settings
from cdrl.errors import UserError
from cdrl.langevin import Langevin
from cdrl.learner import Optimisation
from cdrl.method import Batch
from cdrl.randomness import Draws
from tests import reference
from tests.reference import EXACT

Build = Callable[..., Cooperative]
BATCH, ITERATIONS = 24, 3

VARIANTS: dict[str, dict[str, Any]] = {
    "cdrl": {},
    "conditional": {"classes": 3, "label_dropout": 0.3},
    "dropout": {"dropout": 0.1},
    "mean-target": {"initializer_target": "mean"},
    "independent-noise": {"shared_noise": False},
    "no-initializer": {"initializer": False},
    "step-multiplier": {"chain": Langevin(steps=2, step_variance=8e-3, step_multiplier=1.5)},
    "drl": {"initializer": False, **vars(drl_settings(chain=Langevin(steps=4, step_variance=5e-3)))},
    "no-clip": {
        "initializer": False,
        "optimisation": Optimisation(learning_rate=1e-3, warm_up=2, clip=None, ema=0.5, weight_decay=0.1),
    },
}


def batch(iteration: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(iteration)
    images = (2 * torch.rand(BATCH, 1, 8, 8, generator=generator) - 1).to(dtype)
    return images, torch.randint(1, classes + 1, (BATCH,), generator=generator) if classes else None


@pytest.mark.parametrize("variant", VARIANTS)
def test_iteration_matches_the_reference(variant: str, cooperative: Build) -> None:
    method = cooperative(**VARIANTS[variant], dtype=torch.float64)
    state = reference.state_of(method)
    for iteration in range(ITERATIONS):
        images, label = batch(iteration, VARIANTS[variant].get("classes", 0), torch.float64)
        method.train_step([Batch.whole(images, label)], iteration)
        expected = reference.reference_step(state, images, label, iteration)

        level, gap = expected["level"], method.meters.read()["energy_gap"]
        assert set(level.tolist()) == set(range(1, 7))
        for t in range(1, 7):
            assert gap[t] == pytest.approx(float(expected["gap"][level == t].mean()), rel=EXACT, abs=0)
        for name, learner in method.learners.items():
            trained = getattr(state, name)
            assert reference.distance([p.grad for p in learner.parameters], expected[f"{name}_gradients"]) < EXACT
            assert reference.distance(learner.parameters, trained.network.parameters()) < EXACT
            assert reference.distance(learner.ema.average.parameters(), trained.average) < EXACT


def test_shared_noise_halves_what_the_pair_draws(cooperative: Build) -> None:
    """With one ε, x_0 can be solved for from the pair; with two it cannot."""
    x0, level = torch.zeros(512, 1, 8, 8), torch.full((512,), 3)
    for shared, expected in ((True, 1.0), (False, None)):
        method = cooperative(shared_noise=shared)
        draws = Draws(0, "test", (), torch.arange(512), method.shape)
        lower, upper = method.transitions.pair(x0, level, draws)
        correlation = float(torch.corrcoef(torch.stack((lower.flatten(), upper.flatten())))[0, 1])
        schedule = method.schedule
        exact = expected or float(schedule.a[3] * schedule.sigma[2] / schedule.sigma[3])
        assert correlation == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_labels_are_dropped_at_their_rate(rate: float, cooperative: Build) -> None:
    method = cooperative(classes=3, label_dropout=rate)
    label, draws = torch.full((10_000,), 2), Draws(0, "train", (0,), torch.arange(10_000))
    dropped = method._label_dropout(label, draws)
    assert dropped is not None
    assert set(dropped.tolist()) <= {0, 2}
    assert float((dropped == 0).float().mean()) == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 10_000) ** 0.5)


def test_labels_are_ignored_by_an_unconditional_network(cooperative: Build) -> None:
    first, second = cooperative(), cooperative()
    images, _ = batch(0, 0)
    first.train_step([Batch.whole(images)], 0)
    second.train_step([Batch.whole(images, torch.full((BATCH,), 2))], 0)
    assert all(torch.equal(a, b) for a, b in zip(first.state().values(), second.state().values(), strict=True))


def test_a_step_is_a_function_of_seed_and_iteration(cooperative: Build) -> None:
    def after(seed: int, iteration: int, disturb: bool = False) -> Tensor:
        method = cooperative(dropout=0.1)
        method.seed = seed
        torch.manual_seed(123 if disturb else 0)
        method.train_step([Batch.whole(batch(0, 0)[0])], iteration)
        return torch.cat([p.detach().flatten() for p in method.learners["initializer"].parameters])

    assert torch.equal(after(1, 5), after(1, 5, disturb=True))
    assert not torch.equal(after(1, 5), after(2, 5))
    assert not torch.equal(after(1, 5), after(1, 6))


def test_state_restores_a_run_bit_for_bit(cooperative: Build) -> None:
    whole, first, second = cooperative(), cooperative(), cooperative(seed=7)
    for iteration in range(3):
        whole.train_step([Batch.whole(batch(iteration, 0)[0])], iteration)
    for iteration in range(1):
        first.train_step([Batch.whole(batch(iteration, 0)[0])], iteration)
    second.seed = 0
    second.load_state({name: value.clone() for name, value in first.state().items()})
    for iteration in range(1, 3):
        second.train_step([Batch.whole(batch(iteration, 0)[0])], iteration)
    for name, value in whole.state().items():
        assert torch.equal(value, second.state()[name]), name


def test_cost_counts_energy_gradients_and_proposals(cooperative: Build) -> None:
    """What is charged is counted in test_cost; here are the parts."""
    chain = Langevin(steps=15)
    method, alone = cooperative(chain=chain), cooperative(chain=chain, initializer=False)
    assert (alone.training_cost, alone.sampling_cost) == (15 + 3, 6 * 15 + 1)
    share = (method.training_cost - alone.training_cost) / 3
    assert share > 0
    assert method.sampling_cost == pytest.approx(alone.sampling_cost + 6 * share)
    assert method.sampler().cost == method.sampling_cost
    assert cooperative(chain=chain, initializer=False, last_denoise="none").sampling_cost == 90


def test_meters_report_every_level_and_start_again(cooperative: Build) -> None:
    method = cooperative()
    method.train_step([Batch.whole(batch(0, 0)[0])], 0)
    values = method.meters.read()
    assert set(values) == {*method.METERS, "energy_grad", "initializer_grad"}
    assert all(row[0] is None and None not in row[1:] for row in values.values())
    assert all(value is None for row in method.meters.read().values() for value in row)


@pytest.mark.parametrize(
    "wrong", [{"last_denoise": "maybe"}, {"spectral_ema": "dead"}, {"initializer_target": "median"}]
)
def test_unknown_switches_name_the_choices(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match="choose one of"):
        Settings(**wrong)  # type: ignore[arg-type]


def test_sampling_cannot_change_the_energy_scale() -> None:
    with pytest.raises(UserError, match="step_variance"):
        Settings(chain=Langevin(step_variance=4e-4), sampling=Langevin(step_variance=2e-4))
