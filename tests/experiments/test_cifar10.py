"""Scale mini on real CIFAR-10, end to end at a tiny budget; needs a folder named by ``CDRL_DATA_CIFAR10``."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import pytest

from experiments.__main__ import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("CDRL_DATA_CIFAR10" not in os.environ, reason="CDRL_DATA_CIFAR10 names no folder"),
]


def test_every_mini_row_trains_samples_and_is_scored(tmp_path: Path) -> None:
    small = [f"methods.{name}.batch_size=4" for name in ("cdrl", "drl", "drl_as_released", "short_run")]
    arguments = ["scale=mini", "scale.budget=400", "scale.samples=64", "scale.sample_batch=32", "scale.milestones=[]"]
    arguments += ["metrics.reference_samples=128", f"runs={tmp_path}/runs", f"results={tmp_path}/results"]
    # Short chains, and no row that scores all 10,000 held-out images: this is about the way, not the numbers.
    small += [f"methods.{name}.sampling.steps=1" for name in ("cdrl", "drl", "drl_as_released")]
    small += ["methods.short_run.steps=4"]
    assert main([*arguments, *small, "experiment.rows.real=null", "device=cpu"]) == 0
    with (tmp_path / "results" / "table1" / "mini" / "cells.csv").open() as file:
        cells = [cell for cell in csv.DictReader(file) if cell["metric"] == "fd"]
    assert {cell["row"] for cell in cells} == {"cdrl", "drl", "drl_as_released", "short_run", "noise"}
    assert {cell["protocol"] for cell in cells} == {"fd-efficientnet-lite0"}
    assert all(math.isfinite(float(cell["value"])) for cell in cells)
    assert {cell["verdict"] for cell in cells} == {"different-scale", "other-model"}
