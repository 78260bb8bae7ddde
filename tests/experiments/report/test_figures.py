from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from cdrl.pictures import tile
from experiments import checksums, cli
from experiments.report import build_experiment, draw, style
from experiments.report.figures import common, table1
from experiments.report.study import MissingArray, Study
from experiments.runs.folder import RunFolder

ROOT = Path(__file__).parents[3]


def test_table1_draws_its_four_figures_and_again_the_same_bytes(results: Path) -> None:
    study = Study.load(results / "table1" / "nano")

    assert draw(study) == ["score", "budget", "seconds", "samples"]
    first = {path.name: path.read_bytes() for path in study.folder.glob("*.[sp][vn]g")}
    for name in first:
        (study.folder / name).unlink()
    draw(study)

    assert len(first) == 8
    assert {path.name: path.read_bytes() for path in study.folder.glob("*.[sp][vn]g")} == first


def test_score_against_seconds_ends_when_training_did(results: Path) -> None:
    study = Study.load(results / "table1" / "nano")
    figure = table1.seconds(study)
    assert figure is not None
    taken = study.cells.groupby("label")["train_seconds"].first()
    ends = {line.get_label(): line.get_xdata()[-1] for line in figure.axes[0].lines if len(line.get_xdata()) == 3}
    assert ends
    assert all(end == pytest.approx(taken[label]) for label, end in ends.items())


def test_without_runs_the_committed_pictures_stay(results: Path) -> None:
    study = Study.load(results / "table1" / "nano")
    draw(study)
    before = {path: path.read_bytes() for path in study.folder.glob("*.png")}
    assert len(before) == 4
    shutil.rmtree(results.parent / "runs")

    assert draw(study) == []
    assert {path: path.read_bytes() for path in study.folder.glob("*.png")} == before


def test_runs_without_their_evaluations_leave_the_committed_pictures(results: Path) -> None:
    """Experiments share runs: those of another one may be here, and nothing that this one measured on them."""
    study = Study.load(results / "table1" / "nano")
    draw(study)
    before = (study.folder / "score.png").read_bytes()
    lost = study.located(study.rows[0]["evaluations"][0]["folder"])
    shutil.rmtree(lost)
    assert draw(study) == []
    assert (study.folder / "score.png").read_bytes() == before
    run = RunFolder(lost.parents[1])
    status = run.status()
    assert status is not None
    run.finish(replace(status, status="diverged"))
    assert "score" in draw(study), "of a run that diverged nothing else is to be expected"


def test_results_may_lie_apart_from_the_runs(
    results: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after ``results=/elsewhere/results`` with runs in the working directory; the fixture's are relative to it."""
    elsewhere = shutil.move(results, tmp_path_factory.mktemp("elsewhere") / "deep")
    monkeypatch.chdir(results.parent)

    assert draw(Study.load(elsewhere / "table1" / "nano")) == ["score", "budget", "seconds", "samples"]


def test_cells_alone_draw_what_they_can_where_there_is_no_picture(results: Path) -> None:
    study = Study.load(results / "table1" / "nano")
    shutil.rmtree(results.parent / "runs")

    assert draw(study) == ["score"]


def test_curve_shows_mean_and_interval_over_seeds() -> None:
    values = np.array([[3.0, 2.0], [5.0, 2.5], [4.0, 3.0]])
    _, axes = style.figure()

    common.curve_with_intervals(axes, [1, 2], values, label="CDRL", method="cdrl")

    np.testing.assert_allclose(axes.lines[0].get_ydata(), [4.0, 2.5])
    expected = stats.t.interval(0.95, 2, loc=4.0, scale=stats.sem(values[:, 0]))
    (band,) = axes.collections
    inside = band.get_paths()[0].vertices
    np.testing.assert_allclose(sorted(set(inside[inside[:, 0] == 1, 1])), expected, rtol=1e-6)


def test_a_single_seed_has_no_band() -> None:
    _, axes = style.figure()

    common.curve_with_intervals(axes, [1, 2], [[3.0, 2.0]], label="CDRL", method="cdrl")

    assert not axes.collections


@pytest.mark.parametrize("plot", [common.bars_with_intervals, common.effect_plot])
def test_ranges_lie_on_their_intervals(plot: object) -> None:
    _, axes = style.figure()

    plot(axes, ["a", "b"], [1.0, 2.0], [0.5, np.nan], [1.5, np.nan], methods=["cdrl", "drl"])  # type: ignore[operator]

    lines = [line.get_xdata() for line in axes.lines if list(line.get_ydata()) == [0, 0]]
    assert [list(line) for line in lines] == [[0.5, 1.5]]
    assert not [line for line in axes.lines if list(line.get_ydata()) == [1, 1]]


def test_tile_places_images_in_rows() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 3, 1), dtype=np.uint8)

    picture = tile(images, columns=3, gap=1, background=9)

    assert picture.shape == (5, 11, 1)
    assert picture[0, [0, 4, 8], 0].tolist() == [0, 1, 2]
    assert picture[3, [0, 4, 8], 0].tolist() == [3, 4, 9]
    assert (picture[2] == 9).all()


