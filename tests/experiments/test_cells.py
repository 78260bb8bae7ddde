"""Cells: means over seeds in columns, and verdicts of a measured number beside a published one."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cdrl.errors import UserError
from experiments import cells, checksums, configuration, published
from experiments.cells import Circumstances, diverged_verdict, rows_without_survivors, verdict, write_results
from experiments.data import DataSettings
from experiments.measurement import COLUMNS, Measurement
from experiments.plan import Evaluation, Plan, Row
from experiments.published import Number
from experiments.report import tables
from experiments.report.study import Study
from experiments.runs.folder import Result, RunSettings, Status
from tests.experiments.test_files import contents, in_a_child

FID = "fid-legacy-pytorch"
NUMBER = Number(value=4.0, status="confirmed", text="4.0", metric="FID", identity="cdrl")
WORDS = Number(value=None, status="confirmed", text="does not converge", metric="FID", identity="cdrl")
AUROC = Number(value=0.75, status="confirmed", text="0.75", metric="AUROC", identity="cdrl")
PAPER = Circumstances(scale="paper", changed=False, protocol=FID, model="cdrl")
NAN = math.nan
FD = Measurement(metric="fd", protocol="fd-digits", value=3.0, samples=32)
STATUS = Status(status="finished", iterations=3, seconds=1.0, grad_evals=90, commit="a", device="a far GPU")


def make_plan(folder: Path, rows: Sequence[Row] = (), **facts: Any) -> Plan:
    shared: dict[str, Any] = {
        "name": "table1", "scale": "nano", "title": "A table", "question": "How good?", "figures": (), "order": 10,
        "results": folder / "results" / "table1" / "nano", "changed": (),
        "config": {"metrics": {"name": "fd-digits", "metrics": ["fd"]}, "device": "cpu"},
    }  # fmt: skip
    return Plan(**{**shared, **facts}, rows=tuple(rows))


def make_row(folder: Path, name: str, seeds: Sequence[int] = (0, 1), data: str = "digits", **facts: Any) -> Row:
    evaluations, method = [], {key: facts[key] for key in ("chain", "sampling") if key in facts}
    for seed in seeds:
        settings = RunSettings(
            data=DataSettings(name=data, image_size=8, channels=1),
            method={"_target_": "cdrl.recipe.CooperativeRecipe", "label": "CDRL", **method},
            budget=facts.get("budget", 500),
            reports=1,
            milestones=(),
            seed=seed,
        )
        run = settings.folder(folder / "runs", name)
        evaluations.append(Evaluation(run, settings, {"kind": "samples", **facts.get("settings", {})}))
    return Row(name, facts.get("label", name), "cdrl", facts.get("published"), tuple(evaluations))


def finish(row: Row, *measurements: Measurement, status: Status = STATUS) -> None:
    for evaluation in row.evaluations:
        evaluation.run.path.mkdir(parents=True)
        evaluation.run.finish(status)
        if measurements:
            evaluation.folder.keep(Result(measurements=measurements, seconds=1.0, commit="a", device="a far GPU"))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a plan's results and reads the cells."""
    monkeypatch.setattr(cells, "provenance", lambda plan, command: {"command": " ".join(command)})

    def write(plan: Plan) -> list[dict[str, str]]:
        write_results(plan, ["a command"])
        with (plan.results / "cells.csv").open() as file:
            return list(csv.DictReader(file))

    return write


@pytest.mark.parametrize(
    ("measured", "named", "protocol", "expected"),
    [
        ((4.1, NAN, NAN), NUMBER, FID, "reproduced"),
        ((4.3, NAN, NAN), NUMBER, FID, "off"),
        ((4.25, 3.9, 4.6), NUMBER, FID, "off"),
        ((4.21, 3.99, 4.35), NUMBER, FID, "reproduced"),
        ((40.0, -30.0, 110.0), NUMBER, FID, "off"),
        ((4.0, NAN, NAN), NUMBER, "fid-clean", "different-scale"),
        ((4.0, NAN, NAN), NUMBER, "fid-released-5k", "different-scale"),
        ((4.0, NAN, NAN), replace(NUMBER, comparable=False), FID, "different-scale"),
        ((4.0, NAN, NAN), None, FID, "different-scale"),
        ((NAN, NAN, NAN), NUMBER, FID, "off"),
        ((30.0, NAN, NAN), WORDS, FID, "off"),
        ((0.75, NAN, NAN), AUROC, "log-density", "reproduced"),
        ((0.60, NAN, NAN), AUROC, "log-density", "off"),
    ],
)
def test_verdicts(measured: tuple[float, float, float], named: Number | None, protocol: str, expected: str) -> None:
    assert verdict(measured, named, replace(PAPER, protocol=protocol)) == expected


