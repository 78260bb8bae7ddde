"""The fast convolutions of chains against the direct ones in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cdrl.networks import EnergyNet, winograd
from cdrl.networks.energy import FrozenEnergy, freeze


def relative(value: Tensor, truth: Tensor) -> float:
    """Root mean square of the difference, in units of the truth's."""
    return float(
        (value.detach().double() - truth.detach()).square().mean().sqrt() / truth.detach().square().mean().sqrt()
    )


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width", "outputs"), [(8, 8, 128), (4, 12, 160), (16, 32, 128)])
def test_values_and_gradients(height: int, width: int, outputs: int, memory: torch.memory_format) -> None:
    """Also of images in parts: two of 16×32 at a time."""
    torch.manual_seed(0)
    h = torch.randn(3, 128, height, width).contiguous(memory_format=memory).requires_grad_()
    weight, bias = torch.randn(outputs, 128, 3, 3) / 34, torch.randn(outputs)
    direction = torch.randn(3, outputs, height, width)
    kernel = winograd.prepare(weight)
    assert isinstance(kernel, winograd.Kernel)

    truth = h.detach().double().requires_grad_()
    expected = F.conv2d(truth, weight.double(), bias.double(), padding=1)
    (slope,) = torch.autograd.grad(expected, truth, direction.double())
    value = winograd.convolve(h, kernel, bias)
    (gradient,) = torch.autograd.grad(value, h, direction)
    assert relative(value, expected) < 2e-6
    assert relative(gradient, slope) < 3e-6


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
    torch.manual_seed(0)
    net = EnergyNet(image_size=8, channels=1, width=128, multipliers=(1, 1, 1), blocks=1)
    y, weights, context = torch.randn(8, 1, 8, 8), net.weights(), net.context(net.weights(), torch.zeros(1))
    used: list[tuple[int, ...]] = []
    original = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda h, *rest: (used.append(tuple(h.shape)), original(h, *rest))[1])
    fast = freeze(weights, context)
    direct = FrozenEnergy(weights, context)
    torch.testing.assert_close(fast(y), direct(y), rtol=1e-5, atol=1e-5)
    assert used == [(8, 128, 8, 8)] * 2
    assert relative(fast.gradient(y), direct.gradient(y).double()) < 1e-4


def test_freezing_twice_is_freezing_once() -> None:
    net = EnergyNet(image_size=8, channels=1, width=128, multipliers=(1,), blocks=1)
    context = net.context(net.weights(), torch.zeros(1))
    once = freeze(net.weights(), context)
    again = freeze(once.weights, context)
    assert again.weights.blocks[0].first is once.weights.blocks[0].first
