"""The benchmarks; each group holds the plain reference beside the fast path, in the same process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdrl import checkpoint
from cdrl.cooperative import Cooperative
from cdrl.method import Batch
from experiments import data
from experiments.data.batches import DeviceBatches
from experiments.metrics import Moments, frechet_distance
from tests.benchmarks import cases

RELEASED = os.environ.get("CDRL_RELEASED_REPO")
ROUNDS = {"nano": 12, "mini": 4, "paper": 1}
"""On a shared machine the shortest of many is what the machine can do; large cases cannot afford many."""
TURNS = [1, 2]
"""The variants of a case take turns, so that a slow minute of the machine is not one variant's alone."""
VARIANTS = ["plain", "fast", *(["released"] if RELEASED else [])]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("size", cases.SIZES)
def test_chain(measure: Any, size: str, turn: int, variant: str) -> None:
    setting = cases.SIZES[size]
    method, y = cases.build(setting), cases.images(setting, setting.batch)
    assert isinstance(method, Cooperative)
    if variant == "released":
        act = cases.released_chain(Path(RELEASED or ""), setting, y, setting.steps)
    else:
        act = cases.chain(method, y, setting.steps, plain=variant == "plain")
    work = setting.steps * cases.flops(cases.chain(method, y, 1, plain=True))  # fast convolutions do less
    measure(act, f"chain/{size}", variant, len(y), rounds=ROUNDS[size], flops=work)


@pytest.mark.parametrize("batch", [1, 4, 16, 64, 256])
def test_chain_by_batch(measure: Any, batch: int) -> None:
    setting = cases.SIZES["nano"]
    method = cases.build(setting)
    assert isinstance(method, Cooperative)
    measure(cases.chain(method, cases.images(setting, batch), 5), f"batch/{batch}", "fast", batch, rounds=10)


@pytest.mark.parametrize("variant", ["plain", "fast"])
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize(
    ("size", "method"), [("nano", "cdrl"), ("nano", "drl"), ("nano", "short_run"), ("mini", "cdrl"), ("paper", "cdrl")]
)
def test_iteration(measure: Any, size: str, method: str, turn: int, variant: str) -> None:
    setting = cases.SIZES[size]
    trained, x0 = cases.build(setting, method), cases.images(setting, setting.batch)
    act = cases.plain_step(trained, x0) if variant == "plain" else lambda: trained.train_step([Batch.whole(x0)], 1)
    measure(act, f"iteration/{size} {method}", variant, len(x0), rounds=ROUNDS[size])


@pytest.mark.parametrize("variant", ["plain", "fast"])
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("method", ["cdrl", "drl", "short_run"])
def test_sampling_64(measure: Any, method: str, turn: int, variant: str) -> None:
    setting = cases.SIZES["nano"]
    trained = cases.build(setting, method)
    act = cases.plain_sampling(trained, setting, 64) if variant == "plain" else lambda: list(trained.sample(64, seed=0))
    measure(act, f"sampling/nano {method}", variant, 64, rounds=4)


@pytest.mark.parametrize("variant", ["plain", "fast"])
@pytest.mark.parametrize("turn", TURNS)
def test_frechet_statistics(measure: Any, turn: int, variant: str) -> None:
    """Moments of 2,048 features of 512 numbers in batches, and the distance to another set's."""
    features = torch.randn(2048, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other = torch.eye(512, dtype=torch.float64)

    def fast() -> float:
        moments = Moments(512)
        for rows in features.split(256):
            moments.update(rows)
        return frechet_distance(moments.mean, moments.cov, torch.zeros(512), other)

    def plain() -> float:
        from scipy import linalg

        mean, cov = features.numpy().mean(0), np.cov(features.numpy(), rowvar=False)
        root = linalg.sqrtm(cov @ other.numpy())
        return float(mean @ mean + np.trace(cov) + 512 - 2 * np.trace(root).real)

    measure(fast if variant == "fast" else plain, "frechet/512", variant, len(features))


@pytest.mark.parametrize("act", ["save", "load"])
def test_checkpoint(measure: Any, act: str, tmp_path: Path) -> None:
    state = cases.build(cases.SIZES["mini"]).state()
    checkpoint.save(tmp_path, state, {})
    measure(
        (lambda: checkpoint.save(tmp_path, state, {})) if act == "save" else (lambda: checkpoint.load(tmp_path)),
        f"checkpoint/{act}",
        "fast",
        1,
        bytes=sum(x.nbytes for x in state.values()),
    )


def test_data_pipeline(measure: Any) -> None:
    batches = DeviceBatches(data.load("digits", "train"), 32, 0, flip=True)
    measure(lambda: [batches.batch(i) for i in range(20)], "data/digits", "fast", 20 * 32)
