"""The command line, end to end: every manifest composes, the main job runs at a tiny budget, mistakes get one line."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdrl.cli import DIVERGED
from cdrl.errors import UserError
from experiments import configuration
from experiments.__main__ import main
from experiments.cells import write_results
from experiments.measurement import Measurement
from experiments.plan import make_plan
from experiments.runs.folder import Result, Status

ROOT = Path(__file__).parents[2]
TINY = [
    "scale.budget=1200",
    "scale.samples=32",
    "scale.sample_batch=32",
    "scale.milestones=[0.5]",
    "scale.milestone_samples=16",
    "scale.seeds=[0]",
    "engine=eager",
]


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def folders(tmp_path: Path) -> list[str]:
    return [f"runs={tmp_path}/runs", f"results={tmp_path}/results", "cache=.cache"]


def cells(tmp_path: Path, name: str = "table1") -> list[dict[str, str]]:
    with (tmp_path / "results" / name / "nano" / "cells.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("scale", configuration.choices("scale"))
@pytest.mark.parametrize("name", configuration.choices("experiment"))
def test_every_manifest_composes_at_every_scale(name: str, scale: str) -> None:
    plan = make_plan(configuration.resolve([f"experiment={name}", f"scale={scale}"]))
    assert plan.rows
    assert all(row.evaluations for row in plan.rows)


def test_table1_runs_and_a_second_call_has_nothing_left(tmp_path: Path) -> None:
    first = command(*TINY, *folders(tmp_path))
    assert first.returncode == 0, first.stderr
    rows = {cell["row"] for cell in cells(tmp_path)}
    assert rows == {"cdrl", "drl", "drl_as_released", "short_run", "real", "noise"}
    assert all(float(cell["value"]) == float(cell["value"]) for cell in cells(tmp_path) if cell["metric"] == "fd")
    assert {cell["verdict"] for cell in cells(tmp_path)} == {"different-scale", "other-model"}
    folder = tmp_path / "results" / "table1" / "nano"
    for file in (
        "cells.csv",
        "table.md",
        "table.tex",
        "provenance.json",
        "score.png",
        "score.svg",
        "budget.png",
        "samples.png",
    ):
        assert (folder / file).stat().st_size > 0, file
    plan = command(*TINY, *folders(tmp_path), "plan=true")
    assert "0 runs to train" in plan.stdout
    assert "0 evaluations to do" in plan.stdout.replace("\n", " ").replace("  ", " ")


@pytest.mark.slow
def test_all_trains_a_run_once_for_every_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "experiments", lambda scale: ["table1", "ood"])
    assert main(["experiment=all", *TINY, *folders(tmp_path)]) == 0
    assert {cell["metric"] for cell in cells(tmp_path)} >= {"fd"}
    assert "auroc" in {cell["metric"] for cell in cells(tmp_path, "ood")}
    (log,) = (tmp_path / "runs" / "digits" / "cdrl").glob("*/seed0/metrics.jsonl")
    assert {path.name.split("-")[0] for path in (log.parent / "eval").iterdir()} == {"samples", "ood"}
    provenance = json.loads((tmp_path / "results" / "ood" / "nano" / "provenance.json").read_text())
    assert "experiment=ood" in provenance["command"]


def test_a_cell_names_the_commits_of_its_run_and_of_the_look_at_it(tmp_path: Path) -> None:
    plan = make_plan(configuration.resolve([*TINY, *folders(tmp_path)]))
    evaluation = plan.rows[0].evaluations[0]
    measurement = Measurement(metric="fd", protocol="fd-digits", value=3.0, samples=32)
    evaluation.run.finish(
        Status(status="finished", iterations=3, seconds=1.0, grad_evals=30, commit="a", device="a CPU")
    )
    evaluation.folder.keep(Result(measurements=(measurement,), seconds=1.0, commit="b", device="a CPU"))
    write_results(plan, ["a command"])
    assert [(cell["value"], cell["commit"]) for cell in cells(tmp_path) if cell["row"] == "cdrl"] == [("3.0", "a b")]


def test_a_figure_that_cannot_be_drawn_is_said_after_the_tables_and_the_command_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything was trained and measured before; the same command draws it once it can."""
    without = [f"experiment.rows.{row}=null" for row in ("drl", "drl_as_released", "short_run", "real", "noise")]
    arguments = [*TINY, *without, *folders(tmp_path)]
    for row in make_plan(configuration.resolve(arguments)).rows:
        for evaluation in row.evaluations:
            measurement = Measurement(metric="fd", protocol="fd-digits", value=3.0, samples=32)
            facts = {"commit": "a", "device": "a CPU"}
            evaluation.run.finish(Status(status="finished", iterations=3, seconds=1.0, grad_evals=30, **facts))
            evaluation.folder.keep(Result(measurements=(measurement,), seconds=1.0, **facts))
    folder = tmp_path / "results" / "table1" / "nano"
    (folder / "score.png").mkdir(parents=True)
    assert main(["experiment=table1", *arguments]) == 1
    output = capsys.readouterr()
    assert "Fréchet distance" in output.out
    assert output.err.startswith(f"{folder / 'score'} could not be drawn: ")
    assert output.err.count("\n") == 1
    assert {path.name for path in folder.iterdir() if path.is_file()} >= {"cells.csv", "table.md", "table.tex"}
    (folder / "score.png").rmdir()
    assert main(["experiment=table1", *arguments]) == 0
    assert (folder / "score.png").is_file()


