"""Looking at trained runs: one module per kind of evaluation, each with one function ``evaluate``.

    evaluate(run, settings, out, progress) -> measurements

It raises `Diverged` where there is nothing to measure, because samples or energies are not finite: an outcome, and
never a number. Every image that is scored or shown is looked at before it becomes pixels (`TrainedRun.healthy`,
`experiments.evaluate.samples.drawn`). A module may have ``check(settings)``, called by the plan: what cannot work is
said before training.

Here is what they share. Measurements are `experiments.measurement.Measurement`; arrays for figures are written to the
folder ``out``. A module that scores samples under the protocol says so by ``SCORES = True``: then the protocol's
reference statistics are made before it is needed. One that lets all processes of a run take part says so by
``SHARED = True``: each calls ``evaluate`` then, and goes through the same steps (``run.group``); what the first one
returns and writes counts. Everything else is done by the first process alone, when the others have left.
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl import checkpoint
from cdrl.bounds import Range, watched
from cdrl.conditions import Condition
from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from cdrl.method import Method
from cdrl.parallel import ALONE, Group
from cdrl.randomness import Draws
from cdrl.recipe import Recipe
from cdrl.sampler import Sampler
from experiments.data import DataSettings, ImageSet, to_uint8
from experiments.measurement import Measurement
from experiments.progress import OnProgress

if TYPE_CHECKING:
    from experiments.metrics import Protocol

Evaluator = Callable[["TrainedRun", dict[str, Any], Path, OnProgress], list[Measurement]]


class Diverged(Exception):
    """Samples or energies are not finite: the evaluation's outcome, in words."""


class DrawingFailed(Exception):
    """Drawing failed in one of several processes, and all of them raise this."""


def of_the_machine(error: BaseException | None) -> bool:
    """Whether memory, a disk or a device is at fault, or a file that others can bring: nothing that the evaluation is,
    so that the same one may succeed later or elsewhere."""
    device: tuple[type[BaseException], ...] = (getattr(torch, "AcceleratorError", torch.OutOfMemoryError),)
    while error is not None:
        if isinstance(error, (OSError, MemoryError, torch.OutOfMemoryError, *device)):
            return True
        error = error.__cause__
    return False


@dataclass
class Health:
    """Images that an evaluation drew.

    Attributes:
        images: how many.
        lost: of them, those that are not finite, as those are that ran away (`cdrl.bounds`).
        outside: those with a pixel beyond `cdrl.bounds.OUTSIDE` before they were clamped.
    """

    images: int = 0
    lost: int = 0
    outside: int = 0

    @classmethod
    def of(cls, images: Tensor, seen: Range) -> Health:
        """Of a batch of which ``seen`` was counted while it was drawn."""
        lost = int((~images.isfinite()).flatten(1).any(dim=1).sum())
        return cls(len(images), lost, seen.outside)

    def add(self, other: Health) -> None:
        """Counts more images. Raises `Diverged` where any was lost."""
        self.images += other.images
        self.lost += other.lost
        self.outside += other.outside
        if self.lost:
            raise Diverged(f"{self.lost:,} of the first {self.images:,} samples are not finite or ran away")


@dataclass
class TrainedRun:
    """A run as an evaluation sees it.

    Attributes:
        recipe: how it was trained.
        data: its data set's settings.
        method: trained, or None for the reference rows.
        milestones: folders of averaged weights along training, in order; see `cdrl.checkpoint.load`.
        seed: of the run, and so of its samples.
        device: where to compute.
        train, test: the images.
        protocol: of the evaluation.
        cache: folder of weights and statistics.
        group: the processes that evaluate it together.
        health: of all that is drawn.
    """

    recipe: Recipe
    data: DataSettings
    method: Method | None
    milestones: tuple[Path, ...]
    seed: int
    device: torch.device
    train: ImageSet
    test: ImageSet
    protocol: Protocol
    cache: Path
    group: Group = ALONE
    health: Health = field(default_factory=Health)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return (self.train.channels, self.train.image_size, self.train.image_size)

    def sampler(self) -> Sampler:
        """The sampler of a series of energies. Raises `UserError` for methods that are none."""
        if not isinstance(self.method, Cooperative):
            name = self.recipe.label or type(self.recipe).__name__
            raise UserError(f"this evaluation needs a series of energies (CDRL or DRL), not '{name}'")
        return self.method.sampler()

    def pictures(
        self, n: int, condition: Condition, batch: int, progress: Callable[[float], object]
    ) -> NDArray[np.uint8]:
        """``n`` samples of the series of energies, uint8 ``(n, H, W, C)``; ``progress`` is told the share done."""
        drawn: list[NDArray[np.uint8]] = []
        for images in self.healthy(self.sampler().batches(n, self.seed, condition, batch)):
            drawn.append(to_uint8(images).cpu().numpy())
            progress(sum(map(len, drawn)) / n)
        return np.concatenate(drawn)

    def healthy(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The same images ``(B, C, H, W)``, counted as they are drawn. Raises `Diverged` where some are not finite."""
        remaining = iter(batches)
        while True:
            with watched(seen := Range()):
                images = next(remaining, None)
            if images is None:
                return
            self.health.add(Health.of(images, seen))
            yield images


def at_milestone(method: Method, folder: Path) -> tuple[int, Method]:
    """Iterations done, and the method with the averaged weights of that time; the method itself stays as it is."""
    tensors, facts = checkpoint.load(folder)
    earlier = copy.copy(method)
    earlier.learners = {name: copy.copy(learner) for name, learner in method.learners.items()}
    for name, learner in earlier.learners.items():
        learner.ema = copy.deepcopy(learner.ema)
        own = [key for key in tensors if key.startswith(f"{name}/")]
        learner.ema.average.load_state_dict({key.removeprefix(f"{name}/"): tensors[key] for key in own})
    return facts["iteration"], earlier


@torch.no_grad()
def chain_start(sampler: Sampler, upper: Tensor, level: Tensor, draws: Draws) -> Tensor:
    """Where a chain from x_t starts, ``(B, C, H, W)``: the initializer's draw, or x_t itself (DRL).

    Args:
        sampler: its networks.
        upper: x_t, ``(B, C, H, W)``.
        level: t in 1 … T, int64 ``(B,)``.
        draws: of the proposal.
    """
    if sampler.initializer is None:
        return upper
    transitions = sampler.transitions
    return transitions.proposal(sampler.initializer(upper, transitions.schedule.logsnr[level]), level, draws)


def evaluator(kind: str) -> Evaluator:
    """The ``evaluate`` function of a kind. Raises `UserError` when there is no such module."""
    return _module(kind).evaluate


def scores_samples(kind: str) -> bool:
    """Whether this kind of evaluation needs the protocol's reference statistics."""
    return getattr(_module(kind), "SCORES", False)


def protocols(settings: dict[str, Any]) -> list[Protocol]:
    """What an evaluation measures by: its protocol, and the one that says which classes are seen, where it asks."""
    from experiments.metrics import Protocol

    return [Protocol.from_config(settings[name]) for name in ("metrics", "classes_by") if settings.get(name)]


def shared(kind: str) -> bool:
    """Whether all processes of a run take part in this kind of evaluation."""
    return getattr(_module(kind), "SHARED", False)


def check(settings: dict[str, Any]) -> None:
    """Raises `UserError` where an evaluation's settings cannot work, as far as they say so themselves."""
    getattr(_module(settings["kind"]), "check", lambda _: None)(settings)


def _module(kind: str) -> Any:
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if kind not in known:
        raise UserError(f"unknown kind of evaluation '{kind}'; there are {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{kind}")
