"""Runs of seconds: nano's networks at a few iterations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdrl import checkpoint
from experiments import configuration
from experiments.plan import Job, make_plan

TINY = ["scale.seeds=[0]", "scale.milestones=[0.5]"]


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """Makes, and wants, the run of a method with a budget; nothing is evaluated."""

    def make(method: str = "cdrl", budget: int = 3900, runs: str = "runs", *overrides: str) -> Job:
        line = [*TINY, f"scale.budget={budget}", f"runs={tmp_path / runs}", f"cache={tmp_path / 'cache'}", *overrides]
        plan = make_plan(configuration.resolve(line))
        evaluation = next(row.evaluations[0] for row in plan.rows if row.id == method)
        made = Job(evaluation.run, evaluation.run_settings, ())
        made.want()
        return made

    return make


@pytest.fixture
def fingerprint() -> Callable[[Path], str]:
    """The bits of a run's checkpoint: weights, averages, optimisers, meters."""

    def of(folder: Path) -> str:
        tensors, _ = checkpoint.load(folder)
        digest = hashlib.sha256()
        for name in sorted(tensors):
            digest.update(name.encode() + tensors[name].numpy().tobytes())
        return digest.hexdigest()

    return of


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As every engine gives a run on a CPU."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
