"""When training diverges: how that is noticed, and what happens then.

Now and then (`Guard.every`: the device is waited for) everything since the last check is looked at: the meters of each
iteration, at each level; the weights, their averages, their optimiser's moments and their spectral norms. What is not
finite, or beyond its limit, trips the guard, and the trainer rolls back (`cdrl.trainer`):

    weights, averages, moments    those of the last anchor, a state that was found healthy
    iterations                    go on being counted, so that noise and images are new ones and the budget is kept
    learning rates                × ``slowdown``

Limits are far from what healthy training does (images are in [−1, 1]): they tell divergence, not bad luck.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cdrl.errors import UserError
from cdrl.method import Method
from cdrl.networks.spectral import spectral_layers

LIMITS = {"displacement": 1e1, "proposal_error": 1e1, "refined_error": 1e1, "range": 1e2}
"""A level's mean in one iteration beyond these is divergence. RMS over pixels, and the largest pixel."""
LIMIT = 1e6
"""The same for every other meter, for weights and for spectral norms."""

Record = list[dict[str, list[float | None]]]
"""Of iterations, one after the other: each meter's means per level, see `cdrl.method.Meters.means`."""


@dataclass(frozen=True)
class Guard:
    """The policy.

    Attributes:
        rollbacks: after which a run is given up; 0 gives it up at once.
        slowdown: factor on all learning rates at each of them, in (0, 1].
        every: iterations between checks. They come before reports, anchors and checkpoints too.
        anchors: states to go back to, evenly spread over the run; the last healthy one is kept.
    """

    rollbacks: int = 3
    slowdown: float = 0.5
    every: int = 100
    anchors: int = 40

    def __post_init__(self) -> None:
        if not (self.rollbacks >= 0 and 0 < self.slowdown <= 1 and self.every >= 1 and self.anchors >= 1):
            raise UserError(f"a guard needs rollbacks ≥ 0, 0 < slowdown ≤ 1, every ≥ 1, anchors ≥ 1; not {self}")


STANDARD = Guard()


@dataclass(frozen=True)
class Trip:
    """A rollback.

    Attributes:
        number: 1, 2, …
        iteration: at which it was noticed: so many were done.
        anchor: the iteration of the state that the run went back to.
        reason: the first number that went wrong, in words.
        record: of the iterations before it, up to `cdrl.method.Meters.WINDOW` of them.
    """

    number: int
    iteration: int
    anchor: int
    reason: str
    record: Record = field(repr=False)


def trouble(method: Method, first: int, stop: int) -> str:
    """The first sign of divergence in iterations ``first … stop − 1`` or in the present state, in words, or nothing."""
    recorded = method.meters.recorded(first, stop)
    for iteration, meters in enumerate(recorded, start=stop - len(recorded)):
        for name, values in meters.items():
            limit = LIMITS.get(name, LIMIT)
            for level, value in enumerate(values):
                if value is not None and not abs(value) <= limit:  # also where it is NaN
                    return f"{name} is {value:.3g} at level {level} in iteration {iteration} (limit {limit:.0e})"
    names, magnitudes = zip(*_magnitudes(method), strict=True)
    for name, value in zip(names, torch.stack(magnitudes).tolist(), strict=True):
        if not value <= LIMIT:
            return f"{name} reach {value:.3g} (limit {LIMIT:.0e})"
    return ""


@torch.no_grad()
def _magnitudes(method: Method) -> Iterator[tuple[str, Tensor]]:
    """The largest absolute value of each kind of state, as scalars on the device."""
    for name, learner in method.learners.items():
        moments = [value for state in learner.optimizer.state.values() for value in state.values() if value.dim()]
        layers = list(spectral_layers(learner.network))
        kinds = {
            "weights": list(learner.network.state_dict().values()),
            "averaged weights": list(learner.ema.average.state_dict().values()),
            "moments": [moment.clamp(-LIMIT, LIMIT) for moment in moments],  # any size will do, but no NaN
            "spectral norms": [layer.sigma() for layer in layers],
        }
        for kind, tensors in kinds.items():
            if tensors:
                yield f"{name} {kind}", torch.stack([tensor.abs().max().float() for tensor in tensors]).max()
