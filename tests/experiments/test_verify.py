"""Results are derived again: untouched ones pass, and whatever is edited is found and named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdrl.errors import UserError
from experiments import checksums, cli
from experiments.cells import as_csv, derived, write_results
from experiments.files import read_json, write_json, write_text
from experiments.report import build_experiment
from experiments.report.study import Study
from experiments.runs.folder import Result
from experiments.verify import verify
from tests.experiments.test_cells import FD, STATUS, make_plan, make_row

FOLDER = "results/table1/nano"
VALUES = {"cdrl": (1.0, 1.125, 1.2), "drl": (2.0, 2.25, 2.375)}
README = """\
# A page of 95 % intervals, for Python ≥ 3.10

<!-- table: table1/nano -->
|  | Fréchet distance (fd-digits)\u00a0↓ | Seeds |
| --- | ---: | ---: |
{rows}
CDRL has {cdrl}<!-- = table1/nano cdrl fd -->,
in **1.0 s**<!-- = table1/nano cdrl fd column=train_seconds -->, 60 %<!-- not measured --> of it;
DRL 2.2<!-- = table1/nano drl fd -->: {difference}<!-- = table1/nano drl - cdrl fd -->, or
50 %<!-- = table1/nano cdrl / drl fd -->; `0.123` is code.
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``results/``, ``runs/`` and ``README.md`` of two methods with three seeds each; to be copied."""
    root = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)  # so that runs are named relative to it
        published = {"model": "CDRL", "reproduces": "cdrl"}
        rows = [make_row(Path(), name, seeds=(0, 1, 2), label=name.upper(), published=published) for name in VALUES]
        for row in rows:
            for evaluation, value in zip(row.evaluations, VALUES[row.id], strict=True):
                evaluation.run.path.mkdir(parents=True)
                evaluation.run.finish(STATUS)
                measurements = (replace(FD, value=value), replace(FD, metric="precision", value=value / 4))
                evaluation.folder.keep(Result(measurements=measurements, seconds=1.0, commit="a", device="a far GPU"))
                np.save(evaluation.folder.path / "grid.npy", np.full((64, 8, 8, 1), 7, np.uint8))
        data = {"name": "digits", "image_size": 8, "channels": 1, "classes": 10}
        config = {"metrics": {"name": "fd-digits", "metrics": ["fd", "precision"]}, "device": "cpu", "data": data}
        plan = make_plan(Path(), rows, config=config, figures=("table1",))
        build_experiment(write_results(plan, ["cdrl", "run", "experiment=table1"]))

        study = Study.load(plan.results)
        cdrl, drl = (cell for _, cell in study.measured("fd").iterrows())
        test = study.difference(drl, cdrl)
        assert test is not None
        lines = [line.split(" | ") for line in (plan.results / "table.md").read_text().splitlines()]
        quoted = [" | ".join((line[0], line[1], "3 |")) for line in lines if line[0] in ("| CDRL", "| DRL")]
        page = README.format(
            rows="\n".join(quoted),
            cdrl=f"{cdrl['value']:.2f} [{cdrl['low']:.2f}, {cdrl['high']:.2f}]",
            difference=f"{test.value:.2f} [{test.low:.2f}, {test.high:.2f}], p = {test.p:.4f}",
        )
        write_text(Path("README.md"), page)
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(template, tmp_path / "copy"))


def failures(root: Path) -> list[str]:
    return verify(root / "results", (root / "README.md",)).failures


def test_what_nobody_touched_passes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert failures(root) == []
    assert cli.report(["--verify", "--results", str(root / "results")]) == 0
    said = "1 experiments, 4 numbers; of 18 files of runs that they come from 18 are on this machine"
    assert said in capsys.readouterr().out


def test_without_the_runs_too(root: Path) -> None:
    (root / "runs").rename(root / "elsewhere")
    assert failures(root) == []


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (f"{FOLDER}/cells.csv", ",1.1083", ",1.1084"),
        (f"{FOLDER}/cells.csv", "1.0 1.125 1.2", "1.0 1.125 1.3"),
        (f"{FOLDER}/cells.csv", "fd-digits", "fid-clean"),
        (f"{FOLDER}/cells.csv", "different-scale", "reproduced"),
        (f"{FOLDER}/cells.csv", ",a far GPU,", ",,"),
        (f"{FOLDER}/experiment.json", '"value": 2.25', '"value": 2.26'),
        (f"{FOLDER}/experiment.json", '"seconds": 1.0', '"seconds": 1.5'),
        (f"{FOLDER}/provenance.json", '"cores": ', '"cores": 1'),
        (f"{FOLDER}/provenance.json", '"budget": 500', '"budget": 501'),
        (f"{FOLDER}/table.md", "| **1.1", "| **1.2"),
        (f"{FOLDER}/table.tex", "p = ", "p < "),
        (f"{FOLDER}/score.svg", "<path", "<path "),
        (f"{FOLDER}/SHA256SUMS", "a", "b"),
        ("README.md", "CDRL has 1.11 [", "CDRL has 1.12 ["),
        ("README.md", "| DRL | 2.2", "| DRL | 2.3"),
        ("README.md", "DRL 2.2<", "DRL 2.3<"),
        ("README.md", ": 1.10 [", ": 1.18 ["),
        ("README.md", "p = 0.0", "p = 0.1"),
        ("README.md", "50 %", "52 %"),
        ("README.md", "1.0 s", "1.1 s"),
        ("README.md", "cdrl fd column", "lost fd column"),
        ("README.md", "; `0.123` is code", "; 0.123 is not"),
    ],
)
def test_an_edited_digit_is_found_and_named(
    root: Path, file: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(root / file, old, new)
    assert cli.report(["--verify", "--results", str(root / "results")]) == 1
    named = capsys.readouterr().out
    assert Path(file).name in named or (Path(file).name == "SHA256SUMS" and "was changed" in named)


@pytest.mark.parametrize("name", ["grid.npy", "result.json"])
def test_so_is_a_file_of_a_run(root: Path, name: str) -> None:
    path = next((root / "runs").glob(f"**/{name}"))
    path.write_bytes(path.read_bytes().replace(b"\x07" if name == "grid.npy" else b"1.0", b"\x08"))
    (failure,) = failures(root)
    assert str(path) in failure


def test_a_file_of_no_command_and_a_missing_one(root: Path) -> None:
    (root / FOLDER / "old.png").touch()
    (root / FOLDER / "table.tex").unlink()
    said = "\n".join(failures(root))
    assert "old.png is of no command" in said
    assert "table.tex is missing" in said


def resealed(root: Path, change: Callable[[Path], None]) -> str:
    """What is said of results that were edited with care: cells, tables and checksums follow from the edited record."""
    folder = root / FOLDER
    change(folder)
    write_text(folder / "cells.csv", as_csv(derived(read_json(folder / "experiment.json"), {})))
    checksums.begin(folder, [path.name for path in folder.iterdir() if path.name != checksums.NAME])
    build_experiment(folder)
    return "\n".join(verify(root / "results").failures)


def test_an_edited_record_does_not_have_the_hash_of_its_files(root: Path) -> None:
    (root / "runs").rename(root / "elsewhere")
    said = resealed(root, lambda folder: edited(folder / "experiment.json", '"value": 2.25', '"value": 2.26'))
    assert re.search(r"experiment\.json: what it has of \S+result\.json is not what that file held", said)


def test_a_hidden_seed_is_missed(root: Path) -> None:
    def hide(folder: Path) -> None:
        record = read_json(folder / "experiment.json")
        record["rows"][0]["evaluations"][0]["result"] = None
        write_json(folder / "experiment.json", record)

    assert "disagree whether there was" in resealed(root, hide)


def test_a_verdict_that_nothing_allows(root: Path) -> None:
    (root / "runs").rename(root / "elsewhere")
    edited(root / FOLDER / "cells.csv", "different-scale", "off")
    said = "\n".join(failures(root))
    assert "verdict is off, and different-scale follows from the record" in said
    assert "is 'off', but at another scale" in said


@pytest.mark.parametrize("commit", ["unknown", "0123456789ab-modified"])
def test_numbers_of_code_that_nobody_has(root: Path, commit: str) -> None:
    study = Study.load(root / FOLDER)
    text = (root / FOLDER / "cells.csv").read_text().replace(",a,", f",{commit},")
    (root / FOLDER / "cells.csv").write_text(text)
    assert any(f"of code that no commit has: {commit}" in line for line in failures(root)), study.cells["commit"]


def test_results_of_before_say_how_to_make_them_again(root: Path) -> None:
    (root / FOLDER / "SHA256SUMS").unlink()
    said = verify(root / "results").failures
    command = "cdrl run experiment=table1"
    assert said == [f"{root / FOLDER} was made before results kept what they come from; make it again: {command}"]


def test_what_cannot_be_read_is_a_failure_too(root: Path) -> None:
    (root / FOLDER / "experiment.json").write_text(json.dumps({"rows": 3}))
    assert any("cannot be read" in line for line in failures(root))
    with pytest.raises(UserError, match="there are no results"):
        verify(root / "nothing")


def test_the_trace_of_a_sample_and_weights(root: Path) -> None:
    demo = root / "results" / "demo"
    (demo / "nano").mkdir(parents=True)
    for folder, name in ((demo, "trajectory.npz"), (demo / "nano", "model.json")):
        (folder / name).write_text("0.5")
    assert [line.split(";")[0].split(" ", 1)[1] for line in failures(root)] == ["was made before it had checksums"] * 2
    checksums.begin(demo, ["trajectory.npz"])
    checksums.begin(demo / "nano", ["model.json"])
    assert failures(root) == []
    for folder, name in ((demo, "trajectory.npz"), (demo / "nano", "model.json")):
        (folder / name).write_text("0.6")
        assert any(f"{folder / name} was changed" in line for line in failures(root))
