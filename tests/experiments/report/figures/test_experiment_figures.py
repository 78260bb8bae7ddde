"""Figures of the experiments from made-up results: every figure is drawn, and the verdicts follow the numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.report.figures import ablations, compose, guidance, inpaint, langevin_steps, ood, speedup
from experiments.report.study import COLUMNS, MissingArray, Study

Cells = list[dict[str, Any]]
SEEDS = (0, 1)


def cell(row: str, metric: str, value: float, **facts: Any) -> dict[str, Any]:
    method = "drl" if row.startswith(("drl", "none")) else "cdrl"
    shared = {"protocol": "fd-digits", "dataset": "digits", "samples": 100, "seeds": 2, "method": method, "label": row}
    return {"row": row, "metric": metric, "value": value, "low": 0.9 * value, "high": 1.1 * value, **shared, **facts}


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Study]:
    """Makes a study of cells; ``arrays`` are saved as ``<file>`` in every evaluation of every row."""

    def make(name: str, cells: Cells, **arrays: dict[str, Any]) -> Study:
        rows = []
        for row in dict.fromkeys(line["row"].partition(" ")[0] for line in cells):
            evaluations = []
            for seed in SEEDS:
                folder = tmp_path / row / str(seed)
                folder.mkdir(parents=True)
                values = [
                    {"metric": line["metric"], "protocol": line["protocol"], "value": line["value"] * (1 + 0.01 * seed)}
                    for line in cells
                    if line["row"] == row
                ]
                (folder / "result.json").write_text(json.dumps({"measurements": values}))
                for file, content in arrays.items():
                    np.savez(folder / f"{file.replace('_', '-')}.npz", **content)
                evaluations.append({"seed": seed, "folder": f"{row}/{seed}", "run": f"{row}/{seed}"})
            method = "drl" if row.startswith(("drl", "none")) else "cdrl"
            rows.append({"row": row, "label": row, "method": method, "evaluations": evaluations})
        frame = pd.DataFrame(cells, columns=[*COLUMNS, "label", "method"])
        return Study(tmp_path, name, "nano", "", "", (name,), frame, rows, root=tmp_path)

    return make


def test_guidance(study: Callable[..., Study]) -> None:
    cells = [cell(f"cdrl-{w}", "fd", 1 + w) for w in (0, 0.5, 3.0)]
    cells += [cell(f"cdrl-{w}", "class_accuracy", 0.5 + 0.1 * w) for w in (0, 0.5, 3.0)]
    drawn = guidance.draw(study("guidance", cells))
    left, right = drawn["curve"].axes
    assert left.lines[0].get_xdata().tolist() == [0, 0.5, 3.0]
    assert right.lines[0].get_ydata().tolist() == [1, 1.5, 4.0]


def test_compose(study: Callable[..., Study]) -> None:
    combinations = np.array([[a, b] for a in range(2) for b in range(3)])
    kept = {
        "images": np.zeros((6, 4, 8, 8, 1), np.uint8),
        "joint": np.linspace(0, 1, 6),
        "share": np.full(6, 1 / 6),
        "combinations": combinations,
        "names": np.array([["ab"[a], "xyz"[b]] for a, b in combinations]),
    }
    cells = [cell(f"cdrl-{w}", "all_concepts", 0.1 + 0.2 * w) for w in (0.0, 1.0)]
    drawn = compose.draw(study("compose", cells, compose=kept))
    assert set(drawn) == {"success", "combinations", "samples"}
    table = drawn["combinations"].axes[1]
    assert [text.get_text() for text in table.texts] == ["0.0", "20.0", "40.0", "60.0", "80.0", "100.0"]
    assert [text.get_text() for text in table.get_xticklabels()] == ["x", "y", "z"]


def test_inpaint_shows_the_hole(study: Callable[..., Study]) -> None:
    mask = np.zeros((2, 4, 4, 1), bool)
    mask[:, :, :2] = True
    truth = np.full((2, 4, 4, 1), 50, np.uint8)
    kept = {"truth": truth, "mask": mask, "completions": np.full((2, 3, 4, 4, 1), 90, np.uint8)}
    cells = [
        cell(f"{row} half", metric, 0.1, protocol="inpaint-half")
        for row in ("cdrl", "drl")
        for metric in ("hole_mse", "diversity")
    ]
    drawn = inpaint.draw(study("inpaint", cells, inpaint_half=kept))
    assert set(drawn) == {"errors", "completions-half"}
    picture = np.asarray(drawn["completions-half"].axes[0].images[0].get_array())
    assert picture[0, 0].tolist() == [50, 50, 50]
    assert picture[0, 3].tolist() == [86, 180, 233]
    assert picture[0, 5].tolist() == [90, 90, 90]


def test_ood_has_a_panel_a_set(study: Callable[..., Study]) -> None:
    cells = [
        cell(row, metric, 0.8, dataset=f"digits vs {name}", protocol="log-density")
        for row in ("cdrl", "drl")
        for name in ("uniform", "interp")
        for metric in ("auroc", "auroc_level1")
    ]
    kept = {"inside": np.random.rand(2, 9), "uniform": np.random.rand(2, 9)}
    kept |= {"examples/inside": np.zeros((16, 8, 8, 1), np.uint8)}
    drawn = ood.draw(study("ood", cells, ood=kept))
    assert set(drawn) == {"auroc", "scores", "sets"}
    assert [axes.get_title(loc="left") for axes in drawn["auroc"].axes] == ["uniform", "interp"]
    assert drawn["auroc"].axes[0].lines[0].get_xdata().tolist() == [0, 1]


def test_ablation_effects_are_paired_differences(study: Callable[..., Study]) -> None:
    made = study("ablations", [cell("cdrl", "fd", 1.0), cell("none", "fd", 4.0), cell("schedule", "fd", 2.0)])
    drawn = ablations.draw(made)
    labels = [text.get_text() for text in drawn["effects"].axes[0].get_yticklabels()]
    assert labels == ["DRL + schedule", "DRL + all (CDRL)"]
    points = [line.get_xdata()[0] for line in drawn["effects"].axes[0].lines if line.get_marker() in "os"]
    assert points == pytest.approx([np.log(2 / 4), np.log(1 / 4)])


def test_comparisons_name_rows_of_the_manifest() -> None:
    import yaml

    from experiments.configuration import CONF

    rows = yaml.safe_load((CONF / "experiment" / "ablations.yaml").read_text())["experiment"]["rows"]
    named = {row for pair in ablations.comparisons().values() for row in pair}
    assert named == set(rows) - {"gradients"}


def test_gradient_noise_of_both_kinds_of_pairs(study: Callable[..., Study]) -> None:
    cells = [cell("cdrl", "fd", 1.0)]
    cells += [
        cell(f"gradients {kind} noise", "gradient-variance", value * (1 + level), protocol=f"gradient-level{level}")
        for kind, value in (("shared", 1.0), ("independent", 5.0))
        for level in range(3)
    ]
    axes = ablations.draw(study("ablations", cells))["gradients"].axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[1, 2, 3], [5, 10, 15]]


def test_the_initializers_error_over_training_comes_from_the_runs_log(study: Callable[..., Study]) -> None:
    made = study("ablations", [cell("cdrl", "fd", 1.0)])
    assert "initializer" not in ablations.draw(made)
    meters = ("proposal_error", "refined_error", "displacement")
    log = [{"iteration": i, **{name: [None, 3.0 / i, 2.0] for name in meters}} for i in (1, 2, 3)]
    (made.root / "cdrl" / "0" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    panels = ablations.draw(made)["initializer"].axes
    assert len(panels) == 3
    assert [line.get_ydata().tolist() for line in panels[0].lines] == [[3.0, 1.5, 1.0], [2.0, 2.0, 2.0]]


def test_langevin_steps_are_in_order(study: Callable[..., Study]) -> None:
    cells = [cell(f"{m}_{k}", metric, 1.0 + k) for m in ("cdrl", "drl") for k in (5, 0, 30) for metric in
             ("fd", "step_multiplier")]  # fmt: skip
    drawn = langevin_steps.draw(study("langevin_steps", cells))
    assert drawn["steps"].axes[0].lines[0].get_xdata().tolist() == [0, 5, 30]


@pytest.mark.parametrize(
    ("quality", "seconds", "expected"),
    [(1.0, 4.0, "yes"), (1.95, 4.0, "better, within"), (3.0, 4.0, "no, worse"), (1.0, 8.0, "no, CDRL needs more")],
)
def test_half_the_time_verdict(study: Callable[..., Study], quality: float, seconds: float, expected: str) -> None:
    cells = [
        cell("cdrl_15", "fd", quality, sample_seconds=seconds, grad_evals=91),
        cell("drl_30", "fd", 2.0, sample_seconds=10.0, grad_evals=180),
    ]
    drawn = speedup.draw(study("speedup", cells))
    assert f"Half the time: {expected}" in drawn["cost"].get_suptitle()


def test_half_the_time_by_one_seed_claims_no_interval(study: Callable[..., Study]) -> None:
    cells = [
        cell("cdrl_15", "fd", 1.0, sample_seconds=4.0, low=np.nan, high=np.nan),
        cell("drl_30", "fd", 2.0, sample_seconds=10.0, low=np.nan, high=np.nan),
    ]
    drawn = speedup.draw(study("speedup", cells))
    assert "Half the time: better; one seed, no interval" in drawn["cost"].get_suptitle()


@pytest.mark.parametrize("module", [guidance, compose, inpaint, ood, ablations, langevin_steps, speedup])
def test_nothing_measured_is_said(module: Any, study: Callable[..., Study]) -> None:
    with pytest.raises(MissingArray, match="nothing is measured"):
        module.draw(study("empty", [cell("cdrl", "fd", float("nan"))]))
