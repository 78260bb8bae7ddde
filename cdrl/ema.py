"""Exponential moving averages of weights, with spectral norm treated as what it is: not a weight.

The vectors of a power iteration belong to the matrix they were iterated on. Averaging them is meaningless, so the
average network either keeps the live network's vectors ("live", as released) or re-iterates them on its own weights
("refresh").
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from cdrl.networks.spectral import iterate_all

SPECTRAL_MODES = ("refresh", "live")
_REFRESH_ITERATIONS = 10


class EMA:
    """A moving average of a network's parameters, with the usual ramp ``min(d, (1 + n)/(10 + n))`` at update n.

    Args:
        network: the live network; a frozen copy in evaluation mode becomes ``average``.
        decay: d, in [0, 1).
        ramp: n of the first update; None goes without the ramp.
    """

    def __init__(self, network: nn.Module, decay: float, ramp: int | None = 0) -> None:
        self.network, self.decay, self.ramp = network, decay, ramp
        self.average = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, count: int) -> None:
        """Move the average; ``count`` is the number of updates made before this one."""
        decay = self.decay
        if self.ramp is not None:
            decay = min(decay, (1 + self.ramp + count) / (10 + self.ramp + count))
        torch._foreach_lerp_(
            list(self.average.parameters()), [p.detach() for p in self.network.parameters()], 1.0 - decay
        )

    @torch.no_grad()
    def synchronised(self, spectral: str = "refresh") -> nn.Module:
        """A copy of the average network to be used: buffers taken from the live one, then what ``spectral`` says."""
        average = copy.deepcopy(self.average)
        for mine, live in zip(average.buffers(), self.network.buffers(), strict=True):
            mine.copy_(live)
        if spectral == "refresh":
            for _ in range(_REFRESH_ITERATIONS):
                iterate_all(average)
        return average
