"""What a plan says of a configuration: what was changed, where results go, which runs are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cdrl.errors import UserError
from experiments import configuration, plan
from experiments.data import DataSettings, ImageSet
from experiments.plan import Plan, make_plan, one_per_run
from experiments.runs.folder import Result, RunFolder, RunSettings, Status
from experiments.runs.trained import planned_iterations


def planned(*overrides: str) -> Plan:
    return make_plan(configuration.resolve(overrides))


@pytest.mark.parametrize("name", ["table1", "ood", "toy", "imagenet32"])
@pytest.mark.parametrize("scale", ["nano", "paper"])
def test_an_experiment_as_it_is_has_no_changes(name: str, scale: str) -> None:
    elsewhere = ["runs=x", "device=cpu", "engine=eager", "launcher.workers=1", "data.root=y"]
    assert planned(f"experiment={name}", f"scale={scale}", *elsewhere).changed == ()


@pytest.mark.parametrize("name", configuration.choices("experiment"))
def test_every_experiment_has_a_size_at_micro(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CIFAR-10 at 16 pixels, or on data of its own, with the networks of that scale, and at a cost of hours."""
    monkeypatch.setattr(plan, "at_hand", lambda *_: [])
    made = planned(f"experiment={name}", "scale=micro")
    assert made.changed == ()
    sizes = {row.evaluations[0].run_settings.data.image_size for row in made.rows}
    assert sizes == {"toy": {1}, "released": {32}, "ladder": {8, 16}}.get(name, {16})
    trained = [job.settings for job in made.jobs() if job.settings.recipe.trains]
    cost = sum(settings.budget for settings in trained if isinstance(settings.budget, int))
    assert cost < (70e6 if name == "toy" else 40e6)  # a core spends about five million an hour
    shared = {json.dumps(settings.method["energy"]["width"]) for settings in trained}
    assert shared <= ({"96"} if name == "toy" else {"32"})
    assert all(planned_iterations(settings) > 200 for settings in trained), "longer than its warm-up"


def test_the_ladder_shares_runs_and_evaluations_with_the_other_tables() -> None:
    ladder, table, frontier = (
        planned(f"experiment={name}", "scale=micro") for name in ("ladder", "table1", "frontier")
    )

    def folders(made: Plan) -> set[Path]:
        return {evaluation.folder.path for row in made.rows for evaluation in row.evaluations}

    shared = folders(ladder) & (folders(table) | folders(frontier))
    assert len(shared) == 3 * 4 + 2  # CDRL, DRL, short-run and DDPM at 16 pixels; real images and noise
    night = planned("experiment=ladder", "scale=micro", "experiment.sizes=[32]", "experiment.share=8")
    assert {row.id.rpartition("-")[2] for row in night.rows} == {"32"}
    assert night.rows[0].evaluations[0].run_settings.budget == 8 * 1_315_000


def test_guidance_at_micro_is_judged_by_a_classifier_of_these_images(tmp_path: Path) -> None:
    """Beside the protocol of the scale, in the same evaluation; real images too, for the classifier's own accuracy."""
    made = planned("experiment=guidance", "scale=micro", f"runs={tmp_path}", f"cache={tmp_path}")
    settings = [row.evaluations[0].settings for row in made.rows]
    assert [row.id for row in made.rows][-2:] == ["cdrl-3.0", "real"]
    assert {one["metrics"]["name"] for one in settings} == {"fd-efficientnet-lite0-96"}
    assert {(one["classes_by"]["name"], *one["classes_by"]["metrics"]) for one in settings} == {
        ("fd-cifar10-16", "class_accuracy")
    }
    assert {made.protocol.name for made in made.statistics()} == {"fd-efficientnet-lite0-96"}
    assert json.loads(json.dumps(settings)) == settings  # as it is read back from its folder
    left_out = planned("experiment=guidance", "scale=micro", "experiment.rows.cdrl.evaluate.classes_by=null")
    assert not left_out.rows[0].evaluations[0].settings["classes_by"]


def test_a_protocol_that_knows_no_classes_cannot_judge_them() -> None:
    with pytest.raises(UserError, match="fid-clean judges no classes; protocols that do: fd-cifar10-16, fd-digits"):
        planned("experiment=guidance", "scale=micro", "experiment.rows.cdrl.evaluate.classes_by=fid-clean")