def test_methods_have_colours_of_their_own() -> None:
    colours = [style.colour(method) for method in style.COLOURS]

    assert len(set(colours)) == len(colours)
    assert style.colour("a new method") == style.colour("a new method") in style.SPARE
    assert style.marker("a new method") == style.marker("a new method") in style.SPARE_MARKERS
    new = {(style.colour(name), style.marker(name)) for name in ("energy_matching", "energy_score", "persistent")}
    assert len(new) == 3


def test_png_of_a_figure_has_its_size(tmp_path: Path) -> None:
    figure, _ = style.figure(width=3.0, height=2.0)

    style.save(figure, tmp_path, "figure")

    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.size == (600, 400)
    assert "<dc:date>" not in (tmp_path / "figure.svg").read_text()


def test_study_reads_arrays_and_metrics(results: Path) -> None:
    study = Study.load(results / "table1" / "nano")

    assert [array.shape for array in study.arrays("cdrl", "grid.npy")] == [(70, 8, 8, 1)] * 3
    assert [set(arrays) for arrays in study.arrays("cdrl", "curve.npz")] == [{"grad_evals", "value"}] * 3
    assert study.arrays("cdrl", "other.npy") == []
    assert study.seed_values(study.measured("fd").iloc[0]) == [1.0, 1.1, 1.2]
    assert study.metrics("cdrl", 0)["iteration"].tolist() == [1]
    with pytest.raises(MissingArray):
        study.arrays("nothing", "grid.npy")


def test_nothing_measured_is_no_figure(results: Path) -> None:
    study = Study.load(results / "table1" / "nano")
    study.cells["value"] = np.nan

    with pytest.raises(MissingArray):
        table1.draw(study)


def test_a_damaged_array_leaves_out_the_figure_that_needs_it(results: Path) -> None:
    study = Study.load(results / "table1" / "nano")
    evaluation = study.located(study.rows[1]["evaluations"][0]["folder"])
    grid, curve = evaluation / "grid.npy", evaluation / "curve.npz"
    for path in (grid, curve):
        path.write_bytes(path.read_bytes()[:90])
    said: list[str] = []

    assert draw(study, said.append) == ["score"]

    assert [line.split(" is damaged (")[0] for line in said] == [
        f"{study.folder / figure} could not be drawn: {path}"
        for figure, path in (("budget", curve), ("seconds", curve), ("samples", grid))
    ]
    assert all(
        line.endswith("delete its folder, and the experiment's command evaluates that run again") for line in said
    )


def test_tables_come_first_and_a_figure_that_cannot_be_drawn_is_said(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, tables = results / "table1" / "nano", []

    def fails(study: Study) -> None:
        tables.append(sorted(path.name for path in folder.glob("table.*")))
        raise RuntimeError("no room\nfor it")

    monkeypatch.setattr(table1, "budget", fails)
    fails.__name__ = "budget"
    facts = json.loads((folder / "experiment.json").read_text())
    (folder / "experiment.json").write_text(json.dumps({**facts, "figures": ["nothing", "table1"]}))
    checksums.begin(folder, ["cells.csv", "experiment.json", "provenance.json"])

    assert "Fréchet distance" in build_experiment(folder)

    assert tables == [["table.md", "table.tex"]]
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{folder / 'nothing'} could not be drawn: the experiment names figure 'nothing', but")
    assert second == f"{folder / 'budget'} could not be drawn: RuntimeError: no room for it"
    assert {path.stem for path in folder.glob("*.png")} == {"score", "seconds", "samples"}
    assert checksums.differences(folder) == []
    (results / "demo").write_text("no animation")
    assert cli.report(["--results", str(results)]) == 1
    assert (results / "report.html").exists()


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no such backend"])
def test_nothing_of_a_persons_settings_changes_a_figure(backend: str, results: Path, tmp_path: Path) -> None:
    """In a process that Matplotlib is imported in afresh."""
    folder, own = results / "table1" / "nano", tmp_path / "own"
    draw(Study.load(folder))
    shutil.copytree(folder, own, ignore=shutil.ignore_patterns("*.png", "*.svg"))
    (tmp_path / "matplotlibrc").write_text(
        "backend: TkAgg\ntext.usetex: True\nfont.size: 30\nsavefig.bbox: tight\nlines.linestyle: --\n"
        "axes.formatter.useoffset: False\nsvg.fonttype: none\npath.sketch: 1, 2, 3\naxes.unicode_minus: False\n"
    )
    drawing = "import sys, experiments.report as r; r.draw(r.Study.load(r.Path(sys.argv[1]), r.Path(sys.argv[2])))"
    done = subprocess.run(
        [sys.executable, "-c", drawing, str(own), str(results.parent)], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "MPLBACKEND": backend, "MATPLOTLIBRC": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "could not" not in done.stderr
    pictures = {path.name: path.read_bytes() for path in folder.glob("*.[ps][nv]g")}
    assert len(pictures) == 8
    assert {path.name: path.read_bytes() for path in own.glob("*.[ps][nv]g")} == pictures
