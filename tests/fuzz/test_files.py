"""Damaged files of ours: an equal value, another that the schema allows, or one line that says what to do.

A parser is one entry of `PARSERS`: a real file, who reads it, what else may be said of what came out.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdrl.errors import UserError
from experiments import checksums, configuration, published, search, verify
from experiments.files import read_json, write_json
from experiments.measurement import Measurement
from experiments.metrics import Statistics
from experiments.plan import make_plan
from experiments.report import page, tables
from experiments.report.animation import Trace
from experiments.report.study import Study
from experiments.runs.folder import BeganOn, EvaluationFolder, Result, RunFolder, Status, WorkFolder
from tests.fuzz.damage import answer, retyped, rewritten, spoiled

RESULTS = Path(__file__).parents[2] / "results"
STUDY = RESULTS / "table1" / "nano"
STATUS = Status(status="finished", iterations=3, seconds=1.5, grad_evals=30, commit="0123456789ab", device="a CPU")
MEASURED = (
    Measurement(metric="precision", protocol="fd-digits", value=0.5, samples=9, seconds=1.0, trained=0.5),
    Measurement(metric="kl", protocol="grid", value=math.nan, samples=9, level=0, weight=-1.0, image_size=8),
)
IMAGES = dict.fromkeys(("name", "pixels", "labels"), "0123456789abcdef" * 4)
RESULT = Result(measurements=MEASURED, seconds=2.0, commit="abc", device="a CPU")


@dataclass(frozen=True)
class Parser:
    """A kind of file.

    Attributes:
        make: a sound file in an empty folder; returns its path.
        read: what everybody reads it with, given its path.
        sound: whether what was read can be; what a schema can refuse, said once more in other words.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    sound: Callable[[Any], bool] = lambda value: True


def _run(root: Path) -> RunFolder:
    """A run's folder as a plan makes it."""
    line = ["scale.seeds=[0]", f"runs={root / 'runs'}", f"cache={root / 'cache'}"]
    evaluation = make_plan(configuration.resolve(line)).rows[0].evaluations[0]
    evaluation.run.want(evaluation.run_settings)
    evaluation.folder.want(evaluation.settings)
    return evaluation.run


def _written(name: str, write: Callable[[Any], object], kind: type = RunFolder) -> Callable[[Path], Path]:
    """Makes a file by the method that always writes it."""

    def make(root: Path) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        write(kind(root))
        return root / name

    return make


def _study(name: str) -> Callable[[Path], Path]:
    """Makes a folder of results, and names one of its files."""

    def make(root: Path) -> Path:
        shutil.copytree(STUDY, root / "results" / "table1" / "nano")
        return root / "results" / "table1" / "nano" / name

    return make


def _statistics(name: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        plan = make_plan(configuration.resolve(["scale.seeds=[0]", f"runs={root / 'r'}", f"cache={root / 'cache'}"]))
        (wanted,) = plan.statistics()
        wanted.want()
        write_json(wanted.folder.path / "done.json", {"file": "reference/x.safetensors"})
        return wanted.folder.path / name

    return make


def _copied(source: Path) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(source, root))

    return make


def _arrays(name: str, **arrays: Any) -> Parser:
    """An evaluation's arrays, read as figures do."""

    def make(root: Path) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        np.save(root / name, arrays[""]) if "" in arrays else np.savez_compressed(root / name, **arrays)
        return root / name

    def read(path: Path) -> Any:
        row = {"row": "a", "evaluations": [{"seed": 0, "folder": str(path.parent), "run": str(path.parent)}]}
        study = Study(
            folder=path.parent, name="a", scale="nano", title="", question="", figures=(), order=0, rows=[row],
            cells=None,  # type: ignore[arg-type]
        )  # fmt: skip
        return study.arrays("a", name)

    def sound(value: Any) -> bool:
        (kept,) = value
        kept = {"": kept} if isinstance(kept, np.ndarray) else kept
        return all(kept[key].size > 0 and kept[key].dtype == arrays[key].dtype for key in arrays)

    return Parser(make, read, sound)


def _shown(folder: Path) -> list[str]:
    """Everything that a report makes of a folder's cells."""
    study = Study.load(folder)
    return [tables.markdown(tables.build(study)), tables.latex(tables.build(study))]


def _possible_cells(texts: list[str]) -> bool:
    return bool(texts[0])


def _possible_result(result: Result) -> bool:
    return all(
        type(one.samples) is int
        and one.samples >= 0
        and one.metric
        and (one.metric != "precision" or one.value <= 1.01)
        for one in result.measurements
    )


def _possible_status(status: Status) -> bool:
    counts = (status.iterations, status.grad_evals)
    return (
        status.status in ("finished", "diverged") and all(type(count) is int and count >= 0 for count in counts)
        and 0 <= status.seconds < math.inf and bool(status.device and status.commit)
    )  # fmt: skip


def _page(root: Path) -> Path:
    """A page that quotes a table and a number."""
    root.mkdir(parents=True, exist_ok=True)
    table = [line for line in (STUDY / "table.md").read_text().splitlines() if line.startswith("|")][:4]
    text = "\n".join(
        ["<!-- table: table1/nano -->", *table, "", "It has 7.1 [1, 20]<!-- = table1/nano cdrl fd -->.", ""]
    )
    (root / "page.md").write_text(text)
    return root / "page.md"


