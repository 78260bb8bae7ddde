"""No evaluation turns samples that are not finite, or ran away, into a number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cdrl import checkpoint
from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from cdrl.parallel import Group
from experiments.evaluate import Diverged, DrawingFailed, TrainedRun, of_the_machine, samples
from experiments.evaluate import evaluator as evaluate
from experiments.files import write_text
from tests.experiments.evaluate.conftest import Runs, quiet

SAMPLES = {"samples": 40, "batch": 20}
SETTINGS: dict[str, dict[str, Any]] = {
    "samples": SAMPLES,
    "steps": {**SAMPLES, "steps": 2, "multipliers": [0.5, 1.0], "search_samples": 20},
    "inpaint": {"masks": ["half"], "images": 2, "completions": 2, "repeats": 0, "batch": 4},
    "ood": {"outside": ["uniform"], "images": 10, "draws": 1, "batch": 10},
    "chains": {"images": 1, "chains": 2, "steps": 20, "pixels": 2, "pictured": 1, "pictures": 2, "long": [3],
               "scored": [], **SAMPLES},
}  # fmt: skip


def spoilt(run: TrainedRun, value: float) -> TrainedRun:
    """The averaged energy network with one weight spoilt."""
    assert isinstance(run.method, Cooperative)
    with torch.no_grad():
        next(run.method.learners["energy"].ema.average.parameters()).flatten()[0] = value
    return run


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_spoilt_averages_have_no_number(make_run: Runs, tmp_path: Path, kind: str, value: float) -> None:
    with pytest.raises(Diverged, match="not finite"):
        evaluate(kind)(spoilt(make_run(), value), SETTINGS[kind], tmp_path, quiet)


@pytest.mark.parametrize("kind", ["samples", "steps", "inpaint"])
@pytest.mark.parametrize("noise_scale", [1e5, 1e30])
def test_chains_that_run_away_have_no_number(make_run: Runs, tmp_path: Path, kind: str, noise_scale: float) -> None:
    run = make_run()
    assert isinstance(run.method, Cooperative)
    own = run.method.settings
    run.method.settings = replace(own, sampling=replace(own.chain, noise_scale=noise_scale))
    with pytest.raises(Diverged, match=r"\d+ of the first \d+ samples are not finite or ran away"):
        evaluate(kind)(run, SETTINGS[kind], tmp_path, quiet)


def test_a_spoilt_milestone_has_no_number_either(make_run: Runs, tmp_path: Path) -> None:
    run = make_run()
    assert run.method is not None
    averages = {
        f"{name}/{key}": torch.full_like(value, float("nan"))
        for name, learner in run.method.learners.items()
        for key, value in learner.ema.average.state_dict().items()
    }
    checkpoint.save(tmp_path / "1", averages, {"iteration": 1})
    run = replace(run, milestones=(tmp_path / "1",))
    with pytest.raises(Diverged, match="20 of the first 60 samples"):
        samples.evaluate(run, {**SAMPLES, "curve": True, "milestone_samples": 20}, tmp_path, quiet)


def test_healthy_samples_are_counted(make_run: Runs, tmp_path: Path) -> None:
    run = make_run()
    samples.evaluate(run, SAMPLES, tmp_path, quiet)
    assert (run.health.images, run.health.lost) == (40, 0)
    assert 0 <= run.health.outside <= 40


class Pair(Group):
    """The first of two processes; the other one gathers ``others``."""

    others: object = None

    def gathered(self, value: object) -> list[Any]:
        return [value, self.others]


def test_what_another_process_drew_or_could_not_draw_counts_in_all(
    make_run: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(make_run(), group=Pair(rank=0, size=2, shards=2))
    monkeypatch.setattr(Pair, "others", "RuntimeError: no such step")
    with pytest.raises(DrawingFailed, match="no such step"):
        samples.evaluate(run, SAMPLES, tmp_path, quiet)
    lost = samples.Drawn(20, 40, [], [], np.empty(0, np.uint8), samples.Health(20, 1, 0), 0.0)
    monkeypatch.setattr(Pair, "others", lost)
    with pytest.raises(Diverged, match="1 of the first 40"):
        samples.evaluate(run, SAMPLES, tmp_path, quiet)

    def fails(*_: object) -> Tensor:
        raise ValueError("here")

    monkeypatch.setattr(samples, "to_pixels", fails)
    monkeypatch.setattr(Pair, "others", None)
    with pytest.raises(DrawingFailed, match="ValueError: here"):
        samples.evaluate(run, SAMPLES, tmp_path, quiet)


def test_what_lies_in_the_machine_is_told_from_what_lies_in_the_evaluation(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as unwritable:
        write_text(tmp_path / "file" / "here", "text")
    for error in (unwritable.value, OSError(), MemoryError(), torch.OutOfMemoryError()):
        assert of_the_machine(error)
    for error in (UserError("no such mask"), RuntimeError("overflow"), ValueError(), KeyError()):
        assert not of_the_machine(error)
