"""The suite's commands: ``cdrl NAME …`` calls the function NAME here, whose docstring is its help.

Each imports what it needs when it is called, so that help comes at once; `cdrl.cli` turns what it raises into one line.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

import cdrl
from cdrl import cli
from cdrl.cli import Command, CommandParser
from cdrl.errors import UserError

_OVERRIDES = """\
usage: cdrl {command} experiment=NAME scale=NAME [KEY=VALUE …]

{summary}

    experiment=NAME     a table or figure (see the list below), or all of them
    scale=NAME          {scales}
    --cfg job           print the resolved configuration and stop
    plan=true           print what is missing and what it costs, and stop (= cdrl plan)
    device=…            auto | cpu | cuda | cuda:1
    launcher=…          {launchers}: where runs are carried out
    launcher.workers=N  runs at a time
    launcher.gpus_per_run=N   processes that train one model together
    --detach            with launcher=slurm: submit and leave; the same command later collects
    runs=…, results=…   where runs and results go
    scale.seeds=[0]     fewer seeds
    KEY=null            leave out a row or a part
    +KEY=VALUE          add a setting (both as in Hydra)

experiments:
{experiments}

examples:
  cdrl {command} experiment=table1 scale=nano
  cdrl {command} experiment=table1 scale=mini data=folder data.root=photographs metrics=fd-efficientnet-lite0
  cdrl {command} experiment=ablations scale=nano scale.seeds=[0] experiment.rows.drl=null
  cdrl run experiment=table1 scale=nano --cfg job
