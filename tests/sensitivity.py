"""How much rounding can change a float32 result: the bound to compare two ways to compute it by.

Chains, kinks of activations and Adam's normalised steps make more of a rounding than one would guess, and how much
depends on the processor's order of summation. So a bound is not guessed: the same computation is done again with all
its inputs moved by a few roundings, and what that changes is measured. (Mathematics is compared in float64 instead,
where none of this matters: see `tests.reference`.)

    change = of(lambda energy, y: energy.gradient(y), energy, y, roundings=10)
    assert distance(fast.gradient(y), energy.gradient(y)) < change
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def distance(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference."""
    return float((actual.detach().double() - expected.detach().double()).square().mean().sqrt())


def of(compute: Callable[..., Tensor], *inputs: Any, roundings: float, draws: int = 5) -> float:
    """The largest `distance` that ``compute(*inputs)`` goes when its inputs are moved by chance.

    Args:
        compute: a function of tensors, or of trees of them: weights too are inputs that count.
        inputs: its arguments.
        roundings: how far every number moves at most, in float32 roundings (2⁻²⁴ of it): as many as the computation
            itself makes in sequence, a few for every operation and √n for a sum of n.
        draws: of directions to move in.
    """
    start = compute(*inputs)
    change = max(distance(compute(*moved(inputs, roundings, seed)), start) for seed in range(draws))
    assert change > 0, "a result that no input changes has no sensitivity"
    return change


def moved(tree: Any, roundings: float, seed: int) -> Any:
    """The same tree with every floating-point number multiplied by 1 ± ``roundings`` · 2⁻²⁴ at most."""
    generator = torch.Generator().manual_seed(seed)

    def move(values: object) -> object:
        if not isinstance(values, Tensor) or not values.is_floating_point():
            return values
        share = 2 * torch.rand(values.shape, generator=generator, dtype=torch.float64) - 1
        factor = (1 + share * roundings * 2.0**-24).to(values.device)
        return (values.detach().double() * factor).to(values.dtype)

    return pytree.tree_map(move, tree)
