"""Verdicts: a measured number beside a published one."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import configuration
from experiments.cells import verdict, write_results
from experiments.files import write_json
from experiments.plan import Plan, make_plan
from experiments.report.published import Number

FID = "fid-legacy-pytorch"
NUMBER = Number(4.0, "confirmed", "4.0", metric="FID")
WORDS = Number(None, "confirmed", "does not converge", metric="FID")
AUROC = Number(0.75, "confirmed", "0.75", metric="AUROC")
NAN = math.nan


@pytest.fixture(scope="module")
def paper() -> Plan:
    return make_plan(configuration.resolve(["experiment=table1", "scale=paper"]))


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
        ((NAN, NAN, NAN), WORDS, FID, "reproduced"),
        ((30.0, NAN, NAN), WORDS, FID, "off"),
        ((0.75, NAN, NAN), AUROC, "log-density", "reproduced"),
        ((0.60, NAN, NAN), AUROC, "log-density", "off"),
    ],
)
def test_verdicts(
    paper: Plan, measured: tuple[float, float, float], named: Number | None, protocol: str, expected: str
) -> None:
    assert verdict(paper, measured, named, protocol) == expected


@pytest.mark.parametrize(
    "overrides",
    [["scale=nano"], ["scale=mini"], ["scale=paper", "scale.samples=200"], ["scale=paper", "data.flip=false"]],
)
def test_nothing_smaller_or_changed_reproduces(overrides: list[str]) -> None:
    plan = make_plan(configuration.resolve(["experiment=table1", *overrides]))
    assert verdict(plan, (4.0, NAN, NAN), NUMBER, FID) == "different-scale"


def test_a_method_that_was_said_to_diverge_and_does(tmp_path: Path) -> None:
    """The published words stand beside it, and it is no row that was not run."""
    places = [f"runs={tmp_path}/runs", f"results={tmp_path}/results"]
    plan = make_plan(configuration.resolve(["experiment=imagenet32", "scale=nano", *places]))
    row = next(row for row in plan.rows if row.id == "drl")
    for evaluation in row.evaluations:
        write_json(evaluation.run.folder / "status.json", {"status": "diverged", "iterations": 7, "seconds": 1.0})
    write_results(plan, ["a command"])
    with (plan.results / "cells.csv").open() as file:
        cells = {cell["row"]: cell for cell in csv.DictReader(file)}
    assert (cells["drl"]["published"], cells["drl"]["verdict"]) == ("does not converge", "different-scale")
    assert cells["drl"]["note"].startswith("seed 0 diverged")
    assert (cells["cdrl"]["published"], cells["cdrl"]["verdict"]) == ("", "not-run")


def test_a_cell_names_the_machine_that_made_it_and_the_rows_own_data(tmp_path: Path) -> None:
    places = [f"runs={tmp_path}/runs", f"results={tmp_path}/results"]
    plan = make_plan(configuration.resolve(["experiment=toy", "scale=nano", *places]))
    for row in plan.rows:
        for evaluation in row.evaluations:
            status = {"status": "finished", "iterations": 3, "seconds": 1.0, "commit": "a", "device": "a far GPU"}
            write_json(evaluation.run.folder / "status.json", status)
            measurement = {"metric": "kl", "protocol": "grid", "value": 3.0, "samples": 32}
            write_json(evaluation.folder / "result.json", {"measurements": [measurement], "commit": "a"})
    write_results(plan, ["a command"])
    with (plan.results / "cells.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert {cell["device"] for cell in cells} == {"a far GPU"}
    assert {cell["row"]: cell["dataset"] for cell in cells}["rings"] == "rings"