def test_changes_are_named() -> None:
    overrides = ["scale.samples=7", "experiment.rows.drl=null", "data.flip=true", "+experiment.rows.cdrl.budget=2"]
    assert set(planned(*overrides).changed) == {override.removeprefix("+") for override in overrides}


def test_changed_results_do_not_take_the_place_of_the_experiments_own() -> None:
    assert planned().results == Path("results/table1/nano")
    changed = planned("scale.samples=7").results
    assert changed.parent == Path("results/table1")
    assert changed.name.startswith("nano-")
    assert planned("scale.samples=8").results != changed
    assert planned("scale.samples=7", "results=here").results == Path("here/table1/nano")


def folder_of(tmp_path: Path, name: str, brightness: int) -> Path:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    for number in range(4):
        pixels = np.full((8, 8, 3), brightness + number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_two_folders_of_images_are_two_runs(tmp_path: Path) -> None:
    def runs(folder: Path) -> set[Path]:
        rows = planned("data=folder", "data.image_size=8", f"data.root={folder}").rows
        return {row.evaluations[0].run.path for row in rows}

    dark, bright = (folder_of(tmp_path, name, value) for name, value in (("dark", 10), ("bright", 200)))
    assert not runs(dark) & runs(bright)
    assert runs(dark) == runs(dark)


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    root, cache = str(tmp_path / "dark"), str(tmp_path / "cache")
    settings = DataSettings(name="folder", root=root, data_cache=cache, image_size=8, options={"image_size": 8})

    def images() -> ImageSet:
        return settings.load("train")

    run = RunFolder(tmp_path / "run")
    folder_of(tmp_path, "dark", 10)
    run.check_images(images())
    run.check_images(images())
    folder_of(tmp_path, "dark", 20)
    with pytest.raises(UserError, match=r"not those that .* was trained on"):
        run.check_images(images())


def test_optional_sets_are_part_of_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*present: str) -> tuple[list[str], Path]:
        monkeypatch.setattr(plan, "at_hand", lambda names, cache: [name for name in names if name in present])
        evaluation = planned("experiment=ood", "scale=paper").rows[0].evaluations[0]
        return evaluation.settings["outside"], evaluation.folder.path

    without, with_one = look(), look("cifar100")
    assert (without[0], with_one[0]) == (["interp"], ["interp", "cifar100"])
    assert without[1] != with_one[1]


def test_a_budget_in_seconds_is_shared_like_any_other() -> None:
    plan = planned("scale.budget={seconds: 30}", "+experiment.rows.drl.budget=0.5")
    assert {row.id: row.evaluations[0].run_settings.budget for row in plan.rows[:2]} == {
        "cdrl": {"seconds": 30},
        "drl": {"seconds": 15.0},
    }
    runs = {row.evaluations[0].run for row in plan.rows[:1] + planned("scale.budget={seconds: 31}").rows[:1]}
    assert len(runs) == 2


