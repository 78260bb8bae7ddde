"""Sampling and scoring a run."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cdrl import checkpoint
from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from experiments import methods
from experiments.evaluate import samples
from experiments.methods import Reference
from experiments.metrics import build, protocols
from tests.experiments.evaluate.conftest import Runs, quiet
from tests.reference import EXACT

SETTINGS = {"kind": "samples", "samples": 60, "batch": 20, "milestone_samples": 40, "curve": True}


def test_a_curve_has_as_many_samples_at_its_end_as_before(make_run: Runs, tmp_path: Path) -> None:
    """A milestone of the final weights scores as the end does; the table's number is of more samples."""
    run = make_run()
    assert run.method is not None
    averages = {
        f"{name}/{key}": value
        for name, learner in run.method.learners.items()
        for key, value in learner.ema.average.state_dict().items()
    }
    for iteration in (1, 2):
        checkpoint.save(tmp_path / str(iteration), averages, {"iteration": iteration})
    said: list[str] = []
    run = replace(run, milestones=(tmp_path / "1", tmp_path / "2"))
    (measured,) = samples.evaluate(run, SETTINGS, tmp_path, lambda done, text: said.append(f"{done:.2f} {text}"))
    curve = np.load(tmp_path / "curve.npz")
    first, second, end = curve["value"]
    assert first == second == pytest.approx(end, rel=EXACT)  # of the same batches, so of the same images
    each = run.method.training_cost * run.recipe.batch_size
    assert curve["grad_evals"].tolist() == [each, 2 * each, run.method.iterations * each]
    assert measured.value != pytest.approx(end)
    assert said[-1] == "1.00 scoring milestone 2 of 2"
    assert [text for text in said if text.endswith("60 of 60")] == ["0.43 sampled 60 of 60"]


def test_a_milestone_of_other_weights_leaves_the_run_as_it_is(make_run: Runs, tmp_path: Path) -> None:
    run = make_run()
    assert run.method is not None
    before = {name: value.clone() for name, value in run.method.state().items()}
    zeros = {
        f"{name}/{key}": value * 0.5
        for name, learner in run.method.learners.items()
        for key, value in learner.ema.average.state_dict().items()
    }
    checkpoint.save(tmp_path / "1", zeros, {"iteration": 1})
    samples.evaluate(replace(run, milestones=(tmp_path / "1",)), SETTINGS, tmp_path, quiet)
    earlier, end = np.load(tmp_path / "curve.npz")["value"]
    assert earlier != pytest.approx(end)
    after = run.method.state()
    assert all(torch.equal(after[name], value) for name, value in before.items() if ".ema" in name or "live" in name)


def test_an_evaluations_changes_reach_the_sampler_and_not_the_run(make_run: Runs) -> None:
    method = make_run().method
    assert isinstance(method, Cooperative)
    own = method.settings
    changed = samples.sampler(method, {"steps": 7, "step_multiplier": 1.5, "last_denoise": "none"})
    assert (changed.chain.steps, changed.chain.step_multiplier, changed.last_denoise) == (7, 1.5, "none")
    assert changed.chain.step_variance == own.chain.step_variance
    assert method.settings is own
    with pytest.raises(UserError, match="spectral_ema"):
        samples.sampler(method, {"spectral_ema": "other"})


def test_real_images_suit_a_protocol_that_does_not_round(make_run: Runs, tmp_path: Path) -> None:
    run = replace(make_run(), method=None, recipe=Reference(images="real"))
    unrounded = replace(run, protocol=replace(run.protocol, rounding=False))
    scores = [samples.evaluate(each, {"samples": 60, "batch": 25}, tmp_path, quiet) for each in (run, unrounded)]
    assert scores[0][0].value == pytest.approx(scores[1][0].value, rel=EXACT)


JUDGED = {"samples": 60, "batch": 25, "classes_by": asdict(protocols.load("fd-digits").judge)}


def test_a_second_protocol_says_which_classes_are_seen(make_run: Runs, tmp_path: Path, weights: Path) -> None:
    """Of samples those that were asked for, of real images their own; the first protocol's numbers stay."""
    run = replace(make_run(10), protocol=replace(make_run().protocol, name="first"))
    alone = samples.evaluate(run, {**JUDGED, "guidance": 0.7, "classes_by": None}, tmp_path, quiet)
    both = samples.evaluate(run, {**JUDGED, "guidance": 0.7}, tmp_path, quiet)
    assert [(one.metric, one.protocol) for one in both] == [("fd", "first"), ("class_accuracy", "fd-digits")]
    assert both[0].value == alone[0].value
    assert (both[1].weight, both[1].samples) == (0.7, 60)

    # As the digits classifier decides of the grid, which holds all of them.
    probabilities = build("digits", weights)(np.load(tmp_path / "grid.npy")).probabilities
    assert probabilities is not None
    asked = methods.class_condition(60, 10, run.seed, 0.7).labels[0] - 1
    assert both[1].value == pytest.approx(float((probabilities.argmax(dim=1) == asked).double().mean()))

    real = replace(run, method=None, recipe=Reference(images="real"))
    measured = samples.evaluate(real, JUDGED, tmp_path, quiet)
    assert [(one.metric, one.protocol) for one in measured] == [("fd", "first"), ("class_accuracy", "fd-digits")]
    assert measured[1].value > 0.9


def test_what_has_no_class_or_others_cannot_be_judged(make_run: Runs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"judges samples of classes; set evaluate\.guidance"):
        samples.evaluate(make_run(), JUDGED, tmp_path, quiet)
    run = make_run(5)
    five = replace(run.train, labels=None, class_names=tuple("abcde"))
    with pytest.raises(UserError, match="tells 10 classes apart and digits has 5"):
        samples.evaluate(replace(run, train=five), {**JUDGED, "guidance": 0.7}, tmp_path, quiet)


@pytest.mark.parametrize(("classes", "weight", "words"), [(0, 0.7, "trained without"), (10, -1.0, "0 or more")])
def test_guidance_that_leads_nowhere_is_refused(
    make_run: Runs, tmp_path: Path, classes: int, weight: float, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        samples.evaluate(make_run(classes), {"samples": 4, "batch": 4, "guidance": weight}, tmp_path, quiet)


def test_guidance_towards_classes_that_were_learned(make_run: Runs, tmp_path: Path) -> None:
    (measured,) = samples.evaluate(make_run(10), {"samples": 4, "batch": 4, "guidance": 0.7}, tmp_path, quiet)
    assert measured.grad_evals == 2 * make_run(10).sampler().cost
    assert (measured.metric, measured.weight, measured.steps) == ("fd", 0.7, None)
