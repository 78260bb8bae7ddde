"""Speed by counting: operations, passes and saved bytes, none of which depends on the machine.

At paper size everything runs on the ``meta`` device: shapes and operations are real, arithmetic is not done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cdrl import langevin, noise
from cdrl.cooperative import Cooperative
from cdrl.langevin import Langevin, Refined
from cdrl.method import Batch
from cdrl.networks import EnergyNet
from cdrl.networks.spectral import SpectralNorm, spectral_layers
from tests import reference

BATCH, STEPS = 8, 3
RELEASED_OPERATIONS = 1059
"""Tensor operations of one Langevin step in the authors' released code, counted the same way."""
aten = torch.ops.aten


class Operations(TorchDispatchMode):
    """Counts the tensor operations that reach a device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket] += 1
        return func(*args, **(kwargs or {}))


def saved_bytes(act: Callable[[], object]) -> int:
    """Bytes of distinct memory that autograd keeps for backward passes during ``act``."""
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        act()
    return sum(x.untyped_storage().nbytes() for x in kept.values())


@pytest.fixture(scope="module")
def steps() -> tuple[Callable[[], Refined], Callable[[], Tensor]]:
    """One Langevin step at paper size: ours, and the plain one."""
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpectralNorm, "iterate", lambda self: None)  # nothing to iterate on, and slow on this device
        net = EnergyNet()
        y, logsnr, index = torch.zeros(BATCH, 3, 32, 32), torch.zeros(BATCH), torch.arange(BATCH)
        key = torch.zeros((), dtype=torch.long)
    schedule, settings = noise.cosine_logsnr(), Langevin()
    level = torch.full((BATCH,), 3)
    constants = langevin.coefficients(schedule, level, settings)
    constants = constants._replace(tether=constants.tether.to("meta"), noise=constants.noise.to("meta"))
    at = reference.Transition(*(x.to("meta") for x in reference.transition(schedule, level, settings.step_variance)))
    frozen = net.frozen(net.weights(), logsnr)

    def plain() -> Tensor:
        f = lambda images: reference.energy(net, images, logsnr)  # noqa: E731
        return reference.reference_chain(f, y, y, at, settings, [1], index)

    return lambda: langevin.step(frozen, y, y, constants, key, index), plain


def test_operations_per_langevin_step(steps: tuple[Callable[[], Any], Callable[[], Any]]) -> None:
    totals = []
    for step in steps:
        with Operations() as operations:
            step()
        totals.append(operations.counts.total())
    assert totals[0] <= 0.42 * min(RELEASED_OPERATIONS, totals[1])


def test_bytes_saved_per_langevin_step(steps: tuple[Callable[[], Any], Callable[[], Any]]) -> None:
    ours, plain = (saved_bytes(step) for step in steps)
    assert ours <= 0.65 * plain


def test_a_frozen_step_tracks_no_parameter(steps: tuple[Callable[[], Any], Callable[[], Any]]) -> None:
    """One convolution backward per convolution, and none of them asks for a weight's gradient."""
    wanted: list[list[bool]] = []

    class Backwards(Operations):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket is aten.convolution_backward:
                wanted.append(args[-1])
            return super().__torch_dispatch__(func, types, args, kwargs)

    with Backwards() as operations:
        steps[0]()
    assert len(wanted) == operations.counts[aten.convolution] > 60
    assert all(mask == [True, False, False] for mask in wanted)


def test_passes_per_iteration(cooperative: Callable[..., Cooperative]) -> None:
    """K forwards and backwards for the chain, one of each for learning: positive and negative are one batch."""
    method = cooperative(initializer=False, chain=Langevin(STEPS, 1e-2))
    layers = sum(layer.weight.ndim == 4 for layer in spectral_layers(method.energy_net))
    with Operations() as operations:
        method.train_step([Batch.whole(torch.zeros(4, 1, 8, 8))], 0)
    assert operations.counts[aten.convolution] == (STEPS + 1) * layers
    assert operations.counts[aten.convolution_backward] == (STEPS + 1) * layers


def test_one_power_iteration_per_iteration(
    cooperative: Callable[..., Cooperative], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, iterated = cooperative(), []
    original = SpectralNorm.iterate
    monkeypatch.setattr(SpectralNorm, "iterate", lambda self: (iterated.append(self), original(self)))
    method.train_step([Batch.whole(torch.zeros(4, 1, 8, 8))], 0)
    assert iterated == list(spectral_layers(method.energy_net))
