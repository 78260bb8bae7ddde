"""What all tests share: one thread, small networks, and models whose energies are known in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch

from cdrl.cooperative import Cooperative, Settings
from cdrl.langevin import Langevin
from cdrl.learner import Optimisation
from cdrl.networks import EnergyNet, Initializer
from tests import accelerator

torch.set_num_threads(1)

SIZES: dict[str, Any] = {"image_size": 8, "channels": 1, "width": 8, "multipliers": (1, 2), "blocks": 1}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def elsewhere() -> Iterator[accelerator.Accelerator]:
    """An entered `tests.accelerator.Accelerator`, where the module says that it is available."""
    with accelerator.Accelerator() as device:
        yield device


@pytest.fixture
def cooperative() -> Callable[..., Cooperative]:
    """Builds a small CDRL method whose weights are all away from their initial zeros and ones.

    With ``dtype`` float64 it has the same weights, and everything follows from their type. ``energy`` are further
    arguments of the energy network.
    """

    def build(
        classes: int = 0,
        initializer: bool = True,
        dropout: float = 0.0,
        seed: int = 0,
        optimisation: Optimisation | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        energy: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Cooperative:
        torch.manual_seed(seed)
        networks = [EnergyNet(**SIZES, classes=classes, **(energy or {}))]
        if initializer:
            # Width 12 makes groups of three channels: alone in its group, a channel's bias would have no gradient.
            sizes = {**SIZES, "width": 12, "classes": classes, "dropout": dropout, "attention_sizes": (4,)}
            networks.append(Initializer(**sizes))
        for network in networks:
            for parameter in network.parameters():
                parameter.data.add_(0.05 * torch.randn_like(parameter))
            network.to(device, dtype)
        optimisation = optimisation or Optimisation(learning_rate=1e-3, warm_up=2, ema=0.9)
        settings = {"chain": Langevin(steps=3, step_variance=1e-2), **settings}
        return Cooperative(
            networks[0], networks[1] if initializer else None, Settings(**settings), optimisation, seed=seed
        )

    return build
