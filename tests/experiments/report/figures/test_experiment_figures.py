"""Figures of the experiments from made-up results: every figure is drawn, and the verdicts follow the numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.measurement import ABOUT, COLUMNS, Measurement
from experiments.report.figures import ablations, chains, compose, guidance, inpaint, langevin_steps, ood, speedup
from experiments.report.study import MissingArray, Study
from experiments.runs.folder import EvaluationFolder, Result, RunFolder

Cells = list[dict[str, Any]]
SEEDS = (0, 1)


def cell(row: str, metric: str, value: float, method: str = "cdrl", **facts: Any) -> dict[str, Any]:
    shared = {"protocol": "fd-digits", "dataset": "digits", "samples": 100, "seeds": 2, "method": method, "label": row,
              "values": f"{value} {1.01 * value}", "verdict": "different-scale"}  # fmt: skip
    return {"row": row, "metric": metric, "value": value, "low": 0.9 * value, "high": 1.1 * value, **shared, **facts}


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Study]:
    """Makes and loads a study of cells; ``arrays`` are saved by file name in every evaluation of every row."""

    def make(name: str, cells: Cells, **arrays: dict[str, Any]) -> Study:
        folder = tmp_path / "results" / name / "nano"
        folder.mkdir(parents=True)
        rows = []
        for row, method in {line["row"]: line["method"] for line in cells}.items():
            evaluations = []
            for seed in SEEDS:
                run = f"{row}/{seed}"
                evaluation = EvaluationFolder(tmp_path / run / "eval")
                evaluation.path.mkdir(parents=True)
                evaluation.keep(Result(measurements=tuple(measured(cells, row, seed)), seconds=1, commit="", device=""))
                for file, content in arrays.items():
                    np.savez(evaluation.path / f"{file.replace('_', '-')}.npz", **content)
                evaluations.append({"seed": seed, "folder": f"{run}/eval", "run": run})
            facts = {"row": row, "label": row, "method": method, "method_label": method.upper()}
            rows.append({**facts, "evaluations": evaluations})
        pd.DataFrame(cells, columns=list(COLUMNS)).to_csv(folder / "cells.csv", index=False)
        facts = {"name": name, "title": "", "question": "", "figures": [name], "order": 1, "rows": rows}
        (folder / "experiment.json").write_text(json.dumps(facts))
        return Study.load(folder)

    return make


def measured(cells: Cells, row: str, seed: int) -> Iterator[Measurement]:
    for line in cells:
        if line["row"] == row:
            about = {name: line[name] for name in ("metric", "protocol", "samples", *ABOUT) if name in line}
            yield Measurement(**about, value=line["value"] * (1 + 0.01 * seed))


def test_guidance(study: Callable[..., Study]) -> None:
    cells = [cell(f"row {w}", "fd", 1 + w, weight=w) for w in (3.0, 0, 0.5)]
    cells += [cell(f"row {w}", "class_accuracy", 0.5 + 0.1 * w, weight=w) for w in (0, 0.5, 3.0)]
    drawn = guidance.draw(study("guidance", cells))
    left, right = drawn["curve"].axes
    assert left.lines[0].get_xdata().tolist() == [0, 0.5, 3.0]
    assert right.lines[0].get_ydata().tolist() == [1, 1.5, 4.0]
    assert len(right.lines) == 1


def test_guidance_beside_real_images_judged_by_a_second_protocol(study: Callable[..., Study]) -> None:
    """The classifier's accuracy on real images is a line of its own, not a point of the curve."""
    cells = [cell(f"row {w}", "fd", 1 + w, weight=w) for w in (0, 1.0)] + [cell("real", "fd", 0.1, method="real")]
    judged = {"protocol": "fd-cifar10-16"}
    cells += [cell(f"row {w}", "class_accuracy", 0.5 + 0.1 * w, weight=w, **judged) for w in (0, 1.0)]
    cells.append(cell("real", "class_accuracy", 0.75, method="real", **judged))
    left, right = guidance.draw(study("guidance", cells))["curve"].axes
    assert left.lines[0].get_xdata().tolist() == [0, 1.0]
    curve, real = right.lines
    assert (curve.get_xdata().tolist(), curve.get_ydata().tolist()) == ([0.5, 0.6], [1, 2])
    assert real.get_xdata() == [0.75, 0.75]