@pytest.mark.parametrize("facts", [{"scale": "nano"}, {"scale": "mini"}, {"changed": True}])
def test_nothing_smaller_or_changed_reproduces(facts: dict[str, Any]) -> None:
    assert verdict((4.0, NAN, NAN), NUMBER, replace(PAPER, **facts)) == "different-scale"
    assert diverged_verdict(WORDS, replace(PAPER, **facts)) == "diverged"


@pytest.mark.parametrize("scale", ["nano", "paper"])
def test_a_number_of_another_model_is_compared_at_no_scale(scale: str) -> None:
    for model in ("", "drl"):
        assert verdict((4.0, NAN, NAN), NUMBER, replace(PAPER, model=model, scale=scale)) == "other-model"
        assert diverged_verdict(WORDS, replace(PAPER, model=model, scale=scale)) == "diverged"
    assert verdict((4.0, NAN, NAN), replace(NUMBER, identity=""), replace(PAPER, model="")) == "other-model"


def test_a_number_of_other_images_is_not_compared() -> None:
    number = replace(NUMBER, images="64x64 bilinear")
    for source in ("", "official downsampled batches"):
        assert verdict((4.0, NAN, NAN), number, replace(PAPER, images=source)) == "different-scale"
    assert verdict((4.0, NAN, NAN), number, replace(PAPER, images="64x64 images in train/, bilinear")) == "reproduced"


def test_divergence_is_an_outcome() -> None:
    assert diverged_verdict(WORDS, PAPER) == "reproduced"
    assert diverged_verdict(NUMBER, PAPER) == diverged_verdict(None, PAPER) == "diverged"


@pytest.mark.slow
def test_rows_reproduce_models_that_were_published() -> None:
    identities = {number.identity for number in published.load()} - {""}
    for name in configuration.choices("experiment"):
        for scale in ("nano", "mini", "paper"):
            rows = configuration.plain(configuration.resolve([f"experiment={name}", f"scale={scale}"]).experiment.rows)
            for row in rows.values():
                assert ((row.get("published") or {}).get("reproduces") or "cdrl") in identities


def test_a_method_that_was_said_to_diverge_and_does(tmp_path: Path, written: Any) -> None:
    """The published words stand beside it, and it is no row that was not run."""
    published = {"model": "DRL", "dataset": "ImageNet 32x32 (uncond.)"}
    rows = [make_row(tmp_path, "drl", published=published), make_row(tmp_path, "cdrl", published={"model": "CDRL"})]
    finish(rows[0], status=replace(STATUS, status="diverged", iterations=7))
    drl, cdrl = written(make_plan(tmp_path, rows))
    assert (drl["published"], drl["verdict"], drl["value"]) == ("does not converge", "diverged", "nan")
    assert (drl["diverged"], drl["values"], drl["seeds"]) == ("2 of 2", "nan nan", "0")
    assert drl["note"] == "seed 0 diverged at iteration 7; seed 1 diverged at iteration 7"
    assert (cdrl["published"], cdrl["verdict"]) == ("", "not-run")


def test_a_cell_names_the_machine_that_made_it_and_the_rows_own_data(tmp_path: Path, written: Any) -> None:
    rows = [make_row(tmp_path, "cdrl"), make_row(tmp_path, "rings", data="rings", budget={"seconds": 60.0})]
    for row in rows:
        finish(row, FD)
    first, second = written(make_plan(tmp_path, rows))
    assert {cell["device"] for cell in (first, second)} == {"a far GPU"}
    assert (first["dataset"], second["dataset"]) == ("digits", "rings")
    assert {(cell["train_cost"], cell["updates"]) for cell in (first, second)} == {("90", "3")}, "what was spent"
    assert first["runs"] == " ".join(str(evaluation.run.path) for evaluation in rows[0].evaluations)


def test_numbers_about_different_things_are_different_cells(tmp_path: Path, written: Any) -> None:
    row = make_row(tmp_path, "cdrl")
    about = [{"level": 0, "against": "svhn"}, {"level": 1, "against": "svhn"}, {"level": 0, "against": "interp"}]
    about += [{"mask": "a-m"}, {"mask": "b-m"}, {"steps": 15}, {"weight": 0.5}, {"variant": "shared noise"}]
    finish(row, *(replace(FD, **facts) for facts in about))
    lines = written(make_plan(tmp_path, [row]))
    assert tuple(lines[0]) == COLUMNS
    assert {line["row"] for line in lines} == {"cdrl"}
    assert {line["seeds"] for line in lines} == {"2"}
    told = [{name: line[name] for name in facts} for line, facts in zip(lines, about, strict=True)]
    assert told == [{name: str(value) for name, value in facts.items()} for facts in about]
    assert {line["image_size"] for line in lines} == {"8"}


