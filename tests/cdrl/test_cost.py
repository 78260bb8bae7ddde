"""The cost that a method is charged is what it spends, to two percent, by one counter of operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from baselines.ddpm import DDPMRecipe
from baselines.short_run import ShortRunRecipe
from cdrl.cost import forward_share, operations
from cdrl.langevin import Langevin
from cdrl.method import Batch, Method
from cdrl.networks import EnergyNet
from cdrl.recipe import CooperativeRecipe, ImageShape, Recipe

ENERGY: dict[str, Any] = {"width": 32, "multipliers": (1, 2), "blocks": 1}
UNET: dict[str, Any] = {"width": 16, "multipliers": (1,), "blocks": 1, "dropout": 0.1, "attention_sizes": (4,)}
RECIPES: dict[str, Recipe] = {
    "cdrl": CooperativeRecipe(levels=4, chain=Langevin(steps=5, step_variance=1e-2), energy=ENERGY, initializer=UNET),
    "cdrl without last denoise": CooperativeRecipe(
        levels=3, chain=Langevin(steps=8), energy=ENERGY, initializer={**UNET, "width": 32}, last_denoise="none"
    ),
    "drl": CooperativeRecipe(levels=4, chain=Langevin(steps=15), energy=ENERGY, initializer=None, last_denoise="none"),
    "short run": ShortRunRecipe(steps=20, energy=ENERGY),
    "ddpm": DDPMRecipe(network=UNET, energy=ENERGY, diffusion_steps=20, sampling_steps=10),
}
SHAPE, IMAGES = ImageShape(16, 3), 8


def method_and_unit(name: str) -> tuple[Method, int]:
    """The unit is what a gradient of the energy network with respect to an image takes."""
    energy_net = EnergyNet(SHAPE.size, SHAPE.channels, **ENERGY)
    return RECIPES[name].build(SHAPE), 2 * operations(energy_net, energy_net.shape)


@pytest.mark.parametrize("name", RECIPES)
def test_a_training_image_costs_what_is_charged(name: str) -> None:
    method, unit = method_and_unit(name)
    images = torch.rand(IMAGES, SHAPE.channels, SHAPE.size, SHAPE.size) * 2 - 1
    with FlopCounterMode(display=False) as counter:
        method.train_step([Batch.whole(images)], 0)
    assert counter.get_total_flops() / (IMAGES * unit) == pytest.approx(method.training_cost, rel=0.02)


@pytest.mark.parametrize("name", RECIPES)
def test_a_sample_costs_what_is_charged(name: str) -> None:
    method, unit = method_and_unit(name)
    with FlopCounterMode(display=False) as counter:
        next(iter(method.sample(IMAGES, seed=0, batch_size=IMAGES)))
    assert counter.get_total_flops() / (IMAGES * unit) == pytest.approx(method.sampling_cost, rel=0.02)


def test_operations_of_a_convolution() -> None:
    """2 · 9 · C_in · C_out · H · W, and nothing is computed."""

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, x: torch.Tensor, logsnr: torch.Tensor) -> torch.Tensor:
            return self.convolution(x)

    assert operations(Network(), (3, 8, 8)) == 2 * 8 * 8 * 3 * 5 * 9


@pytest.mark.slow
def test_the_share_of_the_published_initializer() -> None:
    """F_E = 11.19 GFLOP and F_U = 2.34 GFLOP at the size of CIFAR-10."""
    recipe = CooperativeRecipe()
    method = recipe.build(ImageShape(32, 3), device="meta")
    energy_net, initializer = (method.learners[name].network for name in ("energy", "initializer"))
    assert operations(energy_net, (3, 32, 32)) == pytest.approx(11.19e9, rel=1e-3)
    assert forward_share(initializer, energy_net, (3, 32, 32)) == pytest.approx(0.104, abs=1e-3)
    assert method.training_cost == pytest.approx(15 + 3 + 3 * 0.104, abs=0.01)