def test_compose(study: Callable[..., Study]) -> None:
    combinations = np.array([[a, b] for a in range(2) for b in range(3)])
    kept = {
        "images": np.zeros((6, 4, 8, 8, 1), np.uint8),
        "joint": np.linspace(0, 1, 6),
        "share": np.full(6, 1 / 6),
        "combinations": combinations,
        "names": np.array([["ab"[a], "xyz"[b]] for a, b in combinations]),
    }
    cells = [cell(f"row {w}", "all_concepts", 0.1 + 0.2 * w, weight=w) for w in (0.0, 1.0)]
    drawn = compose.draw(study("compose", cells, compose=kept))
    assert set(drawn) == {"success", "combinations", "samples"}
    assert drawn["success"].axes[0].lines[0].get_xdata().tolist() == [0, 1]
    table = drawn["combinations"].axes[1]
    assert [text.get_text() for text in table.texts] == ["0.0", "20.0", "40.0", "60.0", "80.0", "100.0"]
    assert [text.get_text() for text in table.get_xticklabels()] == ["x", "y", "z"]


def test_inpaint_shows_the_hole(study: Callable[..., Study]) -> None:
    mask = np.zeros((2, 4, 4, 1), bool)
    mask[:, :, :2] = True
    truth = np.full((2, 4, 4, 1), 50, np.uint8)
    kept = {"truth": truth, "mask": mask, "completions": np.full((2, 3, 4, 4, 1), 90, np.uint8)}
    cells = [
        cell(row, metric, 0.1, protocol="inpaint", mask="half")
        for row in ("cdrl", "drl")
        for metric in ("hole_mse", "diversity")
    ]
    drawn = inpaint.draw(study("inpaint", cells, inpaint_half=kept))
    assert set(drawn) == {"errors", "completions-half"}
    assert [text.get_text() for text in drawn["errors"].axes[0].get_yticklabels()] == ["cdrl, half", "drl, half"]
    picture = np.asarray(drawn["completions-half"].axes[0].images[0].get_array())
    assert picture[0, 0].tolist() == [50, 50, 50]
    assert picture[0, 3].tolist() == [86, 180, 233]
    assert picture[0, 5].tolist() == [90, 90, 90]


def test_ood_has_a_panel_per_set(study: Callable[..., Study]) -> None:
    cells = [
        cell(row, "auroc", 0.8, against=name, level=level, protocol="log-density")
        for row in ("cdrl", "drl")
        for name in ("uniform", "interp")
        for level in (1, 0)
    ]
    kept = {"inside": np.random.rand(2, 9), "uniform": np.random.rand(2, 9)}
    examples = {"inside": np.zeros((16, 8, 8, 1), np.uint8)}
    drawn = ood.draw(study("ood", cells, ood=kept, examples=examples))
    assert set(drawn) == {"auroc", "scores", "sets"}
    assert [axes.get_title(loc="left") for axes in drawn["auroc"].axes] == ["uniform", "interp"]
    assert drawn["auroc"].axes[0].lines[0].get_xdata().tolist() == [0, 1]


def test_ablation_effects_are_paired_differences(study: Callable[..., Study]) -> None:
    slow = {"chain_steps": 15, "updates": 160}
    cells = [cell("cdrl", "fd", 1.0, chain_steps=5, updates=390), cell("none", "fd", 4.0, **slow)]
    drawn = ablations.draw(study("ablations", [*cells, cell("schedule", "fd", 2.0, **slow)]))
    labels = [text.get_text() for text in drawn["effects"].axes[0].get_yticklabels()]
    assert labels == ["DRL + schedule", "DRL + all (CDRL), K 15 → 5"]
    rows = [text.get_text() for text in drawn["scores"].axes[0].get_yticklabels()]
    assert rows == ["cdrl, K = 5, 390 updates", "none, K = 15, 160 updates", "schedule, K = 15, 160 updates"]
    points = [line.get_xdata()[0] for line in drawn["effects"].axes[0].lines if line.get_marker() in "os"]
    assert points == pytest.approx([np.log(2 / 4), np.log(1 / 4)])


def test_comparisons_name_rows_of_the_manifest() -> None:
    import yaml

    from experiments.configuration import CONF

    rows = yaml.safe_load((CONF / "experiment" / "ablations.yaml").read_text())["experiment"]["rows"]
    named = {row for pair in ablations.comparisons().values() for row in pair}
    assert named == set(rows) - {"gradients"}


def test_the_gradients_variance_along_training(study: Callable[..., Study]) -> None:
    """A line per level; the end of training is a share of one."""
    cells = [cell("cdrl", "fd", 1.0)]
    cells += [
        cell("gradients", "variance_ratio", value * (1 + level), level=level, trained=trained)
        for trained, value in ((0.25, 1.0), (None, 5.0))
        for level in range(2)
    ]
    axes = ablations.draw(study("ablations", cells))["gradients"].axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines[:2]] == [[[0.25, 1], [1, 5]], [[0.25, 2], [1, 10]]]