def test_published_numbers_stand_beside_what_they_are_about(tmp_path: Path, written: Any) -> None:
    row = make_row(tmp_path, "cdrl", published={"model": "CDRL"})
    finish(row, replace(FD, steps=8), FD, replace(FD, metric="precision", value=0.5), replace(FD, steps=4))
    assert [line["published"] for line in written(make_plan(tmp_path, [row]))] == ["4.58", "4.31", "", ""]
    row = make_row(tmp_path, "steps", published={"model": "CDRL"}, settings={"steps": 8})
    finish(row, status=replace(STATUS, status="diverged"))
    (line,) = written(make_plan(tmp_path, [row]))
    assert (line["published"], line["steps"]) == ("4.58", "8")


def test_intervals_stay_inside_the_range_of_what_is_measured(tmp_path: Path, written: Any) -> None:
    row = make_row(tmp_path, "cdrl")
    for evaluation, value in zip(row.evaluations, (0.5, 0.99), strict=True):
        precision = replace(FD, metric="precision", value=value)
        evaluation.folder.keep(Result(measurements=(FD, precision), seconds=1.0, commit="a", device="b"))
    distance, precision = written(make_plan(tmp_path, [row]))
    assert 0.0 < float(precision["low"]) < 0.5
    assert 0.99 < float(precision["high"]) < 1.0
    assert float(distance["low"]) == float(distance["high"]) == 3.0


def test_survivors_are_counted_and_named(tmp_path: Path, written: Any) -> None:
    row = make_row(tmp_path, "short_run", seeds=(0, 1, 2))
    for evaluation, value in zip(row.evaluations, (2.9, None, 63.7), strict=True):
        evaluation.run.path.mkdir(parents=True)
        evaluation.run.finish(STATUS if value else replace(STATUS, status="diverged", iterations=7, grad_evals=10))
        if value:
            result = Result(measurements=(replace(FD, value=value),), seconds=1.0, commit="a", device="b")
            evaluation.folder.keep(result)
    (cell,) = written(make_plan(tmp_path, [row]))
    assert (cell["values"], cell["seeds"], cell["diverged"]) == ("2.9 nan 63.7", "2", "1 of 3")
    assert cell["note"] == "mean of the 2 that finished; seed 1 diverged at iteration 7"
    assert cell["train_cost"] == "90", "what the numbers took, not what was lost"
    study = Study.load(tmp_path / "results" / "table1" / "nano")
    assert study.by_seed(study.cells.iloc[0]) == {0: 2.9, 2: 63.7}


@pytest.mark.parametrize(
    ("outcome", "verdict", "count"), [("diverged", "diverged", "1 of 2"), ("failed", "not-run", "0 of 2")]
)
@pytest.mark.parametrize("survivors", [1, 0])
def test_an_evaluation_without_numbers_is_no_mean_of_survivors(
    tmp_path: Path, written: Any, outcome: str, verdict: str, count: str, survivors: int
) -> None:
    row = make_row(tmp_path, "cdrl", published={"model": "CDRL", "reproduces": "cdrl"})
    for number, evaluation in enumerate(row.evaluations):
        evaluation.run.path.mkdir(parents=True)
        evaluation.run.finish(replace(STATUS, seconds=1.0 + number))
        facts: dict[str, Any] = {"measurements": (), "outcome": outcome, "reason": "a reason"}
        if number < survivors:
            facts = {"measurements": (FD,)}
        evaluation.folder.keep(Result(**facts, seconds=1.0, commit="a", device="b"))
    (cell,) = written(make_plan(tmp_path, [row]))
    reasons = [f"seed {seed}: evaluation {outcome}: a reason" for seed in range(survivors, 2)]
    if survivors:
        assert (cell["value"], cell["values"], cell["seeds"], cell["train_seconds"]) == ("3.0", "3.0 nan", "1", "1.0")
        assert (cell["verdict"], cell["diverged"]) == (verdict, count)
        reasons.insert(0, "of the one that finished")
    else:
        assert (cell["value"], cell["values"], cell["seeds"]) == ("nan", "nan nan", "0")
        assert (cell["verdict"], cell["diverged"]) == (verdict, count.replace("1", "2"))
    assert cell["note"] == "; ".join(reasons)
    assert rows_without_survivors(tmp_path / "results" / "table1" / "nano") == (
        ["cdrl"] if outcome == "diverged" and not survivors else []
    )
    study = Study.load(tmp_path / "results" / "table1" / "nano")
    assert study.by_seed(study.cells.iloc[0]) == ({0: 3.0} if survivors else {})
    assert f"| {verdict} |" in tables.markdown(tables.build(study))


