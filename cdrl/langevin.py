"""One Langevin chain at one level: the hot loop.

With the step size inside the energy's parameterisation, ``log p(y | x_t) = f(y)/s² − |y − x_t|²/(2β)``, a step of size
``m·s`` is (Gao et al. 2021, eq. 16 and appendix; Zhu et al. 2024, eq. 6)

    y ← y + ½ m² ∇f(y) − m² (b²/2)(σ_{t−1}/σ_0)(y − x_t) + m s_t z

so that the drift through ``f`` does not depend on the level, and nothing is divided by a small number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cdrl import randomness
from cdrl.errors import UserError
from cdrl.networks.energy import FrozenEnergy, input_gradient
from cdrl.noise import NoiseSchedule, per_image

_LARGEST = torch.finfo(torch.float32).max
MOST_STEPS = 1_000_000
"""Of a chain at one level: the noise keys of all its steps are made at once."""


@dataclass(frozen=True)
class Langevin:
    """How long and how wide a chain walks.

    Attributes:
        steps: K, Langevin steps a level; 0 leaves the proposal as it is.
        step_variance: b², sets the step size ``s_t² = b² (σ_{t−1}/σ_0) β_t``; also part of the energy's scale.
        step_multiplier: m, the step becomes ``m·s_t`` while the energy keeps its scale: the knob when K is lowered.
        noise_scale: factor on the noise alone (DRL samples with 0.99).

    Raises:
        UserError: steps that are no whole number in 0 … `MOST_STEPS`, or numbers whose products float32 cannot hold.
    """

    steps: int = 15
    step_variance: float = 4e-4
    step_multiplier: float = 1.0
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.steps <= MOST_STEPS or self.steps != int(self.steps):
            raise UserError(f"a chain cannot have {self.steps} steps; use a whole number, 0 … {MOST_STEPS:,}")
        if not (self.step_variance > 0 and self.step_multiplier > 0 and self.noise_scale >= 0):
            raise UserError("step_variance and step_multiplier must be positive, noise_scale 0 or more")
        square = self.step_multiplier * self.step_multiplier  # infinite where ** would raise
        deviation = self.step_multiplier * self.noise_scale * self.step_variance**0.5
        if not all(x <= _LARGEST for x in (self.step_variance, square, square * self.step_variance, deviation)):
            raise UserError(f"steps too wide for float32 ({self}); use smaller numbers")


class Coefficients(NamedTuple):
    """The constants of a chain: ``y + gain ∇f − tether (y − anchor) + noise z``."""

    gain: Tensor
    """A scalar on the device: what is compiled or recorded for one value serves every other."""
    tether: Tensor
    """``(B, 1, 1, 1)``."""
    noise: Tensor
    """``(B, 1, 1, 1)``."""


class Refined(NamedTuple):
    """Where a chain ended, and the last energy gradient it followed (zeros after no step); both like ``y``."""

    y: Tensor
    gradient: Tensor


class KnownPixels(NamedTuple):
    """Pixels that a chain must leave as they are: ``mask`` is true where ``y`` is pinned to ``value``."""

    mask: Tensor
    value: Tensor

    def pin(self, y: Tensor) -> Tensor:
        return torch.where(self.mask, self.value, y)


class Chain(NamedTuple):
    """Where a chain starts, and all that stays the same from step to step."""

    energy: FrozenEnergy
    """At the level's log-SNR."""
    start: Tensor
    """The proposal ŷ, ``(B, C, H, W)``."""
    anchor: Tensor
    """x_t, which the tether pulls to; the shape of ``start``."""
    constants: Coefficients
    streams: Tensor
    """Noise keys, int64 ``(K,)``, one a step."""
    image_index: Tensor
    """Global image indices, int64 ``(B,)``."""
    known: KnownPixels | None = None
    """Pinned before the first and after every step."""


Refine = Callable[[Chain], Refined]
"""`refine` in some form."""
Stepper = Callable[[FrozenEnergy, Tensor, Tensor, Coefficients, Tensor, Tensor], Refined]
"""(energy, y, anchor, coefficients, noise key, image indices) → the next state."""


def coefficients(schedule: NoiseSchedule, level: Tensor, settings: Langevin) -> Coefficients:
    """The constants of chains that end at levels ``level − 1``, in the schedule's type; ``level`` is int64 ``(B,)`` in
    1 … T."""
    square = settings.step_multiplier**2
    deviation = settings.step_multiplier * settings.noise_scale * settings.step_variance**0.5
    return Coefficients(
        gain=schedule.tether.new_full((), 0.5 * square),
        tether=per_image(0.5 * square * settings.step_variance * schedule.tether[level]),
        noise=per_image(deviation * schedule.unit_step[level]),
    )


def step(
    energy: FrozenEnergy,
    y: Tensor,
    anchor: Tensor,
    constants: Coefficients,
    stream: Tensor,
    index: Tensor,
    gradient_of: Callable[[FrozenEnergy, Tensor], Tensor] = input_gradient,
) -> Refined:
    """One Langevin step: the plain path, and the truth for all others."""
    gradient = gradient_of(energy, y)
    noise = randomness.normal(stream, index, tuple(y.shape[1:]), y.dtype)
    moved = y + constants.gain * gradient - constants.tether * (y - anchor) + constants.noise * noise
    return Refined(moved, gradient)


@torch.no_grad()
def refine(chain: Chain, stepper: Stepper = step) -> Refined:
    """Walk a chain; ``stepper`` is `step`, or a faster form of it with the same numbers.

    Returns:
        The refined sample ỹ, detached, and the last gradient.
    """
    start, known = chain.start.detach(), chain.known
    state = Refined(start if known is None else known.pin(start), torch.zeros_like(start))
    for stream in chain.streams.unbind():
        state = stepper(chain.energy, state.y, chain.anchor, chain.constants, stream, chain.image_index)
        if known is not None:
            state = Refined(known.pin(state.y), state.gradient)
    return state
