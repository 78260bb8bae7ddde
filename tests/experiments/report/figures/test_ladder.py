"""The figures of the experiments on natural images, from made-up results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.configuration import resolve
from experiments.measurement import COLUMNS
from experiments.plan import make_plan
from experiments.report.figures import initializer, ladder, protocols, table1
from experiments.report.study import MissingArray, Study

MANIFESTS = {"ladder": ladder, "initializer": initializer, "protocols": protocols}


def cell(row: str, value: float, method: str, metric: str = "fd", **facts: Any) -> dict[str, Any]:
    shared = {
        "protocol": "p", "samples": 100, "seeds": 3, "label": row, "dataset": "cifar10", "diverged": "0 of 3",
        "values": " ".join(str(factor * value) for factor in (0.99, 1.0, 1.01)), "runs": f"{row}/0 {row}/1 {row}/2",
    }  # fmt: skip
    known = {"row": row, "metric": metric, "method": method, "value": value, "low": 0.9 * value, "high": 1.1 * value}
    return {**known, **shared, **facts}


def study(folder: Path, cells: list[dict[str, Any]], grids: bool = False) -> Study:
    """Cells as a study; with ``grids`` every row has pictures of its size."""
    rows = []
    for line in pd.DataFrame(cells).drop_duplicates("row").to_dict("records"):
        name, method = line["row"], line["method"]
        evaluations = [{"seed": seed, "folder": f"{name}/{seed}", "run": f"{name}/{seed}"} for seed in range(3)]
        if grids:
            (folder / name / "0").mkdir(parents=True)
            size = int(line["image_size"])
            np.save(folder / name / "0" / "grid.npy", np.zeros((36, size, size, 3), np.uint8))
        labels = {"label": line["label"], "method": method, "method_label": method.upper()}
        rows.append({"row": name, **labels, "evaluations": evaluations})
    table = pd.DataFrame(cells, columns=list(COLUMNS)).assign(name="")
    return Study(folder, "x", "micro", "", "", (), 1, table, rows, root=folder)


LADDER = [
    cell(f"{method}{K}-{size}", value, method, image_size=size, chain_steps=K)
    for size, noise in ((8, 100.0), (16, 200.0))
    for method, K, value in (
        ("cdrl", 5, 40.0), ("drl", 15, 50.0), ("drl", 5, 60.0), ("short_run", 20, 3 * size), ("real", None, 10.0),
        ("noise", None, noise),
    )
]  # fmt: skip


def test_the_ladder_is_relative_to_real_images_and_noise(tmp_path: Path) -> None:
    figures = ladder.draw(study(tmp_path, LADDER, grids=True))
    (axes,) = figures["distance"].axes  # type: ignore[union-attr]
    lines = {text.get_text(): line for text, line in zip(axes.get_legend().get_texts(), axes.lines, strict=True)}
    assert list(lines) == ["CDRL", "DRL, K = 15", "DRL, K = 5", "SHORT_RUN"]
    assert lines["CDRL"].get_xydata().tolist() == [[8, pytest.approx(30 / 90)], [16, pytest.approx(30 / 190)]]
    assert lines["DRL, K = 5"].get_linestyle() != lines["DRL, K = 15"].get_linestyle()
    assert lines["DRL, K = 5"].get_color() == lines["DRL, K = 15"].get_color()


def test_the_ladder_says_its_criterion(tmp_path: Path) -> None:
    text = ladder.verdict(study(tmp_path, LADDER))
    assert text.startswith("FD(short-run)/FD(CDRL) 0.600 at 8×8, 1.20 at 16×16; cdrl5-16 − drl15-16: ")
    assert "cdrl5-16 − short_run20-16: -8.00 [" in text
    assert "cdrl5-8 −" not in text


def test_the_ladders_pictures_have_a_line_for_each_size(tmp_path: Path) -> None:
    figure = ladder.draw(study(tmp_path, LADDER, grids=True))["samples"]
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "realNone-8"
    assert titles[6] == "realNone-16"
    assert ladder.draw(study(tmp_path / "elsewhere", LADDER))["samples"] is None


def test_quality_and_divergence_over_the_length_of_the_chain(tmp_path: Path) -> None:
    cells = [
        cell(f"{series}_{K}-{updates}", 1.0 + K, "cdrl", chain_steps=K)
        for series in initializer.SERIES
        for updates in initializer.UPDATES
        for K in initializer.STEPS
    ]
    broken = cells[len(cells) // 2]
    assert broken["row"] == "without_3-3000"
    broken |= {"value": np.nan, "values": "nan nan nan", "diverged": "3 of 3"}
    quality, divergence = initializer.draw(study(tmp_path, cells))["chain"].axes
    without = next(line for line in quality.lines if line.get_label() == "without, 3,000 updates")
    assert without.get_xydata().tolist() == [[5, 6], [8, 9], [15, 16]]
    without = next(line for line in divergence.lines if line.get_label() == "without, 3,000 updates")
    assert without.get_xydata().tolist() == [[3, 1], [5, 0], [8, 0], [15, 0]]


def test_protocols_are_compared_run_by_run(tmp_path: Path) -> None:
    cells = []
    for name, values in {"cdrl": (1.0, 10.0), "drl": (2.0, 30.0), "ddpm": (3.0, 20.0)}.items():
        for metric in ("kid", "fd"):
            small, full = (cell(name, value, name, metric, protocol=f"p{i}") for i, value in enumerate(values))
            cells += [small, {**full, "row": f"{name}_full"}]
    cells[2]["values"] = "0.99 nan 1.01"  # of the pair, one run is not measured
    figures = protocols.draw(study(tmp_path, cells))
    assert len(protocols.paired(study(tmp_path, cells), "fd")) == 8
    assert [axes.get_title(loc="left") for axes in figures["agreement"].axes] == [
        "Rank correlation 0.55 of 9 runs", "Rank correlation 0.36 of 8 runs",
    ]  # fmt: skip


@pytest.mark.parametrize("module", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_nothing_measured_is_said(module: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingArray):
        module.draw(study(tmp_path, [cell("cdrl", float("nan"), "cdrl", image_size=8)]))


def test_the_figures_name_rows_of_their_manifests() -> None:
    def planned(name: str) -> set[str]:
        return {row.id for row in make_plan(resolve([f"experiment={name}", "scale=micro"])).rows}

    lines = [initializer.rows(series, updates) for series in initializer.SERIES for updates in initializer.UPDATES]
    assert planned("initializer") == {row for line in lines for row in line}
    methods = ("cdrl", "drl", "drl_chain", "short_run", "ddpm", "real", "noise")
    assert planned("ladder") == {f"{method}-{size}" for method in methods for size in (8, 16)}


def test_real_images_below_zero_leave_the_axis_to_the_others(tmp_path: Path) -> None:
    """An unbiased kernel distance of real images is as often below zero as above."""
    cells = [cell("cdrl", 0.5, "cdrl", "kid"), cell("real", -0.001, "real", "kid"), cell("noise", 3.0, "noise", "kid")]
    figure = table1.score(study(tmp_path, cells))
    assert figure is not None
    assert figure.axes[0].get_xlim() == pytest.approx((0.3, 4.8))
    assert [text.get_text() for text in figure.axes[0].texts] == ["noise"]