def test_all_is_what_needs_no_arguments() -> None:
    every = configuration.expand(["experiment=all", "scale=paper"])
    not_there = {"released", "ladder", "initializer", "protocols"}  # a file of one's own; sizes and scores of micro
    names = {command[0].removeprefix("experiment=") for command in every}
    assert names == set(configuration.choices("experiment")) - not_there
    assert ["experiment=imagenet32"] not in configuration.expand(["experiment=all"])
    assert configuration.expand(["experiment=ood", "scale=mini"]) == [["experiment=ood", "scale=mini"]]


def test_the_command_line_wins_over_a_manifests_changes_for_its_scale() -> None:
    changes = ["experiment.rows.cdrl.evaluate.images=2", "experiment.rows.cdrl_once=null"]
    rows = configuration.resolve(["experiment=inpaint", "scale=mini", *changes]).experiment.rows
    assert rows.cdrl.evaluate.images == 2
    assert rows.cdrl_once is None
    assert rows.drl.evaluate.images == 100


def test_a_row_that_a_scale_adds_can_be_left_out_or_changed() -> None:
    arguments = ["experiment=table1", "scale=paper"]
    assert configuration.resolve([*arguments, "experiment.rows.cdrl_large=null"]).experiment.rows.cdrl_large is None
    row = configuration.resolve(
        [*arguments, "experiment.rows.cdrl_large.train.energy.width=8"]
    ).experiment.rows.cdrl_large
    assert (row.method, row.train.energy.width) == ("cdrl", 8)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_configuration_is_shown_wherever_it_is_asked_for(place: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["experiment=table1", "scale=nano"]
    assert main([*arguments[:place], "--cfg", "job", *arguments[place:]]) == 0
    assert "step_variance: 0.012" in capsys.readouterr().out


def test_runs_are_a_pure_function_of_what_determines_them() -> None:
    def folder(*overrides: str) -> set[Path]:
        plan = make_plan(configuration.resolve(["experiment=table1", *overrides]))
        return {evaluation.run.path for row in plan.rows for evaluation in row.evaluations}

    assert folder() == folder("scale.samples=17")
    assert folder() == folder("methods.cdrl.label=other")
    assert folder() != folder("methods.cdrl.chain.steps=2")
    assert folder() != folder("scale.budget=123456")


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_numbers(tmp_path: Path) -> None:
    arguments = [*TINY, "scale.budget=20000", "launcher.workers=1", "launcher.threads=1", "experiment.rows.drl=null"]
    arguments += [f"experiment.rows.{row}=null" for row in ("drl_as_released", "short_run", "real", "noise")]
    undisturbed, disturbed = tmp_path / "a", tmp_path / "b"
    assert command(*arguments, *folders(undisturbed)).returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", *arguments, *folders(disturbed)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(disturbed.rglob("metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = command(*arguments, *folders(disturbed))
    assert again.returncode == 0, again.stderr

    def numbers(folder: Path) -> list[tuple[str, str]]:
        return [(cell["metric"], cell["value"]) for cell in cells(folder)]

    def log(folder: Path) -> list[dict[str, object]]:
        (path,) = folder.rglob("metrics.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]

    assert numbers(undisturbed) == numbers(disturbed)
    assert log(undisturbed) == log(disturbed)


def started(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command, at work on its first run."""
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", *TINY, *folders(tmp_path), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_command_keeps_checkpoints_and_says_so(sent: signal.Signals, tmp_path: Path) -> None:
    process = started(tmp_path, "scale.budget=3000000", "scale.reports=3000")
    process.send_signal(sent)
    _, printed = process.communicate(timeout=90)
    assert process.returncode == 128 + sent
    assert "stopping: the running jobs keep a checkpoint" in printed
    how = "interrupted" if sent == signal.SIGINT else "stopped by SIGTERM"
    assert printed.splitlines()[-1] == f"{how}; the same command continues where this one stopped"
    assert list(tmp_path.rglob("checkpoint.json"))
    assert not list(tmp_path.rglob("lock"))  # nobody works there any more


def test_a_command_ends_when_its_seconds_are_over(tmp_path: Path) -> None:
    arguments = [*TINY, *folders(tmp_path), "scale.budget=3000000", "launcher.seconds=8"]
    result = command(*arguments)
    assert result.returncode == 75, result.stderr
    assert "8 seconds are over; the same command goes on" in result.stderr
    assert not (tmp_path / "results" / "table1" / "nano" / "cells.csv").exists()
    assert not list(tmp_path.rglob("lock"))  # nobody works there any more


@pytest.mark.slow
def test_what_was_left_to_a_queue_is_collected_later(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    others = [f"experiment.rows.{row}=null" for row in ("drl", "drl_as_released", "short_run", "real", "noise")]
    queue = ["launcher=slurm", "launcher.cluster=local", f"launcher.logs={tmp_path}/logs", "device=cpu"]
    line = [*TINY, *folders(tmp_path), *others, *queue]
    assert main([*line, "--detach"]) == 0
    assert not (tmp_path / "results" / "table1" / "nano" / "cells.csv").exists()
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("result.json")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert main(line) == 0
    assert [cell["row"] for cell in cells(tmp_path) if cell["metric"] == "fd"] == ["cdrl"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ray", "slurm"])
def test_the_table_is_the_same_through_every_engine(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all paths are relative to the folder that the command is called in."""
    pytest.importorskip({"ray": "ray", "slurm": "submitit"}[launcher])
    own = ["launcher.cluster=local", "launcher.workers=2", f"launcher.logs={tmp_path}/logs"]
    others = [f"experiment.rows.{row}=null" for row in ("drl", "drl_as_released", "noise")]
    line = [*TINY, "scale.seeds=[0,1]", "device=cpu", *others]
    monkeypatch.chdir(tmp_path)
    assert main([*line, *folders(Path("local"))]) == 0
    assert main([*line, *folders(Path(launcher)), f"launcher={launcher}", *own[: 3 * (launcher == "slurm")]]) == 0

    def values(folder: str) -> list[tuple[str, ...]]:
        names = ("row", "metric", "value", "low", "high")
        return [tuple(cell[name] for name in names) for cell in cells(tmp_path / folder)]

    assert values("local") == values(launcher)
    assert len(values("local")) > 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["experiment=tabel1"], ["unknown experiment 'tabel1'", "did you mean 'table1'"]),
        (["scale=nanno"], ["unknown scale 'nanno'", "nano"]),
        (["data=cifar11"], ["unknown data 'cifar11'", "cifar10"]),
        (["experiment.rows.cdrl.method=cdlr"], ["unknown method 'cdlr'", "cdrl"]),
        (["scale.bugdet=5"], ["unknown setting 'scale.bugdet'", "scale.budget"]),
        (["experiment=guidance", "experiment.rows.clrd=null"], ["'experiment.rows.clrd'", "experiment.rows.cdrl"]),
        (["experiment=chains", "experiment.rows.noise=null"], ["unknown setting 'experiment.rows.noise'"]),
        (["~experiment.rows.drl"], ["write experiment.rows.drl=null"]),
        (["method=cdrl"], ["'method'", "--cfg job"]),
        (["methods.cdrl.chain.stepz=5"], ["unknown setting", "methods.cdrl.chain.steps"]),
        (["nonsense"], ["not an override", "key=value"]),
        (["--frobnicate"], ["unknown option --frobnicate", "--help"]),
        (["device=cuda:99"], ["device=cuda:99", "device=cpu"]),
        (["device=tpu"], ["tpu", "cpu"]),
        (["scale.budget=0"], ["budget", "positive"]),
        (["methods.cdrl.batch_size=-4"], ["batch_size", "positive"]),
        (["methods.cdrl.energy.width=0"], ["width", "whole number"]),
        (["methods.cdrl.chain.steps=-1"], ["steps"]),
        (["scale.samples=-5"], ["samples", "positive"]),
        (["scale.samples=1e2"], ["scale.samples", "whole number", "not 100.0"]),
        (["scale.reports=0"], ["scale.reports", "positive"]),
        (["scale.sample_batch=0"], ["scale.sample_batch", "positive"]),
        (["scale.budget=abc"], ["scale.budget", "number", "not abc"]),
        (["scale.milestones=[2]"], ["scale.milestones", "between 0 and 1"]),
        (["scale.seeds=3"], ["scale.seeds", "list", "not 3"]),
        (["scale.seeds=[]", "experiment=chains"], ["scale.seeds", "list"]),
        (["scale.seeds=[0,0,0]"], ["scale.seeds", "different"]),
        (["+experiment.rows.cdrl.seeds=[1,1]"], ["row 'cdrl'", "different"]),
        (["+experiment.rows.cdrl.budget=abc"], ["row 'cdrl'", "budget", "not abc"]),
        (["launcher.workers=two"], ["launcher.workers", "auto or", "not two"]),
        (["launcher.threads=0"], ["launcher.threads", "positive"]),
        (["methods.cdrl.chain.steps=abc"], ["methods.cdrl.chain.steps", "whole number", "not abc"]),
        (["methods.cdrl.optimisation.learning_rate=fast"], ["methods.cdrl.optimisation.learning_rate", "not fast"]),
        (["methods.cdrl.energy=abc"], ["methods.cdrl.energy", "not abc"]),
        (["+experiment.rows.cdrl.train.levels=2.5"], ["methods.cdrl.levels", "not 2.5"]),
        (["methods.cdrl.levels=null"], ["method 'CDRL'", "--cfg job"]),
        (["methods.drl=null"], ["methods.drl cannot be left out", "experiment.rows"]),
        (["rows.drl=null"], ["unknown setting 'rows.drl'", "did you mean 'experiment.rows.drl'"]),
        (["scale.budget={hours: 3}"], ["scale.budget", "seconds"]),
        (["launcher.seconds=-1"], ["launcher.seconds", "positive"]),
        (["launcher=slrum"], ["unknown launcher 'slrum'", "did you mean 'slurm'"]),
        (["experiment=ood", "experiment.rows.cdrl.method=short_run"], ["needs a series of energies", "Short-run EBM"]),
        (["metrics.samples=many"], ["metrics.samples", "not many"]),
        (["results=/dev/null/here"], ["results=", "cannot write"]),
        (["runs=/dev/null/here"], ["runs=", "cannot write"]),
        (["cache=/dev/null/here"], ["cache=", "cannot write"]),
    ],
)
def test_a_mistake_gets_one_clear_line(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [f for f in folders(tmp_path) if not any(f.split("=")[0] == a.split("=")[0] for a in arguments)]
    tiny = [setting for setting in TINY if not any(setting.split("=")[0] == a.split("=")[0] for a in arguments)]
    assert main([*tiny, *where, *arguments]) == 1
    printed = capsys.readouterr().err
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in printed
    for word in words:
        assert word in errors[0]


def test_a_truncated_checkpoint_is_named_and_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        *TINY,
        *folders(tmp_path),
        *(f"experiment.rows.{row}=null" for row in ("drl", "drl_as_released", "short_run", "real", "noise")),
    ]
    assert main(line) == 0
    (folder,) = (tmp_path / "runs" / "digits" / "cdrl").glob("*/seed0")
    capsys.readouterr()

    # The anchor stands in for it.
    weights = next(folder.glob("checkpoint-*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert main([*line, "scale.samples=33"]) == 0
    printed = capsys.readouterr().err
    assert f"{weights} is damaged: it has" in " ".join(printed.split())
    assert "the run goes on from iteration" in printed
    assert weights.read_bytes() == whole

    # With the anchor gone too there is nothing to go on from.
    for path in folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:1000])
    assert main([*line, "scale.samples=34"]) == 1
    printed = capsys.readouterr().err
    assert str(weights) in printed
    assert "restore it from a copy, or delete" in printed
    assert "Traceback" not in printed
    weights.write_bytes(whole)
    assert main([*line, "scale.samples=34"]) == 0


