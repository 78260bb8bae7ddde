"""How much rounding can change a float32 result: the bound to compare two ways to compute it by.

Chains, kinks of activations and Adam's normalised steps make more of a rounding than one would guess, and how much
depends on the processor's order of summation. So a bound is not guessed: the same computation is done again with its
inputs moved by a few roundings, and what that changes is measured. (Mathematics is compared in float64 instead, where
none of this matters: see `tests.reference`.)

    change = of(lambda y: chain(y), y, roundings=10)
    assert distance(fast(y), plain(y)) < change
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def moved(values: Tensor, roundings: float, seed: int) -> Tensor:
    """Every number of a float32 tensor moved by at most that many roundings (units of its last digit's half)."""
    generator = torch.Generator().manual_seed(seed)
    share = 2 * torch.rand(values.shape, generator=generator, dtype=torch.float64) - 1
    return (values.double() * (1 + share * roundings * 2.0**-24)).to(values.dtype)


def distance(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference."""
    return float((actual.detach().double() - expected.detach().double()).square().mean().sqrt())


def of(compute: Callable[[Tensor], Tensor], inputs: Tensor, roundings: float, draws: int = 5) -> float:
    """The largest `distance` that ``compute(inputs)`` goes when ``inputs`` are `moved`.

    ``roundings`` stands for those of the computation itself: a few for each operation that follows on another.
    """
    start = compute(inputs)
    change = max(distance(compute(moved(inputs, roundings, seed)), start) for seed in range(draws))
    assert change > 0, "a computation that does not see its inputs has no sensitivity"
    return change
