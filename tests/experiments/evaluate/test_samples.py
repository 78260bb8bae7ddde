"""Sampling and scoring a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdrl import checkpoint
from cdrl.errors import UserError
from experiments.evaluate import samples
from tests.experiments.evaluate.conftest import Runs, quiet

SETTINGS = {"kind": "samples", "samples": 60, "batch": 25, "milestone_samples": 40, "curve": True}


def test_a_curve_has_as_many_samples_at_its_end_as_before(make_run: Runs, tmp_path: Path) -> None:
    """A milestone of the final weights scores as the end does; the table's number is of more samples."""
    run = make_run()
    run.config["method"]["batch_size"] = 4
    averages = {
        f"{name}/{key}": value
        for name, learner in run.method.learners.items()
        for key, value in learner.ema.average.state_dict().items()
    }
    checkpoint.save(run.folder / "milestones" / "00000001", averages, {"iteration": 1})
    (measured,) = samples.evaluate(run, SETTINGS, tmp_path, quiet)
    before, end = np.load(tmp_path / "curve.npz")["value"]
    assert before == pytest.approx(end)
    assert measured["value"] != pytest.approx(end)


def test_real_images_suit_a_protocol_that_does_not_round(make_run: Runs, tmp_path: Path) -> None:
    run = replace(make_run(), method=None, config={"method": {"kind": "real"}})
    unrounded = replace(run, protocol=replace(run.protocol, rounding=False))
    found = [samples.evaluate(each, {"samples": 60, "batch": 25}, tmp_path, quiet) for each in (run, unrounded)]
    assert found[0][0]["value"] == pytest.approx(found[1][0]["value"])


@pytest.mark.parametrize(("classes", "weight", "words"), [(0, 0.7, "trained without"), (10, -1.0, "0 or more")])
def test_guidance_that_leads_nowhere_is_refused(
    make_run: Runs, tmp_path: Path, classes: int, weight: float, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        samples.evaluate(make_run(classes), {"samples": 4, "batch": 4, "guidance": weight}, tmp_path, quiet)


def test_guidance_towards_classes_that_were_learned(make_run: Runs, tmp_path: Path) -> None:
    (found,) = samples.evaluate(make_run(10), {"samples": 4, "batch": 4, "guidance": 0.7}, tmp_path, quiet)
    assert found["grad_evals"] == 2 * make_run(10).sampler().gradient_evaluations