def test_a_crash_stops_one_run_and_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TINY, *folders(tmp_path), "launcher.workers=1"]
    first, *others = (row.evaluations[0] for row in make_plan(configuration.resolve(arguments)).rows)
    obstacle = first.folder.path / "grid.npy"
    obstacle.mkdir(parents=True)
    assert main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "IsADirectoryError" in error
    assert "Traceback" in (first.run.path / "error.log").read_text()
    assert [evaluation.folder.done for evaluation in others] == [True] * len(others)
    obstacle.rmdir()
    assert main(arguments) == 0


ALONE = [f"experiment.rows.{row}=null" for row in ("drl", "drl_as_released", "short_run", "noise")]


def test_samples_that_run_away_are_no_score_and_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the table, in the verdict and in the exit code; the other rows have their numbers."""
    arguments = [*TINY, *folders(tmp_path), *ALONE, "methods.cdrl.sampling.noise_scale=1e30"]
    for _ in range(2):  # nothing is left to do, and it is said again
        assert main(arguments) == DIVERGED
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("diverged in every seed: cdrl; retry=true")
        by_row = {cell["row"]: cell for cell in cells(tmp_path) if cell["metric"] == "fd"}
        assert (by_row["cdrl"]["value"], by_row["cdrl"]["verdict"]) == ("nan", "diverged")
        assert "32 of the first 32 samples are not finite or ran away" in by_row["cdrl"]["note"]
        assert float(by_row["real"]["value"]) >= 0
    assert "diverged" in (tmp_path / "results" / "table1" / "nano" / "table.md").read_text()


def test_an_evaluation_that_fails_blocks_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TINY, *folders(tmp_path), *ALONE, "+experiment.rows.cdrl.evaluate.guidance=1.0"]
    assert main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: cdrl seed 0, samples: evaluate.guidance leads towards classes")
    by_row = {cell["row"]: cell for cell in cells(tmp_path) if cell["metric"] == "fd"}
    assert by_row["cdrl"]["verdict"] == "not-run"
    assert "seed 0: evaluation failed: evaluate.guidance leads" in by_row["cdrl"]["note"]
    assert float(by_row["real"]["value"]) >= 0


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """A limit of a file's size stands in for it: settings fit, checkpoints do not."""
    others = [f"experiment.rows.{row}=null" for row in ("drl", "drl_as_released", "short_run", "noise")]
    line = [*TINY, *folders(tmp_path), *others]
    script = (
        "import resource, sys; from experiments.__main__ import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); sys.exit(main(sys.argv[1:]))"
    )
    full = subprocess.run(
        [sys.executable, "-c", script, *line], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert full.returncode == 1, full.stderr
    assert full.stderr.splitlines()[-1].startswith("error: cannot write ")
    assert "Traceback" not in full.stderr
    assert "unexpectedly" not in full.stderr
    again = command(*line)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["plan"], ["--cfg", "job"]])
def test_output_that_nobody_reads_or_that_is_not_utf8(arguments: list[str]) -> None:
    program = [sys.executable, "-m", "cdrl" if arguments[0] != "--cfg" else "experiments", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(program, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 141
    plain = subprocess.run(program, cwd=ROOT, env={**environment, "PYTHONIOENCODING": "ascii"}, capture_output=True)
    assert (plain.returncode, plain.stderr) == (0, b"")


def test_a_misspelt_override_is_an_error_in_the_library_too() -> None:
    with pytest.raises(UserError, match="unknown experiment"):
        configuration.resolve(["experiment=nothing"])
