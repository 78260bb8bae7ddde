"""The range of images, [−1, 1], and how far outside a chain ended.

Samplers clamp what they return. That must not make a picture of a chain that ran away, so an image that is not finite
or has a pixel beyond `RUNAWAY` comes out as NaN as a whole, and nothing turns NaN into pixels (`cdrl.pictures`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor

RUNAWAY = 100.0
"""A pixel beyond this is no pixel, as in training (`cdrl.guard.LIMITS`). At nano, finished runs
end below 4, DRL after an eighth of its training at 11, networks that were hardly trained at 27."""
OUTSIDE = 1.5
"""A pixel beyond this is outside. Of healthy samples at nano 3 % (CDRL) to 17 % (DRL) have one, of early milestones
nearly all: worth saying, and nothing to judge by."""


@dataclass
class Range:
    """Images that were clamped: how many, and how many of them had a pixel beyond `OUTSIDE`."""

    images: int = 0
    outside: int = 0


_watching: ContextVar[Range | None] = ContextVar("watching", default=None)


@contextmanager
def watched(seen: Range) -> Iterator[None]:
    """Images that are clamped inside are counted in ``seen``."""
    token = _watching.set(seen)
    try:
        yield
    finally:
        _watching.reset(token)


def clamped(x: Tensor) -> Tensor:
    """Images ``(B, C, H, W)`` clamped to [−1, 1]; NaN as a whole where one ran away."""
    largest = x.abs().flatten(1).amax(dim=1)  # NaN where any pixel is
    if (seen := _watching.get()) is not None:
        seen.images += len(x)
        seen.outside += int((~(largest <= OUTSIDE)).sum())
    return x.clamp(-1.0, 1.0).masked_fill(~(largest <= RUNAWAY)[:, None, None, None], math.nan)
