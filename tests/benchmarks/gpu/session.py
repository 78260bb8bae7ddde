"""What all stages know: places, device, time, and the suite's overrides that follow from them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from experiments import configuration, data
from experiments.plan import Plan, make_plan
from tests.benchmarks.gpu.parts import Deadline, Parts
from tests.benchmarks.gpu.search import Settings, overrides

METHODS = ("cdrl", "drl", "short_run")

_TINY_NETWORK = "{width: 8, multipliers: [1, 2], blocks: 1, kernel: 3}"
_TINY_INITIALIZER = "{width: 12, multipliers: [1, 1], blocks: 1, kernel: 3, dropout: 0.1, attention_sizes: [16]}"
TINY = [
    *(f"methods.{name}.energy={_TINY_NETWORK}" for name in METHODS),
    *(f"methods.{name}.batch_size=4" for name in METHODS),
    f"methods.cdrl.initializer={_TINY_INITIALIZER}",
    "methods.cdrl.chain.steps=2", "methods.drl.chain.steps=2", "methods.short_run.steps=2",
    "scale.samples=32", "scale.sample_batch=32", "scale.milestones=[0.5]", "scale.milestone_samples=16",
    "metrics.reference_samples=64", "launcher.workers=1", "launcher.threads=1",
]  # fmt: skip
"""Laid over scale mini in a rehearsal: the same way on real images, with networks and counts for seconds on a CPU."""


@dataclass(frozen=True)
class Session:
    """One call of the script.

    Attributes:
        out: what the stages write, search, budgets and times; a later call with the same folder goes on from there.
        device: "cpu" or "cuda".
        engine: the suite's engine.
        tiny: whether this is a rehearsal.
        deadline: of this call.
    """

    out: Path
    device: torch.device
    engine: str
    tiny: bool
    deadline: Deadline

    def parts(self, stage: str) -> Parts:
        return Parts(self.out / stage, self.deadline)

    @property
    def runs(self) -> Path:
        """Rehearsals stay beside their output; what counts goes where the suite's own commands find it."""
        return self.out / "runs" if self.tiny else Path("runs")

    @property
    def results(self) -> Path:
        return self.out / "results" if self.tiny else Path("results")

    @property
    def chosen_file(self) -> Path:
        return self.out / "chosen.json"

    def chosen(self) -> dict[str, Settings]:
        """The search's choice by method; nothing where none was made: then the scale's own settings hold."""
        return json.loads(self.chosen_file.read_text()) if self.chosen_file.exists() else {}

    def overrides(self, experiment: str, *extra: str) -> list[str]:
        """A command line of the suite without what the search has chosen."""
        places = [f"runs={self.runs}", f"results={self.results}", f"cache={self.out / 'cache'}"]
        where = [f"device={self.device}", f"engine={self.engine}"]
        tiny = TINY if self.tiny else []
        return [f"experiment={experiment}", "scale=mini", "data=cifar10", *places, *where, *tiny, *extra]

    def chosen_overrides(self) -> list[str]:
        return [line for method, settings in self.chosen().items() for line in overrides(method, settings)]

    def run_config(self, method: str, *extra: str) -> dict[str, Any]:
        """The configuration of table 1's run of a method."""
        plan = planned(self.overrides("table1", *extra))
        return next(row.evaluations[0].run.config for row in plan.rows if row.id == method)

    @cached_property
    def training(self) -> data.ImageSet:
        """The training images."""
        return data.load("cifar10", "train")


def planned(overrides: list[str]) -> Plan:
    """The plan of a command line of the suite."""
    return make_plan(configuration.resolve(overrides))
