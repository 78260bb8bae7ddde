"""The moving average: its ramp, and spectral norm under it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cdrl.ema import EMA
from cdrl.networks import EnergyNet
from cdrl.networks.spectral import spectral_layers


def test_ramp_then_decay() -> None:
    network = nn.Linear(1, 1, bias=False).double()
    ema = EMA(network, decay=0.5)
    expected = network.weight.item()
    for count in range(20):
        network.weight.data.fill_(float(count))
        ema.update(count)
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * count
        assert ema.average.weight.item() == pytest.approx(expected, rel=1e-12)  # type: ignore[arg-type]


def test_first_update_keeps_a_tenth_of_the_start() -> None:
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(1.0)
    ema = EMA(network, decay=0.9999)
    network.weight.data.fill_(0.0)
    ema.update(0)
    assert ema.average.weight.item() == pytest.approx(0.1)  # type: ignore[arg-type]


def test_average_is_apart_from_the_live_network() -> None:
    network = nn.Linear(2, 2)
    ema = EMA(network, decay=0.9)
    before = network.weight.clone()
    network.weight.data.add_(1.0)
    assert torch.equal(ema.average.weight, before)  # type: ignore[arg-type]
    assert not ema.average.training
    assert not any(p.requires_grad for p in ema.average.parameters())


@pytest.fixture
def moved() -> EMA:
    """An energy net's average from which the live network has moved far away."""
    ema = EMA(EnergyNet(8, 1, 8, (1, 2), 1), decay=0.9)
    for layer in spectral_layers(ema.network):
        layer.weight.data.copy_(torch.randn_like(layer.weight))
        for _ in range(30):
            layer.iterate()
    ema.update(100)
    return ema


def errors(network: nn.Module) -> list[float]:
    """How far each normalised kernel's largest singular value is from one."""
    return [
        abs(float(torch.linalg.matrix_norm(layer.normalized().flatten(1), ord=2)) - 1.0)
        for layer in spectral_layers(network)
    ]


def test_refresh_normalises_the_average_by_its_own_norm(moved: EMA) -> None:
    live = max(errors(moved.synchronised("live")))
    assert max(errors(moved.synchronised("refresh"))) < min(0.1, live)


def test_live_keeps_the_live_vectors_and_never_averages_them(moved: EMA) -> None:
    average = moved.synchronised("live")
    for mine, live in zip(spectral_layers(average), spectral_layers(moved.network), strict=True):
        assert torch.equal(mine.u, live.u)
        assert torch.equal(mine.v, live.v)


@pytest.mark.parametrize("mode", ["refresh", "live"])
def test_synchronising_leaves_the_live_network_alone_and_repeats(mode: str, moved: EMA) -> None:
    before = {name: value.clone() for name, value in moved.network.state_dict().items()}
    first = {name: value.clone() for name, value in moved.synchronised(mode).state_dict().items()}
    again = moved.synchronised(mode).state_dict()
    assert all(torch.equal(value, moved.network.state_dict()[name]) for name, value in before.items())
    assert all(torch.equal(value, again[name]) for name, value in first.items())
