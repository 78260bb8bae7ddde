"""Composition: what is asked, what counts as met, and that all combinations are sampled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments import data
from experiments.data.attributes import Kind, kinds
from experiments.evaluate import compose
from tests.experiments.evaluate.conftest import Brightness, Runs, quiet

SETTINGS = {
    "concepts": ["class", "slant"], "weight": 2.0, "negative_weight": 1.0, "samples": 2, "batch": 64, "rare": 0.001,
}  # fmt: skip


@pytest.fixture
def two_kinds() -> list[Kind]:
    return [Kind("shape", ("a", "b"), 1, np.array([0, 0, 1, 1])), Kind("tone", ("x", "y"), 3, np.array([0, 1, 1, 1]))]


def test_labels_follow_the_combinations(two_kinds: list[Kind]) -> None:
    task = compose.Task(np.array([[0, 1], [1, 0]]), (1, 1), two_kinds)
    assert task.labels(2).tolist() == [[1, 1, 2, 2], [4, 4, 3, 3]]


def test_correct_concepts_and_share(two_kinds: list[Kind]) -> None:
    combinations = np.array([[0, 1], [1, 0]])
    together = compose.Task(combinations, (1, 1), two_kinds)
    avoiding = compose.Task(combinations, (1, -1), two_kinds)
    assert together.share().tolist() == [0.25, 0.0]
    assert avoiding.share().tolist() == [0.25, 0.5]
    shown = np.array([[[0, 1]], [[1, 1]]])
    assert together.correct(shown).tolist() == [[[True, True]], [[True, False]]]
    assert avoiding.correct(shown).tolist() == [[[True, False]], [[True, True]]]


def test_linear_probe_finds_the_slant() -> None:
    train, test = data.load("digits", "train"), data.load("digits", "test")
    (slants,), (held_out,) = kinds(train, ["slant"]), kinds(test, ["slant"])
    decide = compose.linear_probe(Brightness(), train.images, slants.of)
    assert np.mean(decide(test.images) == held_out.of) > 0.85


def test_all_combinations_are_sampled_and_measured(
    make_run: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "build", lambda *arguments: Brightness())
    run = make_run(classes=13, steps=1)
    measurements = compose.evaluate(run, SETTINGS, tmp_path, quiet)
    values = {(m.metric, m.variant): m.value for m in measurements}
    assert set(values) == {
        ("all_concepts", ""), ("all_concepts_rare", ""), ("one_without_other", ""), ("concept_shown", "class"),
        ("concept_shown", "slant"), ("classifier_accuracy", "class"), ("classifier_accuracy", "slant"),
    }  # fmt: skip
    assert values["classifier_accuracy", "slant"] == 1.0  # a rule is right by definition
    assert {m.weight for m in measurements} == {2.0}
    kept = np.load(tmp_path / "compose.npz")
    assert kept["images"].shape == (30, 2, 8, 8, 1)
    assert kept["joint"].mean() == pytest.approx(values["all_concepts", ""])
    assert kept["share"].sum() == pytest.approx(1.0)
    assert kept["names"][-1].tolist() == ["9", "right"]
    cost = next(m.grad_evals for m in measurements if m.metric == "all_concepts")
    assert cost == 3 * run.sampler().cost  # three concepts
