"""Looking at trained runs: one module per kind of evaluation, each with one function ``evaluate``.

    evaluate(run, settings, out, progress) -> measurements

A measurement is a plain dict: ``metric, protocol, value, samples`` and optionally ``dataset``, ``row`` (a suffix, when
one evaluation fills several rows), ``grad_evals`` (per sample) and ``seconds``. Arrays for figures are written to
``out``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from cdrl.method import Method
from cdrl.sampler import Sampler
from experiments.data import ImageSet

if TYPE_CHECKING:
    from experiments.metrics import Protocol

SCORED = frozenset({"chains", "samples", "steps"})
"""The kinds that score samples under the protocol."""


class _Required(TypedDict):
    metric: str
    protocol: str
    value: float
    samples: int


class Measurement(_Required, total=False):
    """One measured number; see the module's docstring."""

    dataset: str
    row: str
    grad_evals: float
    seconds: float


Progress = Callable[[float, str], None]
"""Told the share done, 0 … 1, and what is being done."""
Evaluator = Callable[["TrainedRun", dict[str, Any], Path, Progress], list[Measurement]]


@dataclass
class TrainedRun:
    """A run as an evaluation sees it. ``method`` is None for the reference rows, which train nothing."""

    folder: Path
    config: dict[str, Any]
    seed: int
    device: torch.device
    method: Method | None
    train: ImageSet
    test: ImageSet
    protocol: Protocol
    cache: Path

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return (self.train.channels, self.train.image_size, self.train.image_size)

    @property
    def kind(self) -> str:
        """The kind of method."""
        return self.config["method"]["kind"]

    def sampler(self) -> Sampler:
        """The sampler of a series of energies. Raises `UserError` for methods that are none."""
        if not isinstance(self.method, Cooperative):
            raise UserError(f"this evaluation needs a series of energies (CDRL or DRL), not '{self.kind}'")
        return self.method.sampler()


def evaluator(kind: str) -> Evaluator:
    """The ``evaluate`` function of a kind. Raises `UserError` when there is no such module."""
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if kind not in known:
        raise UserError(f"unknown kind of evaluation '{kind}'; there are {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{kind}").evaluate
