"""The paper's own scale as far as a CPU goes: the manifests' networks, one iteration of them, and released weights."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl.method import Batch
from cdrl.recipe import ImageShape
from experiments import configuration, methods
from experiments.__main__ import main
from experiments.plan import make_plan
from tests.cdrl.released_networks import released_file
from tests.cdrl.test_released import GOLDEN

CIFAR = ImageShape(size=32, channels=3)


def row_method(row: str, *overrides: str) -> dict[str, Any]:
    plan = make_plan(configuration.resolve(["experiment=table1", "scale=paper", *overrides]))
    return dict(next(one.evaluations[0].run_settings.method for one in plan.rows if one.id == row))


@pytest.mark.parametrize(("row", "millions"), [("cdrl", 34.83), ("cdrl_large", 139.0), ("drl", 34.83)])
def test_energy_networks_of_the_papers_rows(row: str, millions: float) -> None:
    method = methods.recipe(row_method(row)).build(CIFAR, device="meta")
    energy = method.learners["energy"].network
    assert sum(p.numel() for p in energy.parameters()) / 1e6 == pytest.approx(millions, abs=0.5)


@pytest.mark.slow
@pytest.mark.skipif("CDRL_TEST_PAPER_SIZE" not in os.environ, reason="minutes: CDRL_TEST_PAPER_SIZE is not set")
def test_one_iteration_of_the_papers_networks() -> None:
    method = methods.recipe(row_method("cdrl")).build(CIFAR, iterations=10)
    before = {name: [p.detach().clone() for p in one.network.parameters()] for name, one in method.learners.items()}
    method.train_step([Batch.whole(torch.rand(2, 3, 32, 32) * 2 - 1)], 1)
    for name, learner in method.learners.items():
        now = list(learner.network.parameters())
        assert all(p.isfinite().all() for p in now)
        assert any(not torch.equal(p, old) for p, old in zip(now, before[name], strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty images of 32 pixels, and nothing to be recognised in them."""
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 8)):
        (tmp_path / "images" / split).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / split / f"{number}.png")
    return tmp_path / "images"


def released(tmp_path: Path, images: Path, checkpoint: object) -> int:
    places = [f"runs={tmp_path}/runs", f"results={tmp_path}/results", f"data.data_cache={tmp_path}/data"]
    counts = ["scale.samples=4", "scale.sample_batch=4", "scale.seeds=[0]", "metrics.metrics=[fd]"]
    data = ["data=folder", f"data.root={images}", "metrics=fd-efficientnet-lite0"]
    return main(["experiment=released", f"checkpoint={checkpoint}", *data, *counts, *places, "device=cpu"])


def test_a_released_file_is_sampled_and_scored(tmp_path: Path, folder: Path) -> None:
    layouts = json.loads(GOLDEN.read_text())["unconditional"]["layout"]
    file = released_file(tmp_path / "weights.pth.tar", layouts)
    assert released(tmp_path, folder, file) == 0
    with (tmp_path / "results" / "released" / "nano" / "cells.csv").open() as table:
        cells = {cell["row"]: float(cell["value"]) for cell in csv.DictReader(table) if cell["metric"] == "fd"}
    assert set(cells) == {"released", "real", "noise"}
    assert all(math.isfinite(value) for value in cells.values())


@pytest.mark.parametrize("checkpoint", ["null", "missing.pth.tar", "text"])
def test_a_bad_released_file_is_one_clear_line(
    checkpoint: str, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if checkpoint == "text":
        checkpoint = str(tmp_path / "text.pth.tar")
        Path(checkpoint).write_text("no checkpoint")
    assert released(tmp_path, folder, checkpoint) == 1
    printed = capsys.readouterr().err
    assert len([line for line in printed.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in printed
    assert ("checkpoint=PATH" if checkpoint == "null" else checkpoint) in printed