def test_survivors_reproduce_nothing(tmp_path: Path, written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the paper's scale a row with all its seeds reproduces the number; with one of them lost it does not."""
    monkeypatch.setattr(Circumstances, "same", lambda self, number: True)
    monkeypatch.setattr(Circumstances, "same_model", lambda self, number: True)
    monkeypatch.setattr(published, "find", lambda *arguments: replace(NUMBER, value=3.0))
    row = make_row(tmp_path, "cdrl", published={"model": "CDRL", "reproduces": "cdrl"})
    finish(row, FD)
    assert written(make_plan(tmp_path, [row]))[0]["verdict"] == "reproduced"
    row.evaluations[1].run.finish(replace(STATUS, status="diverged"))
    (row.evaluations[1].folder.path / "result.json").unlink()
    assert written(make_plan(tmp_path, [row]))[0]["verdict"] == "diverged"
    monkeypatch.setattr(published, "find", lambda *arguments: WORDS)
    assert written(make_plan(tmp_path, [row]))[0]["verdict"] == "diverged", "one of two is not what was published"


def test_two_numbers_of_one_evaluation_never_share_a_cell(tmp_path: Path) -> None:
    row = make_row(tmp_path, "cdrl", seeds=(0,))
    twice = (replace(FD, mask="half"), replace(FD, mask="half", value=4.0))
    with pytest.raises(UserError, match="two numbers of one evaluation are called 'fd fd-digits half'"):
        finish(row, *twice)
    record = cells.recorded(make_plan(tmp_path, [row]))
    facts = {"measurements": [one.to_json() for one in twice], "seconds": 1.0, "commit": "a", "device": "b"}
    record["rows"][0]["evaluations"][0]["result"] = facts
    with pytest.raises(UserError, match="two numbers"):
        cells.derived(record, {})


def test_chains_are_told_with_what_sampling_does_differently(tmp_path: Path, written: Any) -> None:
    row = make_row(tmp_path, "cdrl", chain={"steps": 5, "step_variance": 1.2e-2}, sampling={"steps": 15})
    finish(row, FD, replace(FD, steps=50))
    usual, longer = written(make_plan(tmp_path, [row]))
    assert [usual[name] for name in ("chain_steps", "sampling_steps", "step_variance")] == ["5", "15", "0.012"]
    assert longer["sampling_steps"] == "50"


def test_the_report_reads_what_was_run(tmp_path: Path, written: Any) -> None:
    row = make_row(tmp_path, "cdrl", label="CDRL, own label")
    finish(row, *(replace(FD, metric=name, mask=mask) for name in ("fd", "kid") for mask in ("half", "box")))
    plan = make_plan(tmp_path, [row], question="Which?", order=7)
    written(plan)
    study = Study.load(plan.results)
    assert (study.name, study.title, study.question, study.order) == ("table1", "A table", "Which?", 7)
    assert (study.method_label("cdrl"), study.seeds("cdrl"), study.at_hand) == ("CDRL", [0, 1], True)
    assert study.seed_values(study.cells.iloc[1]) == [3.0, 3.0]
    [table] = tables.build(study)
    assert [line[0] for line in table.body] == ["CDRL, own label, half", "CDRL, own label, box"]


def test_a_full_disk_leaves_the_old_table_whole_and_the_same_command_goes_on(tmp_path: Path, written: Any) -> None:
    rows = [make_row(tmp_path, "cdrl")]
    plan = make_plan(tmp_path, rows)
    written(plan)
    before = contents(plan.results)
    assert before.keys() == {"cells.csv", "experiment.json", "provenance.json", "SHA256SUMS"}
    finish(rows[0], FD)
    longest = max(map(len, before.values()))
    said = in_a_child(lambda: write_results(plan, ["a command"]), largest_file=longest)
    assert said.startswith(f"UserError: cannot write {plan.results}/experiment.json (File too large); make room")
    assert contents(plan.results) == before
    (cell,) = written(plan)
    assert cell["value"] == "3.0"
    assert checksums.differences(plan.results) == []


@pytest.mark.parametrize("label", ["CDRL, K = 3", "=1+1", "-x", "a|b <script>`c`", "'=1", 'a "b"'])
def test_a_label_is_no_formula_and_reads_back(label: str, tmp_path: Path, written: Any) -> None:
    rows = [make_row(tmp_path, "cdrl", label=label)]
    finish(rows[0], replace(FD, metric="kid", value=-3.0, variant=label))
    plan = make_plan(tmp_path, rows)
    (line,) = written(plan)
    assert line["label"][:1] not in "=+-@"
    assert line["value"] == "-3.0"
    assert line["values"] == "-3.0 -3.0"
    ((_, cell),) = Study.load(plan.results).cells.iterrows()
    assert (cell["label"], cell["variant"], cell["value"]) == (label, label, -3.0)
