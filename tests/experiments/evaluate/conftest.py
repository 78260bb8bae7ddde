"""Untrained runs on a few real digits, and a classifier that costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cdrl.cooperative import Cooperative, Settings
from cdrl.langevin import Langevin
from cdrl.learner import Optimisation
from cdrl.networks import EnergyNet, Initializer
from cdrl.recipe import CooperativeRecipe
from experiments import data
from experiments.data import DataSettings
from experiments.evaluate import TrainedRun
from experiments.metrics import Extracted, Protocol

Runs = Callable[..., TrainedRun]


class Brightness:
    """Ten classes by mean brightness; features are the pixels."""

    name, sha256, dim, classes = "brightness", "", 64, 10

    def __call__(self, pixels: Tensor | np.ndarray) -> Extracted:
        flat = torch.as_tensor(np.array(pixels)).float().flatten(1) / 255
        decided = (flat.mean(dim=1) * 9.99).long()
        return Extracted(flat, torch.nn.functional.one_hot(decided, 10).float())


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits classifier, trained once, and reference statistics."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_run(tmp_path: Path, weights: Path) -> Runs:
    """Makes an untrained run; ``classes`` labels, ``steps`` Langevin steps."""

    def make(classes: int = 0, steps: int = 2) -> TrainedRun:
        torch.manual_seed(0)
        sizes = {"image_size": 8, "channels": 1, "width": 8, "multipliers": (1,), "blocks": 1, "classes": classes}
        method = Cooperative(
            EnergyNet(**sizes),
            Initializer(**sizes, attention_sizes=()),
            Settings(chain=Langevin(steps=steps, step_variance=1e-3)),
            Optimisation(),
        )
        return TrainedRun(
            recipe=CooperativeRecipe(batch_size=4),
            data=DataSettings(name="digits", image_size=8, channels=1, data_cache=str(tmp_path)),
            method=method,
            milestones=(),
            seed=1,
            device=torch.device("cpu"),
            train=data.load("digits", "train"),
            test=data.load("digits", "test").subset(slice(0, 60)),
            protocol=Protocol("fd-digits", "digits", 40, metrics=("fd",)),
            cache=weights,
        )

    return make


def quiet(done: float, text: str) -> None:
    """A progress that checks its share."""
    assert 0.0 <= done <= 1.0
    assert text
