"""On an accelerator: no tensor meets one of the other device, training never waits, and numbers are the CPU's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cdrl import checkpoint, fast, langevin
from cdrl.fast import Captured, Engine
from experiments.configuration import resolve
from experiments.data import batches
from experiments.measurement import Measurement
from experiments.plan import Evaluation, Job, make_plan
from experiments.runs import work
from experiments.runs.trained import image_shape, training_batches
from tests import accelerator
from tests.accelerator import Accelerator, to_host
from tests.benchmarks.gpu.device import record_again

pytestmark = pytest.mark.skipif(not accelerator.AVAILABLE, reason="this PyTorch knows no devices written in Python")

CPU = torch.device("cpu")
SMALL = [
    *(f"methods.{name}.energy={{width: 8, multipliers: [1, 2], blocks: 1}}" for name in ("cdrl", "drl", "short_run")),
    "methods.cdrl.initializer={width: 12, multipliers: [1], blocks: 1, dropout: 0.0, attention_sizes: [4]}",
    "scale.seeds=[0]", "scale.budget=300", "scale.milestones=[0.5]", "scale.milestone_samples=16",
    "scale.samples=24", "scale.sample_batch=24", "metrics.reference_samples=64", "methods.cdrl.sampling.steps=2",
]  # fmt: skip


def planned(experiment: str, name: str, *overrides: str) -> Evaluation:
    """The first evaluation of a row."""
    plan = make_plan(resolve([f"experiment={experiment}", "scale=nano", *overrides]))
    return next(row.evaluations[0] for row in plan.rows if row.id == name)


def test_a_wait_is_seen_and_so_is_a_stranger(elsewhere: Accelerator) -> None:
    x = torch.ones(3).to(elsewhere.device, non_blocking=True)
    assert not elsewhere.waits
    assert float(x.sum()) == 3.0
    x.cpu()
    torch.ones(3).to(elsewhere.device)
    assert len(elsewhere.waits) == 3
    with pytest.raises(RuntimeError, match="met CPU tensors"):
        x + torch.ones(3)


@pytest.mark.parametrize(
    ("experiment", "name", "engine"),
    [
        ("table1", "cdrl", "eager"),
        ("table1", "cdrl", "replayed"),
        ("table1", "drl", "eager"),
        ("table1", "short_run", "eager"),
        ("guidance", "cdrl-0", "eager"),
        ("compose", "cdrl-0.0", "eager"),
        ("ablations", "bf16", "eager"),
        ("ablations", "initializer", "eager"),
        ("frontier", "ddpm", "eager"),
        ("toy", "checkerboard", "eager"),
    ],
)
def test_training_waits_for_nothing_and_is_the_cpus(
    experiment: str, name: str, engine: str, elsewhere: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "fits", lambda *_: True)
    small = SMALL if experiment != "toy" else ()
    settings = planned(experiment, name, *small).run_settings
    training, recipe = settings.data.load("train"), settings.recipe
    shape = image_shape(settings, training)

    def trained(device: torch.device) -> tuple[Tensor, Tensor]:
        form = fast.engine("eager", device, recipe.precision)
        if engine == "replayed":
            form = Engine("replayed", Captured(langevin.refine, record_again))
        method = recipe.build(shape, iterations=2, device=device, engine=form)
        stream = training_batches(settings, training, device)
        stream.batch(0)  # an epoch's order is brought over once
        elsewhere.waits.clear()
        for iteration in range(2):
            method.train_step([stream.batch(iteration)], iteration)
        assert elsewhere.waits == []
        return method.meters.sums.cpu(), next(iter(method.sample(2, 0))).cpu()

    for there, here in zip(trained(elsewhere.device), trained(CPU), strict=True):
        assert torch.equal(there, here)  # its kernels are the CPU's: another number is another computation


JOBS: dict[tuple[str, str], list[str]] = {
    ("table1", "cdrl"): [],
    ("table1", "real"): [],
    ("frontier", "ddpm"): [],
    ("guidance", "cdrl-1.0"): ["experiment.rows.cdrl.evaluate.samples=24"],
    ("compose", "cdrl-1.0"): ["experiment.rows.cdrl.evaluate.samples=1"],
    ("inpaint", "cdrl"): [f"experiment.rows.cdrl.evaluate.{key}" for key in ("images=2", "completions=2")],
    ("ood", "cdrl"): [f"experiment.rows.cdrl.evaluate.{key}" for key in ("images=16", "draws=1")],
    ("chains", "cdrl"): [
        f"experiment.rows.cdrl.evaluate.{key}"
        for key in ("images=2", "chains=2", "steps=40", "long=[5]", "pictures=2", "samples=24")
    ],
    ("ablations", "gradients"): [
        "experiment.seeds=[0]", *(f"experiment.rows.gradients.evaluate.{key}" for key in ("images=4", "draws=2"))
    ],
    ("speedup", "cdrl_3"): [
        "experiment.samples=24", "experiment.search_samples=12", "experiment.rows.cdrl_3.evaluate.multipliers=[1.0,2.0]"
    ],
    ("toy", "checkerboard"): [
        "methods.cdrl.energy.multipliers=[1]",
        *(f"experiment.rows.checkerboard.evaluate.{key}" for key in ("grid=16", "samples=64", "batch=32")),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS, ids=" ".join)
def test_whole_jobs(job: tuple[str, str], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "fits", lambda *_: True)
    monkeypatch.setattr(checkpoint, "save_file", to_host(checkpoint.save_file))
    monkeypatch.setattr(work, "resolve_device", str)

    def done(device: torch.device) -> tuple[Measurement, ...]:
        evaluation = planned(*job, *SMALL, *JOBS[job], f"runs={tmp_path / device.type}", f"cache={cache}")
        Job(evaluation.run, evaluation.run_settings, (evaluation,)).want()
        assert work.work(work.Order(evaluation.run.path, device=str(device), cache=str(cache))) == "done"
        result = evaluation.folder.result()
        assert result is not None
        return result.measurements

    here = done(CPU)
    with Accelerator() as elsewhere:
        there = done(elsewhere.device)
    assert [one.metric for one in there] == [one.metric for one in here]
    values = [[one.value for one in side] for side in (there, here)]
    np.testing.assert_allclose(*values, rtol=1e-5)  # of the same images; extractors take other batches on a device