@pytest.mark.parametrize("name", ["inpaint", "langevin_steps", "speedup"])
def test_what_needs_no_training_of_its_own_looks_at_the_runs_of_table_1(name: str) -> None:
    def runs(experiment: str) -> set[RunFolder]:
        plan = planned(f"experiment={experiment}", "scale=mini", "scale.budget={seconds: 200}")
        return {job.run for job in plan.jobs() if job.settings.recipe.trains}

    assert runs(name) <= runs("table1")
    assert runs(name)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scale.budget={minutes: 3}", "scale.budget must be a number or {seconds: s}"),
        ("scale.budget={seconds: -1}", "scale.budget.seconds must be a positive number"),
        ("scale.seeds=[0,0]", "scale.seeds must be a list of different whole numbers"),
        ("launcher.seconds=0", "launcher.seconds must be a positive number"),
        ("launcher.workers=none", "launcher.workers must be auto or a positive whole number"),
        ("methods.drl.chain.steps=many", "methods.drl.chain.steps must be a whole number such as 10"),
        ("experiment.rows.drl.method=dlr", "row 'drl': unknown method 'dlr'; there are cdrl"),
        ("+experiment.rows.drl.train.chian.steps=3", "row 'drl': Key 'chian'"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        planned(override)
    assert message in str(error.value)


def test_jobs_are_runs_with_their_distinct_evaluations_seeds_interleaved(tmp_path: Path) -> None:
    one = planned("experiment=guidance", f"runs={tmp_path}", "scale.seeds=[0,1]")
    jobs = one.jobs()
    assert [job.settings.seed for job in jobs] == [0, 1]
    assert [len(job.evaluations) for job in jobs] == [len(one.rows)] * 2
    assert len(one_per_run([*jobs, *jobs])) == 2


def test_what_is_done_is_not_missing(tmp_path: Path) -> None:
    """Nor is anything of a run that diverged; and a plan writes nothing until it is wanted."""
    one = planned(f"runs={tmp_path}", "scale.seeds=[0]")
    assert {job.run.state for job in one.missing()} == {"missing"}
    assert not list(tmp_path.iterdir())
    cdrl, drl, *_ = one.missing()
    for job, status in ((cdrl, "finished"), (drl, "diverged")):
        job.want()
        job.run.finish(Status(status=status, iterations=1, seconds=1.0, grad_evals=1, commit="a", device="a CPU"))
    assert cdrl.run in {job.run for job in one.missing()}
    assert drl.run not in {job.run for job in one.missing()}
    for evaluation in cdrl.evaluations:
        evaluation.folder.keep(Result(measurements=(), seconds=0.0, commit="a", device="a CPU"))
    assert cdrl.run not in {job.run for job in one.missing()}
    assert cdrl.run.settings == cdrl.settings  # what was wanted is read again


def test_an_evaluation_that_failed_is_missing_where_it_is_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = planned(f"runs={tmp_path}", "scale.seeds=[0]", "experiment.rows.drl=null", "experiment.rows.short_run=null")
    facts: dict[str, Any] = {"measurements": (), "seconds": 0.0, "commit": "a", "device": "a CPU"}
    for job in one.jobs():
        job.run.finish(Status(status="finished", iterations=1, seconds=1.0, grad_evals=1, commit="a", device="a CPU"))
        for evaluation in job.evaluations:
            evaluation.folder.keep(Result(**facts))
    failing = one.jobs()[0]
    failing.evaluations[0].folder.keep(Result(**facts, outcome="failed", reason="why"))
    for code, missing in (("a", []), ("b", [failing.run]), ("a-modified", [failing.run])):
        monkeypatch.setattr("experiments.plan.commit", lambda code=code: code)
        assert [job.run for job in one.missing()] == missing
        assert one.missing(again=False) == []
    monkeypatch.setattr("experiments.plan.commit", lambda: "b")
    failing.evaluations[0].folder.keep(Result(**facts, outcome="diverged", reason="why"))
    assert one.missing() == []


def test_masks_of_one_name_are_refused_before_training() -> None:
    with pytest.raises(UserError, match="same name; rename one"):
        planned("experiment=inpaint", "experiment.rows.cdrl.evaluate.masks=[half,half.png]")


def test_seeds_of_the_command_line_come_before_a_rows_own() -> None:
    """Table 1 has more seeds than nano's other experiments."""

    def seeds(*overrides: str) -> set[tuple[int, ...]]:
        rows = planned("experiment=table1", "scale=nano", *overrides).rows
        return {tuple(one.seed for one in row.evaluations) for row in rows if row.id not in ("real", "noise")}

    assert seeds() == {(0, 1, 2, 3, 4)}
    assert seeds("scale.seeds=[7]") == {(7,)}


def test_a_row_may_have_the_iterations_of_another_or_a_number_of_its_own() -> None:
    def planned_run(*overrides: str, row: str = "long_chain_iterations") -> RunSettings:
        rows = planned("experiment=ablations", "scale=nano", *overrides).rows
        return next(one for one in rows if one.id == row).evaluations[0].run_settings

    other, same = planned_run(row="cdrl"), planned_run()
    assert isinstance(same.budget, int)
    assert isinstance(other.budget, int)
    assert planned_iterations(same) == planned_iterations(other) > 100
    assert same.budget > other.budget
    ddpm = next(row for row in planned("experiment=frontier", "scale=paper").rows if row.id == "ddpm")
    assert planned_iterations(ddpm.evaluations[0].run_settings) == 400_000
    with pytest.raises(UserError, match="iterations_of must name a row with a share of the budget, not 'nothing'"):
        planned_run("experiment.rows.long_chain_iterations.budget.iterations_of=nothing")
    with pytest.raises(UserError, match=r"budget must be a share, \{iterations: n\} or \{iterations_of: row\}"):
        planned_run("+experiment.rows.long_chain_iterations.budget.hours=3")