"""
_WEIGHTS = Path(__file__).parents[1] / "results" / "demo"
_SCALES = ("mini", "micro", "nano")
"""Of the weights that come with the repository, in order of preference."""


def run(arguments: Sequence[str]) -> int:
    """Train, sample, score and tabulate; the same command goes on where it stopped."""
    overrides, show_config, detach = _overrides(run, arguments)
    from experiments.run import run as carry_out

    return carry_out(overrides, show_config=show_config, detach=detach)


def plan(arguments: Sequence[str]) -> int:
    """What a run takes: runs, cost, and what is missing. Nothing is changed."""
    overrides, show_config, _ = _overrides(plan, arguments)
    from experiments import run as command

    return command.run(overrides, show_config=True) if show_config else command.plan(overrides)


def work(arguments: Sequence[str]) -> int:
    """Train a run, or resume it, and do every evaluation that is wanted in its folder and has no result yet. Under
    torchrun all its processes do that together, on a GPU each: at most as many as the run has shards.

    Examples:
      cdrl work runs/digits/cdrl/<hash>/seed0
      cdrl work runs/digits/*/*/seed0 --seconds 500
      torchrun --standalone --nproc-per-node=4 --no-python cdrl work runs/cifar10/cdrl/<hash>/seed0
    """
    parser = CommandParser(work)
    parser.add("folders", type=Path, nargs="+", metavar="folder", help="as cdrl run or cdrl plan names them")
    parser.add("--device")
    parser.add("--engine", default="eager", help="eager | compiled | replayed | captured")
    parser.add("--threads", type=int, help="CPU threads (default: as PyTorch chooses)")
    parser.add("--logger", default="none", help="none | tensorboard | wandb: where training can be seen")
    kept = f"keep a checkpoint after so long and exit with {cli.UNFINISHED} if something is left"
    parser.add("--seconds", type=float, help=kept)
    parser.add("--cache")
    parser.add("--retry", action="store_true", help="take up runs that were given up because they diverged")
    options = parser.parse_args(arguments)
    if options.threads is not None and options.threads < 1:
        raise UserError(f"--threads must be at least 1, not {options.threads}")
    seconds = math.inf if options.seconds is None else options.seconds
    deadline, over_at = time.time() + seconds, time.monotonic() + seconds
    from cdrl.parallel import place

    rank, size = place()
    if size > 1 and len(options.folders) > 1:
        raise UserError("torchrun's processes work on one folder together; name one, and call it for each")

    from experiments.runs.folder import RunFolder, WorkFolder
    from experiments.runs.progress import shown
    from experiments.runs.stopping import Wish, heeded
    from experiments.runs.work import Order
    from experiments.runs.work import work as work_on

    how = {"device": options.device, "engine": options.engine, "threads": options.threads, "cache": str(options.cache)}
    how |= {"logger": options.logger, "retry": options.retry}
    also = [signal.SIGINT] if size > 1 else []  # reaches every process of torchrun: the first one decides for all
    for folder in options.folders:
        wish = Wish()
        at_first = WorkFolder(folder).ask_to_stop if rank > 0 else lambda: None
        with shown(folder) if rank == 0 else nullcontext(), suppress(KeyboardInterrupt):
            outcome = "interrupted"
            with heeded(wish, at_first, lambda number: cli.last_word(cli.stopped_by(number)), also):
                outcome = work_on(Order(folder, deadline=deadline, **how), wish)
        if rank > 0:
            continue  # what there is to say, the first process says
        if outcome == "interrupted":
            if wish() or time.monotonic() < over_at:
                raise KeyboardInterrupt(wish.number or signal.SIGINT)
            print(f"{folder}: stopped after {options.seconds:g} s with something left; the same command goes on")
            return cli.UNFINISHED
        print(f"{folder}: {outcome}")
        for evaluation in RunFolder(folder).evaluations():
            result = evaluation.result()
            if result is not None and result.outcome == "failed":
                raise UserError(f"{evaluation.path}: {result.reason}")
    return 0


def watch(arguments: Sequence[str]) -> int:
    """How far runs are, read from their folders: from another terminal, or another machine that shares them.

    Examples:
      cdrl watch
      cdrl watch runs/cifar10 runs/digits/drl
    """
    parser = CommandParser(watch)
    parser.add("folders", type=Path, nargs="*", metavar="folder", help="with runs below (default: runs)")
    options = parser.parse_args(arguments)
    if missing := [folder for folder in options.folders if not folder.is_dir()]:
        raise UserError(f"there is no folder {missing[0]}; name one with runs below, such as runs")

    from experiments.runs.progress import watch as show

    try:
        return show(options.folders or [Path("runs")])
    except KeyboardInterrupt:  # the way out
        return 0


def search(arguments: Sequence[str]) -> int:
    """Search settings for a method by successive halving. Every trial is a line of
    results/search/<scale>/<method>.csv; the same command goes on where it stopped.

    Examples:
      cdrl search cdrl scale=mini --seconds 90 launcher.seconds=520
      cdrl search drl scale=nano --trials 9 --cost 1000000
    """
    parser = CommandParser(search)
    parser.add("method", help="one that has a file in experiments/conf/search")
    parser.add("overrides", nargs="*", metavar="KEY=VALUE", help="as for cdrl run")
    parser.add("--trials", default=9, help="in the first round")
    effort = parser.add_mutually_exclusive_group()
    parser.add("--seconds", default=90.0, help="of training, of all trials together", among=effort)
    parser.add("--cost", type=int, help="the same in energy-gradient evaluations × images", among=effort)
    parser.add("--samples", default=1000, help="that a trial is scored by, at most")
    options = parser.parse_intermixed_args(arguments)

    from experiments.search import search as found

    budget = {"seconds": options.seconds} if options.cost is None else options.cost
    best = found(options.method, options.overrides, trials=options.trials, budget=budget, samples=options.samples)
    if best is None:
        print("time is over; the same command goes on")
        return cli.UNFINISHED
    print(" ".join(best) or "the scale's own settings are the best")
    return 0


def score(arguments: Sequence[str]) -> int:
    """Compare a folder of images with a data set, or with another folder, by one of the suite's protocols.
    Images are cropped to their central squares and brought to the size of those that they are compared with.

    Examples:
      cdrl score samples/ --data cifar10
      cdrl score samples/ --data cifar10 --root /data/cifar10 --protocol fid-clean
      cdrl score samples/ --against photographs/
    """

    def choices(group: str) -> list[str]:  # as `configuration.choices`, without waiting for Hydra
        return sorted(path.stem for path in (Path(__file__).parent / "conf" / group).glob("*.yaml"))

    parser = CommandParser(score)
    parser.add("folder", type=Path, help="of image files, also in subfolders")
    what = parser.add_mutually_exclusive_group()
    parser.add("--data", help=f"one of {', '.join(choices('data'))} (default: digits)", among=what)
    parser.add("--against", type=Path, metavar="FOLDER", help="compare with its images", among=what)
    parser.add("--root", type=Path, metavar="FOLDER", help="where the data set is")
    parser.add("--image-size", type=int, help="compare at so many pixels (default: those of the reference)")
    parser.add("--protocol", help=f"one of {', '.join(choices('metrics'))} (default: what fits and needs no download)")
    parser.add("--device")
    parser.add("--cache")
    options = parser.parse_args(arguments)
    if options.against is not None and options.root is not None:
        raise UserError("--root is where the data set is; --against names a folder itself: leave --root out")
    if options.against is None and options.image_size is not None:
        raise UserError("--image-size is for --against; a data set has its own size")

    from experiments.metrics.compare import compare

    print(*compare(**vars(options)), sep="\n")
    return 0


def export(arguments: Sequence[str]) -> int:
    """Make a finished run a small model to share: model.json and its averaged weights, which cdrl.load and
    cdrl sample take, and origin.json, which says what run of what commit this is.

    Examples:
      cdrl export runs/digits/cdrl/<hash>/seed0 results/demo/nano
      cdrl export RUN FOLDER --full
    """
    parser = CommandParser(export)
    parser.add("run", type=Path, help="a finished run of CDRL or DRL")
    parser.add("folder", type=Path, help="where the model goes; one that is there already is replaced")
    parser.add("--full", action="store_true", help="keep 32 bits; else weights are rounded to 16")
    options = parser.parse_args(arguments)

    from cdrl import checkpoint
    from experiments import checksums
    from experiments.files import read_json, write_json
    from experiments.runs.folder import RunFolder
    from experiments.runs.trained import trained_sampler

    folder = RunFolder.open(options.run)
    status, settings = folder.finished(), folder.settings
    checkpoint.save_model(options.folder, cdrl.Model(trained_sampler(options.run)), half=not options.full)
    origin = {"run": "/".join(options.run.parts[-4:]), "data": settings.data.name, "budget": settings.budget}
    write_json(options.folder / "origin.json", {**origin, **asdict(status), "half_precision": not options.full})
    model = read_json(options.folder / "model.json")
    checksums.begin(options.folder, ["model.json", model["file"], "origin.json"])
    size = model["bytes"]
    print(f"written to {options.folder}: {size / 1e6:.1f} MB; cdrl sample {options.folder} draws from it")
    return 0


def demo(arguments: Sequence[str]) -> int:
    """Draw images from the weights that come with the repository, into build/demo.png, by cdrl sample.

    Examples:
      cdrl demo
      cdrl demo --images 100 --seed 1 --out digits.png
    """
    CommandParser(demo, "cdrl demo [any option of cdrl sample]").parse_known_args(arguments)  # --help
    from cdrl import checkpoint

    model = next((path for name in _SCALES if checkpoint.exists(path := _WEIGHTS / name, "model")), None)
    if model is None:
        raise UserError(
            f"there are no weights in {_WEIGHTS}; train (make reproduce-table1), then "
            f"cdrl export runs/digits/cdrl/<hash>/seed0 {_WEIGHTS / 'nano'}"
        )
    cli.note(f"sampling {model} …")
    placed = any(word.partition("=")[0] in ("--out", "--outdir") for word in arguments)
    return cli.sample([str(model), *([] if placed else ["--out", "build/demo.png"]), *arguments])


def report(arguments: Sequence[str]) -> int:
    """Make tables, figures and the page anew from what was measured. Figures whose arrays are not on this machine
    keep their files. Or check that all of it follows from what was recorded.

    Examples:
      cdrl report
      cdrl report --page
      cdrl report --verify
      cdrl report --animate results/demo/nano
    """
    parser = CommandParser(report)
    parser.add("--results", metavar="FOLDER", default=Path("results"))
    parser.add("--page", action="store_true", help="the page alone: leave tables and figures as they are")
    what = "trace the sampling of this run or saved model into results/demo/"
    parser.add("--animate", type=Path, metavar="MODEL", help=what)
    what = "derive everything again, README's numbers too, and exit with 1 where anything differs; nothing is written"
    parser.add("--verify", action="store_true", help=what)
    options = parser.parse_args(arguments)
    if options.verify:
        from experiments.verify import verify

        page = options.results.parent / "README.md"
        findings = verify(options.results, (page,) if page.exists() else ())
        print(findings)
        return 1 if findings.failures else 0

    from experiments.report import animation, build_all, traceable_run
    from experiments.runs.trained import trained_sampler

    demo, undrawn = options.results / "demo", list[str]()
    trace = options.animate and trained_sampler(options.animate)
    if trace is None and not animation.complete(demo) and (first := traceable_run(options.results)):
        try:
            trace = trained_sampler(first.path)
        except UserError as error:  # nobody asked for this run: the rest does without it
            undrawn.append(f"{demo / 'trajectory'} could not be drawn: {error}")
    cli.note(f"making {'the page' if options.page else 'tables, figures and the page'} from {options.results} …")
    print(*build_all(options.results, page_only=options.page, trace=trace, say=undrawn.append), sep="\n")
    for line in undrawn:
        cli.note(line)
    return 1 if undrawn else 0


def doctor(arguments: Sequence[str]) -> int:
    """Which data, weights and statistics are here, where the others belong, and what waits for them. Nothing is
    downloaded or computed.

    Examples:
      cdrl doctor
    """
    CommandParser(doctor).parse_args(arguments)
    from experiments import doctor as inventory

    return inventory.main([])


def _overrides(command: Command, arguments: Sequence[str]) -> tuple[list[str], bool, bool]:
    """The overrides, and whether ``--cfg job`` and ``--detach`` stood anywhere among them; or help, and the end."""
    if {"--help", "-h"} & set(arguments):
        from experiments.configuration import choices, manifest

        titles = [f"    {name:<20}{manifest(name).experiment.title}" for name in choices("experiment")]
        groups = {"scales": " | ".join(choices("scale")), "launchers": " | ".join(choices("launcher"))}
        words = {"command": command.__name__, "summary": command.__doc__, "experiments": "\n".join(titles)}
        print(_OVERRIDES.format(**words, **groups))
        raise SystemExit
    overrides = list(arguments)
    if show_config := "--cfg" in overrides:
        place = overrides.index("--cfg")
        if overrides[place + 1 : place + 2] != ["job"]:
            raise UserError("write --cfg job, which prints the resolved configuration")
        del overrides[place : place + 2]
    if detach := "--detach" in overrides:
        overrides.remove("--detach")
    if unknown := [word for word in overrides if word.startswith("-")]:
        raise UserError(f"unknown option {unknown[0]}; --help shows what there is")
    return overrides, show_config, detach