def test_the_initializers_error_over_training_comes_from_the_runs_log(study: Callable[..., Study]) -> None:
    made = study("ablations", [cell("cdrl", "fd", 1.0)])
    assert ablations.draw(made)["initializer"] is None
    meters = ("proposal_error", "refined_error", "displacement")
    log = RunFolder(made.root / "cdrl" / "0").metrics
    for i in (1, 2, 3):
        log.append({"iteration": i, **{name: [None, 3.0 / i, 2.0] for name in meters}})
    panels = ablations.draw(made)["initializer"].axes
    assert len(panels) == 3
    assert [line.get_ydata().tolist() for line in panels[0].lines] == [[3.0, 1.5, 1.0], [2.0, 2.0, 2.0]]


def test_langevin_steps_are_in_order_and_methods_named(study: Callable[..., Study]) -> None:
    cells = [
        cell(f"{method} at {steps}", metric, 1.0 + steps, method, steps=steps)
        for method in ("cdrl", "drl")
        for steps in (5, 0, 30)
        for metric in ("fd", "step_multiplier")
    ]
    left, right = langevin_steps.draw(study("langevin_steps", cells))["steps"].axes
    assert left.lines[0].get_xdata().tolist() == [0, 5, 30]
    assert right.lines[0].get_xdata().tolist() == [5, 30], "without a step nothing is searched"
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["CDRL", "DRL"]


def test_chains_have_every_measure_at_every_level(study: Callable[..., Study]) -> None:
    cells = [
        cell(row, metric, 0.75 + 0.125 * level, row, level=level, protocol="chains")
        for row in ("cdrl", "drl")
        for metric in ("acceptance", "rhat", "ess", "energy_drift")
        for level in range(3)
    ]
    cells.append(cell("cdrl", "fd", 1.0, steps=50))
    axes = chains.draw(study("chains", cells))["diagnostics"].axes
    assert [[line.get_ydata().tolist() for line in place.lines[:2]] for place in axes] == [[[0.75, 0.875, 1.0]] * 2] * 4
    assert [line.get_ydata() for place in axes for line in place.lines[2:]] == [[chains.MIXED, chains.MIXED]]


def sampled(method: str, steps: int, score: float, seconds: float, spread: float = 0.1) -> dict[str, Any]:
    values = f"{score - spread} {score + 0.7 * spread}"
    facts = {"steps": steps, "sample_seconds": seconds, "grad_evals": 6 * steps, "values": values}
    return cell(f"{method} {steps}", "fd", score, method, **facts)


DRL = [sampled("drl", 30, 2.5, 10.0), sampled("drl", 8, 2.0, 6.0, spread=0.12)]


@pytest.mark.parametrize(
    ("cdrl", "expected"),
    [
        ([sampled("cdrl", 15, 0.9, 5.0), sampled("cdrl", 3, 1.2, 1.5)], "better in 25% of the time (difference -0."),
        ([sampled("cdrl", 15, 0.9, 5.0), sampled("cdrl", 3, 1.9, 1.5)], "better in 83% of the time (difference -1.1"),
        ([sampled("cdrl", 15, 0.9, 5.0, spread=4.0)], "not shown to be better (difference -2 ["),
        ([sampled("cdrl", 3, 3.0, 1.5)], "not shown to be better (difference +1.0"),
        ([sampled("cdrl", 15, 0.9, 7.0)], "Every CDRL takes longer than DRL, K = 8: 2.00 in 60 ms"),
        ([cell("cdrl 3", "fd", 1.0, steps=3, sample_seconds=1.0, values="1.0")], "(one seed, no test)"),
    ],
)
def test_speed_is_claimed_against_drls_best_and_with_a_test(
    study: Callable[..., Study], cdrl: Cells, expected: str
) -> None:
    title = " ".join(speedup.draw(study("speedup", [*cdrl, *DRL]))["cost"].get_suptitle().split())
    assert expected in title
    assert "K = 8: 2.00 in 60 ms" in title


@pytest.mark.parametrize("module", [guidance, compose, inpaint, ood, ablations, langevin_steps, speedup])
def test_nothing_measured_is_said(module: Any, study: Callable[..., Study]) -> None:
    with pytest.raises(MissingArray, match="nothing is measured"):
        module.draw(study("empty", [cell("cdrl", "fd", float("nan"))]))
