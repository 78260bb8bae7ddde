"""The suite's commands: ``cdrl NAME …`` calls the function NAME here; `cdrl.cli` turns what it raises into one line.

Each imports what it needs when it is called, so that help comes at once.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cdrl import cli
from cdrl.cli import CommandParser, progress
from cdrl.errors import UserError

if TYPE_CHECKING:
    from experiments.data import ImageSet
    from experiments.metrics import Protocol

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
_PROTOCOLS = ("fd-digits", "fd-efficientnet-lite0")
"""Those that need no download, in order of preference."""
_STOPPED = 75
"""The exit code where something is left that the same command goes on with (sysexits.h: EX_TEMPFAIL)."""


def run(arguments: Sequence[str]) -> int:
    """``cdrl run``."""
    if _wants_help(arguments):
        return _overrides_help("run", "Train, sample, score and tabulate; the same command goes on where it stopped.")
    overrides, show_config, detach = _overrides(arguments)
    from experiments.run import run as carry_out

    return carry_out(overrides, show_config=show_config, detach=detach)


def plan(arguments: Sequence[str]) -> int:
    """``cdrl plan``."""
    if _wants_help(arguments):
        return _overrides_help("plan", "What a run takes: runs, cost, and what is missing. Nothing is changed.")
    overrides, show_config, _ = _overrides(arguments)
    from experiments import run as command

    return command.run(overrides, show_config=True) if show_config else command.plan(overrides)


def work(arguments: Sequence[str]) -> int:
    """``cdrl work``."""
    parser = CommandParser(
        "work",
        "Train a run, or resume it, and do every evaluation that is wanted in its folder and has no result yet.",
        ["cdrl work runs/digits/cdrl/<hash>/seed0", "cdrl work runs/digits/*/*/seed0 --seconds 500"],
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="folder", help="as cdrl run or cdrl plan names them")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 (default: auto)")
    parser.add_argument("--engine", default="eager", help="eager | compiled | replayed | captured (default: eager)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as PyTorch chooses)")
    parser.add_argument(
        "--seconds", type=float, help=f"keep a checkpoint after so long and exit with {_STOPPED} if something is left"
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="weights and statistics (default: .cache)")
    options = parser.parse_args(arguments)
    if options.threads is not None and options.threads < 1:
        raise UserError(f"--threads must be at least 1, not {options.threads}")
    begin = time.monotonic()

    from experiments.runs.work import Order
    from experiments.runs.work import work as work_on

    for folder in options.folders:
        with _shown(folder):
            deadline = math.inf if options.seconds is None else time.time() + options.seconds - time.monotonic() + begin
            outcome = work_on(
                Order(
                    folder,
                    device=options.device,
                    engine=options.engine,
                    cache=str(options.cache),
                    threads=options.threads,
                    deadline=deadline,
                )
            )
        if outcome == "interrupted":
            if options.seconds is None or time.monotonic() - begin < options.seconds:
                raise KeyboardInterrupt
            print(f"{folder}: stopped after {options.seconds:g} s with something left; the same command goes on")
            return _STOPPED
        print(f"{folder}: {outcome}")
    return 0


def watch(arguments: Sequence[str]) -> int:
    """``cdrl watch``."""
    parser = CommandParser(
        "watch",
        "How far runs are, read from their folders: from another terminal, or another machine that shares them.",
        ["cdrl watch", "cdrl watch runs/cifar10 runs/digits/drl"],
    )
    parser.add_argument("folders", type=Path, nargs="*", metavar="folder", help="with runs below (default: runs)")
    options = parser.parse_args(arguments)
    for folder in options.folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}; name one with runs below, such as runs")

    from experiments.runs.progress import watch as show

    try:
        return show(options.folders or [Path("runs")])
    except KeyboardInterrupt:  # the way out
        return 0


def score(arguments: Sequence[str]) -> int:
    """``cdrl score``."""
    parser = CommandParser(
        "score",
        "Compare a folder of images with a data set, or with another folder, by one of the suite's protocols.\n"
        "Images are cropped to their central squares and brought to the size of those that they are compared with.",
        [
            "cdrl score samples/ --data cifar10",
            "cdrl score samples/ --data cifar10 --root /data/cifar10 --protocol fid-clean",
            "cdrl score samples/ --against photographs/",
        ],
    )
    parser.add_argument("folder", type=Path, help="of image files, also in subfolders")
    reference = parser.add_mutually_exclusive_group()
    reference.add_argument("--data", help=f"one of {', '.join(_names('data'))} (default: digits)")
    reference.add_argument("--against", type=Path, metavar="FOLDER", help="compare with its images")
    parser.add_argument("--root", type=Path, metavar="FOLDER", help="where the data set is")
    parser.add_argument("--image-size", type=int, help="compare at so many pixels (default: those of the reference)")
    parser.add_argument(
        "--protocol", help=f"one of {', '.join(_names('metrics'))} (default: what fits and needs no download)"
    )
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 (default: auto)")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="weights and statistics (default: .cache)")
    options = parser.parse_args(arguments)
    if options.against is not None and options.root is not None:
        raise UserError("--root is where the data set is; --against names a folder itself: leave --root out")
    if options.against is None and options.image_size is not None:
        raise UserError("--image-size is for --against; a data set has its own size")

    import numpy as np
    import torch

    from cdrl import pictures
    from experiments.metrics import Scorer
    from experiments.runs.machine import resolve_device

    # What is compared with what, and how; what does not fit is said before anything is decoded.
    files = _image_files(options.folder)
    if options.against is not None:
        real, protocol = _folder_images(options.against, options.image_size, options.protocol, options.cache)
    else:
        real, protocol = _data_images(options.data or "digits", options.root, options.protocol)
    size, channels = real.image_size, real.channels
    first = pictures.picture(str(files[0]), files[0], "RGB", pictures.upright)
    if first.size != (size, size):
        cli.note(f"note: images of {first.width}x{first.height} pixels are compared at {size}x{size}")
    if len(files) < protocol.samples:
        cli.note(
            f"warning: {protocol.name} asks for {protocol.samples:,} images and {options.folder} holds {len(files):,}; "
            "fewer images give larger distances, so compare only with numbers of as many"
        )

    # The reference's statistics, then the images.
    scorer = Scorer(protocol, real, options.cache, resolve_device(options.device))
    mode = "RGB" if channels == 3 else "L"
    with progress(f"scoring {options.folder}", len(files)) as advance:
        for start in range(0, len(files), 100):
            batch = [
                np.asarray(pictures.picture(str(path), path, mode, pictures.photograph(size)))
                for path in files[start : start + 100]
            ]
            pixels = torch.from_numpy(np.stack(batch).reshape(-1, size, size, channels))
            scorer.update(pixels if protocol.rounding else pixels.float())
            advance(len(batch))
    source = f"{len(files):,} images against {scorer.reference_samples:,} of {options.against or real.name}"
    for name, value in scorer.result().items():
        print(f"{name:<12}{value:.6g}   ({protocol.name}, {source})")
    return 0


def export(arguments: Sequence[str]) -> int:
    """``cdrl export``."""
    parser = CommandParser(
        "export",
        "Make a finished run a small model to share: model.json and its averaged weights, which cdrl.load and\n"
        "cdrl sample take, and origin.json, which says what run of what commit this is.",
        ["cdrl export runs/digits/cdrl/<hash>/seed0 results/demo/nano", "cdrl export RUN FOLDER --full"],
    )
    parser.add_argument("run", type=Path, help="a finished run of CDRL or DRL")
    parser.add_argument("folder", type=Path, help="where the model goes; one that is there already is replaced")
    parser.add_argument("--full", action="store_true", help="keep 32 bits; else weights are rounded to 16")
    options = parser.parse_args(arguments)

    from dataclasses import asdict

    import cdrl
    from cdrl import checkpoint
    from experiments.files import read_json, write_json
    from experiments.runs.folder import RunFolder
    from experiments.runs.trained import trained_sampler

    folder = RunFolder.open(options.run)
    status, settings = folder.finished(), folder.settings
    checkpoint.save_model(options.folder, cdrl.Model(trained_sampler(options.run)), half=not options.full)
    origin = {"run": "/".join(options.run.parts[-4:]), "data": settings.data.name, "budget": settings.budget}
    write_json(options.folder / "origin.json", {**origin, **asdict(status), "half_precision": not options.full})
    size = read_json(options.folder / "model.json")["bytes"]
    print(f"written to {options.folder}: {size / 1e6:.1f} MB; cdrl sample {options.folder} draws from it")
    return 0


def demo(arguments: Sequence[str]) -> int:
    """``cdrl demo``."""
    if _wants_help(arguments):
        parser = CommandParser(
            "demo",
            "Draw images from the weights that come with the repository, into build/demo.png, by cdrl sample.",
            ["cdrl demo", "cdrl demo --images 100 --seed 1 --out digits.png"],
        )
        parser.usage = "cdrl demo [any option of cdrl sample]"
        parser.print_help()
        return 0
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


def search(arguments: Sequence[str]) -> int:
    """``cdrl search``."""
    parser = CommandParser(
        "search",
        "Search settings for a method by successive halving. Every trial is a line of\n"
        "results/search/<scale>/<method>.csv; the same command goes on where it stopped.",
        [
            "cdrl search cdrl scale=mini --seconds 90 launcher.seconds=520",
            "cdrl search drl scale=nano --trials 9 --cost 1000000",
        ],
    )
    parser.add_argument("method", help="one that has a file in experiments/conf/search")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for cdrl run")
    parser.add_argument("--trials", type=int, default=9, help="in the first round (default: 9)")
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--seconds", type=float, default=90.0, help="of training, of all trials together (default: 90)")
    effort.add_argument("--cost", type=int, help="the same in energy-gradient evaluations × images")
    parser.add_argument("--samples", type=int, default=1000, help="that a trial is scored by, at most (default: 1,000)")
    options = parser.parse_intermixed_args(arguments)

    from experiments.search import search as best_settings

    best = best_settings(
        options.method,
        options.overrides,
        trials=options.trials,
        budget={"seconds": options.seconds} if options.cost is None else options.cost,
        samples=options.samples,
    )
    if best is None:
        print("time is over; the same command goes on")
        return _STOPPED
    print(" ".join(best) or "the scale's own settings are the best")
    return 0


def report(arguments: Sequence[str]) -> int:
    """``cdrl report``."""
    parser = CommandParser(
        "report",
        "Make tables, figures and the page anew from what was measured. Figures whose arrays are not on this machine\n"
        "keep their files.",
        ["cdrl report", "cdrl report --page", "cdrl report --animate results/demo/nano"],
    )
    parser.add_argument("--results", type=Path, metavar="FOLDER", default=Path("results"), help="(default: results)")
    parser.add_argument("--page", action="store_true", help="the page alone: leave tables and figures as they are")
    parser.add_argument(
        "--animate", type=Path, metavar="MODEL", help="trace the sampling of this run or saved model into results/demo/"
    )
    options = parser.parse_args(arguments)

    from experiments.report import build_all, traceable_run
    from experiments.runs.trained import trained_sampler

    model = options.animate
    if model is None and not (options.results / "demo" / "trajectory.png").exists():
        first = traceable_run(options.results)
        model = None if first is None else first.path
    cli.note(f"making {'the page' if options.page else 'tables, figures and the page'} from {options.results} …")
    trace = None if model is None else trained_sampler(model)
    print("\n".join(build_all(options.results, page_only=options.page, trace=trace)))
    return 0


def doctor(arguments: Sequence[str]) -> int:
    """``cdrl doctor``."""
    CommandParser(
        "doctor",
        "Which data, weights and statistics are here, where the others belong, and what waits for them. Nothing is\n"
        "downloaded or computed.",
        ["cdrl doctor"],
    ).parse_args(arguments)

    from experiments import doctor as inventory

    return inventory.main([])


def _wants_help(arguments: Sequence[str]) -> bool:
    return "--help" in arguments or "-h" in arguments


def _overrides(arguments: Sequence[str]) -> tuple[list[str], bool, bool]:
    """The overrides, and whether ``--cfg job`` and ``--detach`` stood anywhere among them."""
    overrides, show_config, detach = list(arguments), False, False
    if "--cfg" in overrides:
        place = overrides.index("--cfg")
        if overrides[place + 1 : place + 2] != ["job"]:
            raise UserError("write --cfg job, which prints the resolved configuration")
        del overrides[place : place + 2]
        show_config = True
    if "--detach" in overrides:
        overrides.remove("--detach")
        detach = True
    if unknown := [word for word in overrides if word.startswith("-")]:
        raise UserError(f"unknown option {unknown[0]}; --help shows what there is")
    return overrides, show_config, detach


def _overrides_help(command: str, summary: str) -> int:
    from experiments import configuration

    titles = [
        f"    {name:<20}{configuration.manifest(name).experiment.title}" for name in configuration.choices("experiment")
    ]
    print(
        _OVERRIDES.format(
            command=command,
            summary=summary,
            scales=" | ".join(_names("scale")),
            launchers=" | ".join(_names("launcher")),
            experiments="\n".join(titles),
        )
    )
    return 0


def _names(group: str) -> list[str]:
    """The choices of a configuration group."""
    return sorted(path.stem for path in (Path(__file__).parent / "conf" / group).glob("*.yaml"))


@contextmanager
def _shown(folder: Path) -> Iterator[None]:
    """Shows how far the work on a run folder is, and the time left."""
    from experiments.runs.folder import RunFolder
    from experiments.runs.progress import Board, Item

    run = RunFolder(folder)
    pending = sum(not evaluation.done for evaluation in run.evaluations())
    item = Item(str(folder), run, training=float(run.status() is None), evaluations=max(1, pending))
    over = threading.Event()
    with Board("work", [item]) as board:

        def follow() -> None:
            while not over.wait(0.5):
                board.refresh()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _image_files(folder: Path) -> list[Path]:
    from experiments.data import decoding

    files = decoding.images_below(folder) if folder.is_dir() else []
    if len(files) < 2:
        raise UserError(f"{folder} holds {len(files)} images; name a folder of at least two image files")
    return files


def _protocol(name: str | None, channels: int, size: int) -> Protocol:
    """The named protocol, or one that fits, without what needs labels. Raises `UserError` where it does not fit."""
    from dataclasses import replace

    from experiments.metrics import protocols
    from experiments.metrics.extractors import accepts

    candidates = [protocols.load(known) for known in ([name] if name else _PROTOCOLS)]
    protocol = next((one for one in candidates if accepts(one.extractor, channels, size)), candidates[0])
    protocol.check_fits(channels, size)
    return replace(protocol, metrics=tuple(metric for metric in protocol.metrics if metric != "class_accuracy"))


def _data_images(name: str, root: Path | None, protocol_name: str | None) -> tuple[ImageSet, Protocol]:
    from dataclasses import replace

    from experiments import configuration
    from experiments.data import DataSettings

    settings = DataSettings(**configuration.plain(configuration.resolve([f"data={name}"]))["data"])
    protocol = _protocol(protocol_name, settings.channels, settings.image_size)
    return replace(settings, root=None if root is None else str(root)).load(protocol.reference_split), protocol


def _folder_images(folder: Path, size: int | None, protocol_name: str | None, cache: Path) -> tuple[ImageSet, Protocol]:
    """All images of a folder as a reference set, grey or in colour and as large as the first."""
    from PIL import Image

    from cdrl import pictures
    from experiments.data import decoding, store

    files = _image_files(folder)
    first = pictures.picture(str(files[0]), files[0], "RGB", pictures.upright)
    with Image.open(files[0]) as image:
        channels = 1 if image.mode in ("1", "L", "LA", "I", "I;16") else 3
    side = size or min(first.size)
    if side < 4:
        raise UserError(f"images of {side} pixels are too small to compare; give --image-size 4 or more")
    protocol = _protocol(protocol_name, channels, side)

    def decode(allocate: store.Allocate) -> store.Decoded:
        decoding.fill(
            allocate(len(files), side, channels),
            decoding.encoded(files),
            pictures.photograph(side),
            f"reading {folder}",
        )
        return store.Decoded()

    recipe = store.Recipe(decode, f"folder {folder}", files, {"image_size": side, "channels": channels})
    return store.materialise(recipe, cache, folder.name, protocol.reference_split), protocol
