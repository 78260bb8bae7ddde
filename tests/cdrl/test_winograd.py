"""The fast convolutions of chains against the direct ones: the same in float64, and to rounding in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cdrl.networks import EnergyNet, winograd
from cdrl.networks.energy import FrozenEnergy, freeze
from cdrl.networks.winograd import transform
from tests import reference, sensitivity

ROUNDINGS = 100
"""Of a sum of 128 · 9 products in any order, √n of them where errors are independent, and of the transforms."""


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width", "outputs"), [(8, 8, 128), (4, 12, 160), (16, 32, 128)])
def test_values_and_gradients(height: int, width: int, outputs: int, memory: torch.memory_format) -> None:
    """Also of images in parts: two of 16×32 at a time."""
    h = torch.randn(3, 128, height, width, dtype=torch.float64)
    weight, bias = torch.randn(outputs, 128, 3, 3).double() / 34, torch.randn(outputs).double()
    direction = torch.randn(3, outputs, height, width).double()

    def fast(h: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        h = h.contiguous(memory_format=memory).requires_grad_()
        value = winograd.convolve(h, transform(weight.to(h.dtype)), bias.to(h.dtype))
        return value, torch.autograd.grad(value, h, direction)[0]

    def direct(h: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(h, weight, bias, padding=1)

    def adjoint(direction: Tensor, weight: Tensor) -> Tensor:
        return F.conv_transpose2d(direction, weight, padding=1)

    exact, rounded = fast(h, direction), fast(h.float(), direction.float())
    for number, (truth, values) in enumerate(((direct, h), (adjoint, direction))):
        expected = truth(values, weight)
        assert reference.distance([exact[number]], [expected]) < reference.EXACT
        change = sensitivity.of(truth, values, weight, roundings=ROUNDINGS)
        assert sensitivity.distance(rounded[number], expected) < change


@pytest.mark.parametrize(
    "kernel",
    [
        torch.zeros(128, 64, 3, 3),
        torch.zeros(128, 128, 1, 1),
        torch.zeros(128, 128, 3, 3, dtype=torch.float64),
        torch.zeros(128, 128, 3, 3, device="meta"),
    ],
    ids=["few channels", "1×1", "double", "another device"],
)
def test_kernels_it_does_not_pay_for_stay_as_they_are(kernel: Tensor) -> None:
    assert winograd.prepare(kernel) is kernel


@pytest.mark.parametrize(("shape", "expected"), [((8, 3, 8, 8), True), ((8, 3, 6, 8), False), ((7, 3, 8, 8), False)])
def test_images_of_whole_tiles_and_enough_of_them(shape: tuple[int, ...], expected: bool) -> None:
    assert winograd.applies(torch.zeros(shape)) is expected


def test_a_frozen_network_uses_it_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where images are too small for tiles, after pooling, the same network goes on with the direct form."""
    net = EnergyNet(image_size=8, channels=1, width=128, multipliers=(1, 1, 1), blocks=1)
    y = torch.randn(8, 1, 8, 8)
    used: list[tuple[int, ...]] = []
    original = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda h, *rest: (used.append(tuple(h.shape)), original(h, *rest))[1])

    def both() -> tuple[FrozenEnergy, FrozenEnergy]:
        weights, context = net.weights(), net.context(net.weights(), torch.zeros(1, dtype=net.readout.weight.dtype))
        return freeze(weights, context), FrozenEnergy(weights, context)

    fast, direct = both()
    change = sensitivity.of(FrozenEnergy.__call__, direct, y, roundings=ROUNDINGS)
    assert sensitivity.distance(fast(y), direct(y)) < change
    assert used == [(8, 128, 8, 8)] * 2
    change = sensitivity.of(FrozenEnergy.gradient, direct, y, roundings=ROUNDINGS)
    assert sensitivity.distance(fast.gradient(y), direct.gradient(y)) < change

    net.double()
    monkeypatch.setattr(winograd, "prepare", lambda kernel: kernel if kernel.shape[1] == 1 else transform(kernel))
    fast, direct = both()
    assert reference.distance([fast(y.double())], [direct(y.double())]) < reference.EXACT
    assert reference.distance([fast.gradient(y.double())], [direct.gradient(y.double())]) < reference.EXACT
    assert len(used) > 6


def test_freezing_twice_is_freezing_once() -> None:
    net = EnergyNet(image_size=8, channels=1, width=128, multipliers=(1,), blocks=1)
    context = net.context(net.weights(), torch.zeros(1))
    once = freeze(net.weights(), context)
    again = freeze(once.weights, context)
    assert again.weights.blocks[0].first is once.weights.blocks[0].first