PARSERS = {
    "status.json": Parser(
        _written("status.json", lambda run: run.finish(STATUS)),
        lambda path: RunFolder(path.parent).status(), _possible_status,
    ),
    "config.json": Parser(
        lambda root: _run(root).path / "config.json",
        lambda path: (RunFolder(path.parent).settings, RunFolder(path.parent).settings.recipe),
        lambda value: value[0].seed == 0,
    ),
    "settings.json": Parser(
        lambda root: _run(root).evaluations()[0].path / "settings.json",
        lambda path: EvaluationFolder(path.parent).settings, lambda value: value["kind"] == "samples",
    ),
    "result.json": Parser(
        _written(
            "result.json", lambda folder: folder.keep(RESULT), EvaluationFolder,
        ),
        lambda path: EvaluationFolder(path.parent).result(), _possible_result,
    ),
    "progress.json": Parser(
        _written("progress.json", lambda folder: folder.report("training", 3, 10, "3 of 10"), WorkFolder),
        lambda path: WorkFolder(path.parent).progress(), lambda value: value is None or math.isfinite(value.updated),
    ),
    "failure.json": Parser(
        _written("failure.json", lambda folder: folder.fail("too hot", mistake=False), WorkFolder),
        lambda path: WorkFolder(path.parent).failure(), lambda value: isinstance(value.mistake, bool),
    ),
    "submission.json": Parser(
        _written("submission.json", lambda folder: folder.keep_submission("17", "/logs"), WorkFolder),
        lambda path: WorkFolder(path.parent).submission(), lambda value: isinstance(value["job"], str),
    ),
    "length.json": Parser(
        _written("length.json", lambda run: run.keep_length(iterations=9, iteration_seconds=0.1, device="a CPU")),
        lambda path: RunFolder(path.parent).length(), lambda value: value["iterations"] >= 1,
    ),
    "wandb.json": Parser(_written("wandb.json", RunFolder.wandb_id), lambda path: RunFolder(path.parent).wandb_id()),
    "data.json": Parser(
        _written("data.json", lambda run: write_json(run.path / "data.json", IMAGES)),
        lambda path: read_json(path, BeganOn),
    ),
    "statistics.json": Parser(_statistics("statistics.json"), lambda path: Statistics.open(path.parent)),
    "done.json": Parser(_statistics("done.json"), lambda path: Statistics.open(path.parent).done),
    "cells.csv": Parser(_study("cells.csv"), lambda path: _shown(path.parent), _possible_cells),
    "experiment.json": Parser(_study("experiment.json"), lambda path: _shown(path.parent)),
    "provenance.json": Parser(_study("provenance.json"), lambda path: page._scale(Study.load(path.parent))),
    "verified": Parser(_study("experiment.json"), lambda path: verify.verify(path.parents[2]).failures),
    "SHA256SUMS": Parser(_study("SHA256SUMS"), lambda path: checksums.differences(path.parent)),
    "published.csv": Parser(_copied(published.PUBLISHED), lambda path: published.load.__wrapped__(path)),
    "drl.csv": Parser(_copied(RESULTS / "search" / "nano" / "drl.csv"), search.read_log),
    "ratios.csv": Parser(_copied(RESULTS / "bench" / "ratios.csv"), lambda path: page._speed(path.parent)),
    "page.md": Parser(_page, lambda path: list(verify._page(path, RESULTS))),
    "trajectory.npz": Parser(_copied(RESULTS / "demo" / "trajectory.npz"), Trace.load),
    "grid.npy": _arrays("grid.npy", **{"": np.zeros((4, 8, 8, 1), np.uint8)}),
    "curve.npz": _arrays("curve.npz", grad_evals=np.arange(3), value=np.ones(3)),
    "chains.npz": _arrays("chains.npz", acceptance=np.ones((2, 5)), log_density=np.ones((2, 5, 2, 2))),
    "compose.npz": _arrays(
        "compose.npz", combinations=np.zeros((3, 2), np.int64), names=np.full((3, 2), "red"), share=np.ones(3),
        images=np.zeros((3, 2, 4, 4, 1), np.uint8), success=np.ones((3, 2)), joint=np.ones(3),
    ),
}  # fmt: skip
"""One line for each kind of file."""


@pytest.fixture(scope="module", params=PARSERS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Parser, Path, bytes, Any]:
    """A parser, its file, what is in that, and what is read from it."""
    parser: Parser = PARSERS[request.param]
    path = parser.make(tmp_path_factory.mktemp("fuzz") / "made")
    return parser, path, path.read_bytes(), parser.read(path)


def _strategy(path: Path, content: bytes) -> st.SearchStrategy[bytes]:
    every = spoiled(content)
    return (
        every | retyped(content)
        if path.suffix == ".json"
        else every | rewritten(content)
        if path.suffix == ".csv"
        else every
    )


@given(data=st.data())
def test_damage_is_one_line_or_a_value_that_can_be(kind: tuple[Parser, Path, bytes, Any], data: st.DataObject) -> None:
    parser, path, content, _ = kind
    path.write_bytes(data.draw(_strategy(path, content)))
    read = answer(lambda: parser.read(path))
    assert isinstance(read, UserError) or parser.sound(read), read


def test_what_is_whole_is_read(kind: tuple[Parser, Path, bytes, Any]) -> None:
    parser, path, content, before = kind
    path.write_bytes(content)
    assert not isinstance(answer(lambda: parser.read(path)), UserError)
    assert parser.sound(before)


@pytest.mark.parametrize("name", ["status.json", "cells.csv", "grid.npy", "curve.npz", "SHA256SUMS", "published.csv"])
def test_what_is_no_file_is_said(name: str, tmp_path: Path) -> None:
    path = PARSERS[name].make(tmp_path / "made")
    path.unlink()
    path.mkdir()
    assert isinstance(answer(lambda: PARSERS[name].read(path)), UserError)
    path.rmdir()
    os.mkfifo(path)
    assert isinstance(answer(lambda: PARSERS[name].read(path)), UserError)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse
    assert isinstance(answer(lambda: PARSERS[name].read(path)), UserError)
