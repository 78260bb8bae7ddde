"""The command ``cdrl``: what holds for all its commands, and the two that need the library alone, sample and inpaint.

The other commands are the suite's. In a checkout, where ``experiments/`` lies beside this package, each is a function
of `experiments.cli` with the command's name. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import inspect
import io
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import cdrl
from cdrl.errors import UserError, storage_trouble

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cdrl.conditions import Condition
    from cdrl.sampler import Sampler

Command = Callable[[Sequence[str]], int]
"""From a command's arguments to its exit code."""
UNFINISHED = 75
"""The exit code of a command that stopped as it was asked to, with something left; repeated, it goes on."""
DIVERGED = 4
"""The exit code of a command that did everything, where every seed of a row diverged, so that it has no number."""
COMMANDS = {
    "Experiments": {
        "run": "train, sample, score and tabulate a table or figure; goes on where an earlier call stopped",
        "plan": "what that takes: runs, cost, and what is missing; changes nothing",
        "work": "train and evaluate one run folder",
        "watch": "how far runs are, from another terminal or machine",
        "search": "settings for a method, every trial on record",
    },
    "Models": {
        "sample": "draw images, as one picture or as single files",
        "inpaint": "complete a picture",
        "score": "compare a folder of images with a data set or with another folder",
        "export": "make a finished run a small model to share",
        "demo": "draw images from the weights that come with the repository",
    },
    "Results": {
        "report": "tables, figures and the page results/report.html from what was measured",
        "doctor": "which data, weights and statistics are here, and where the others belong",
    },
}
"""Every command by what it is about, with its line in the overview."""
_SHARED: dict[str, dict[str, Any]] = {
    "model": {"type": Path, "help": "a folder: a saved model, or in a checkout a finished run"},
    "--device": {"default": "auto", "help": "auto | cpu | cuda | cuda:1"},
    "--cache": {"default": Path(".cache"), "help": "weights and statistics"},
}
"""Arguments that several commands have."""
_EXAMPLES = """\
  cdrl run experiment=table1 scale=nano
  cdrl sample results/demo/nano --images 64 --out samples.png
  cdrl score samples/ --against photographs/"""
_SECONDS_BETWEEN_LINES = 10.0
_BROKEN_PIPE = 128 + 13
"""What a shell says of a command that SIGPIPE ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: None for the process's own.

    Returns:
        The exit code: 0 done, 1 a mistake that can be mended, `DIVERGED`, `UNFINISHED`, 141 nobody reads on, and 128
        plus the signal's number where one stopped it: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, 138 SIGUSR1.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):  # a terminal that has no "…" shows a question mark
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with _stopped_like_interrupted():
            try:
                code = _command(arguments)
            except SystemExit as leaving:  # argparse, after --help; rich, when nobody reads on
                code = _BROKEN_PIPE if isinstance(leaving.__context__, BrokenPipeError) else int(leaving.code or 0)
            except UserError as error:
                last_word(f"error: {error}")
                code = 1
            except OSError as error:
                if (words := storage_trouble(error)) is None:
                    raise
                last_word(f"error: {words}")
                code = 1
            except KeyboardInterrupt as stopped:
                number = stopped.args[0] if stopped.args else signal.SIGINT
                last_word(stopped_by(number))
                code = 128 + number
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        # Nobody reads on, as after ``| head``: leave without a word. A pipe to anything else that broke is an error.
        streams = [sys.stdout.fileno(), sys.stderr.fileno()]
        pipes = select.poll()
        for stream in streams:
            pipes.register(stream, 0)  # which still tells of a reader that is gone
        if not pipes.poll(0):
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in streams:
            os.dup2(nowhere, stream)  # what is still in a buffer has to go somewhere
        return _BROKEN_PIPE


def _command(arguments: list[str]) -> int:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"cdrl {cdrl.__version__}")
        return 0
    own: dict[str, Command] = {"sample": sample, "inpaint": inpaint}
    if name in own:
        return own[name](rest)
    names = [known for group in COMMANDS.values() for known in group]
    if name not in names:
        near = [f"run {name}"] if "=" in name else difflib.get_close_matches(name, names, 1)
        hint = f"did you mean 'cdrl {near[0]}'? " if near else ""
        raise UserError(f"unknown command '{name}'; {hint}cdrl --help lists them")
    suite = _suite()
    if suite is None:
        raise UserError(f"{name} belongs to the suite, which runs from a checkout: clone the repository, make setup")
    try:
        return int(getattr(suite, name)(rest))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("cdrl", "baselines", "experiments"):
            raise
        raise UserError(f"{name} needs {error.name}; make setup installs it, or pip install -e '.[suite]'") from error


def _overview() -> str:
    lines = [
        "usage: cdrl COMMAND …          cdrl COMMAND --help: its options, with examples",
        "",
        "Energy-based models by cooperative diffusion recovery likelihood: reproduce, sample, compare.",
    ]
    for title, group in COMMANDS.items():
        lines += ["", title, *(f"  {name:<10}{summary}" for name, summary in group.items())]
    lines += ["", "Examples", _EXAMPLES]
    if _suite() is None:
        lines += ["", "The library alone is installed: of these it has sample and inpaint; the others need a checkout."]
    return "\n".join(lines)


def _suite() -> ModuleType | None:
    """The suite's commands, where this package lies in a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "pyproject.toml").is_file() or not (root / "experiments" / "cli.py").is_file():
        return None
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module("experiments.cli")


def stop_signals() -> list[int]:
    """The signals that ask to stop, besides Ctrl-C: what a person, a terminal that is closed, and a queue send.

    One that was ignored from the start, as by nohup, stays ignored; SIGTERM never is.
    """
    names = [name for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]  # Windows has but one
    numbers = [int(getattr(signal, name)) for name in names]
    return [one for one in numbers if one == signal.SIGTERM or signal.getsignal(one) is not signal.SIG_IGN]


@contextmanager
def _stopped_like_interrupted() -> Iterator[None]:
    """`stop_signals` do what Ctrl-C does, once: further ones come while the work is being stopped, and are ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = stop_signals()

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt(signum)

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped_by(number: int) -> str:
    """What a command says that a signal stopped."""
    how = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    return f"{how}; the same command continues where this one stopped"


def last_word(text: str) -> None:
    """On stderr, unless that is gone with its terminal."""
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        raise
    except OSError:
        pass


class CommandParser(argparse.ArgumentParser):
    """The arguments of one command; a mistake in them is a `UserError`.

    Args:
        command: its docstring is its help: what it does, and then ``Examples:``.
        usage: in place of the one that names every argument.
    """

    def __init__(self, command: Command, usage: str | None = None) -> None:
        description, _, examples = inspect.getdoc(command).partition("\n\nExamples:\n")  # type: ignore[union-attr]
        super().__init__(
            prog=f"cdrl {command.__name__}",
            usage=usage,
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def add(self, name: str, *, among: argparse._ActionsContainer | None = None, **settings: Any) -> None:
        """`add_argument`, where a default gives the type and ends the help; ``among`` is a group of alternatives."""
        settings = {**_SHARED.get(name, {}), **settings}
        default = settings.get("default")
        if default is not None:
            settings["type"] = Path if isinstance(default, Path) else type(default)
            shown = default if isinstance(default, str | Path) else f"{default:,}".removesuffix(".0")
            settings["help"] = f"{settings.get('help', '')} (default: {shown})".lstrip()
        if settings.get("type") is Path:
            settings["type"] = _path
        (among or self).add_argument(name, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows what there is")


def _path(text: str) -> Path:
    """A path as it was written; the shell leaves the ``~`` of ``--root=~/images`` to us."""
    return Path(os.path.expanduser(text))


def note(text: str) -> None:
    """Something to know beside the result, on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(title: str, total: float) -> Iterator[Callable[[float], None]]:
    """Yields a function to call with how much was just done of ``total``; shows share and time left on stderr.

    A bar on a terminal where rich is installed, else a line now and then.
    """
    begin = latest = time.monotonic()
    done = 0.0

    def line(amount: float) -> None:
        nonlocal latest, done
        done += amount
        now = time.monotonic()
        if now - latest >= _SECONDS_BETWEEN_LINES:
            latest = now
            left = (now - begin) * (total - done) / done
            note(f"{title}: {100 * done / total:.0f} %, about {left:.0f} s left")

    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=total)
        yield lambda amount: bars.advance(task, amount)


def sample(arguments: Sequence[str]) -> int:
    """Draw images from a trained model. Image i depends on the seed, on i and on what is asked for alone.

    Examples:
      cdrl sample results/demo/nano --images 64 --out samples.png
      cdrl sample runs/digits/cdrl/<hash>/seed0 --label 3 --guidance 0.7
      cdrl sample MODEL --images 10000 --outdir samples/        single images, as cdrl score takes them
    """
    parser = CommandParser(sample)
    parser.add("model")
    parser.add("--images", default=36, help="how many")
    parser.add("--seed", default=0, help="of the samples")
    parser.add("--label", type=int, help="a class, 0 … C − 1, of a class-conditional model")
    parser.add("--guidance", default=0.0, help="weight of classifier-free guidance")
    parser.add("--out", type=Path, metavar="FILE", help="all in one picture (default: samples.png)")
    parser.add("--outdir", type=Path, metavar="FOLDER", help="each in a file of its own: 000000.png …")
    parser.add("--device")
    options = parser.parse_args(arguments)
    if options.images < 1:
        raise UserError(f"--images must be at least 1, not {options.images}")
    out, outdir = options.out, options.outdir
    if outdir is None:
        out = out or Path("samples.png")
    else:
        _prepare_folder(outdir, options.images)

    from cdrl import pictures

    if out is not None:
        pictures.check_writable(out)
    sampler = _sampler(options.model, options.device)
    condition = _label_condition(sampler.energy_net.classes, options.label, options.guidance)

    begin = time.monotonic()
    shown: list[NDArray[np.uint8]] = []
    finite = 0
    for number, pixels in enumerate(draw(sampler, options.images, options.seed, condition)):
        if outdir is not None:
            file = outdir / f"{number:06}.png"
            file.unlink(missing_ok=True)  # an earlier call may have drawn it
        if pixels is None:
            continue
        finite += 1
        if outdir is not None:
            pictures.save(pictures.from_pixels(pixels), file)
        if out is not None:
            shown.append(pixels)
    print(f"sampled {options.images:,} images in {time.monotonic() - begin:.1f} s on {sampler.device}")
    if shown:
        pictures.save(pictures.grid(shown, math.isqrt(len(shown) - 1) + 1), out)
    if finite:
        print("written to " + " and ".join(str(path) for path in (outdir, out) if path is not None))
    _check_finite(options.images - finite, options.images)
    return 0


def inpaint(arguments: Sequence[str]) -> int:
    """Complete a picture: the picture with its hole in grey, then several completions, in a row.

    Examples:
      cdrl inpaint results/demo/nano photo.png mask.png --completions 8 --out completions.png
    """
    parser = CommandParser(inpaint)
    parser.add("model")
    parser.add("image", type=Path, help="a picture; its central square is brought to the model's size")
    parser.add("mask", type=Path, help="a picture of the same shape whose white pixels are known")
    parser.add("--completions", default=6, help="how many")
    parser.add("--repeats", default=2, help="passes through each level besides the first")
    parser.add("--seed", default=0, help="of the completions")
    parser.add("--out", metavar="FILE", default=Path("completions.png"))
    parser.add("--device")
    options = parser.parse_args(arguments)
    if options.completions < 1:
        raise UserError(f"--completions must be at least 1, not {options.completions}")

    import numpy as np
    import torch

    from cdrl import conditions, pictures

    pictures.check_writable(options.out)
    sampler = _sampler(options.model, options.device)
    channels, size, _ = sampler.shape
    mode = "RGB" if channels == 3 else "L"
    photo = pictures.picture(str(options.image), options.image, mode, pictures.upright)
    truth = np.asarray(pictures.central_square(photo, size)).reshape(size, size, channels)
    known = pictures.mask_from_picture(options.mask, photo.size, size)
    if known.all():
        raise UserError(
            f"{options.mask} is white in its whole central square, so nothing is missing; paint a black hole there"
        )
    condition = conditions.unconditional().inpainting(
        pictures.to_float(truth[None]), torch.from_numpy(known)[None, None], options.repeats
    )
    completions = list(draw(sampler, options.completions, options.seed, condition))
    shown = [np.where(known[..., None], truth, np.uint8(128)), *(one for one in completions if one is not None)]
    pictures.save(pictures.grid(shown, len(shown), width=max(600, 100 * len(shown))), options.out)
    print(f"written to {options.out}")
    _check_finite(sum(one is None for one in completions), options.completions)
    return 0


def draw(
    sampler: Sampler, n: int, seed: int = 0, condition: Condition | None = None, batch_size: int = 100
) -> Iterator[NDArray[np.uint8] | None]:
    """Images 0 … n − 1 as pixels ``(H, W, C)``, with progress; None in place of one that is not finite or ran away."""
    from cdrl.pictures import to_uint8
    from cdrl.sampler import index_batches

    passes = sampler.schedule.levels * (1 + (condition.repeats if condition is not None else 0))
    with progress("sampling", n * passes) as advance:
        for index in index_batches(n, batch_size):
            images = sampler(
                index, seed, condition, lambda stage, level, x: advance(len(x) if stage == "refined" else 0)
            )
            finite = images.isfinite().flatten(1).all(dim=1)
            pixels = iter(to_uint8(images[finite]).cpu().numpy())
            yield from (next(pixels) if usable else None for usable in finite.tolist())


def _label_condition(classes: int, label: int | None, guidance: float) -> Condition | None:
    """What ``--label`` and ``--guidance`` ask of a model with so many classes. Raises `UserError` where it cannot."""
    from cdrl import conditions

    if label is None:
        if guidance:
            raise UserError("--guidance leads towards a class: name it with --label")
        return None
    if not classes:
        raise UserError("this model was trained without classes: leave --label out, or sample a conditional run")
    if not 0 <= label < classes:
        raise UserError(f"--label must be one of the model's classes 0 … {classes - 1}, not {label}")
    if not guidance >= 0:
        raise UserError(f"--guidance must be 0 or more, not {guidance}")
    return conditions.guided([1 + label], guidance)


def _sampler(folder: Path, device: str) -> Sampler:
    """Of a saved model, or with the suite of a run folder. Raises `UserError` where there is neither, or no device."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if (folder / "model.json").is_file() or _suite() is None:
        sampler = cdrl.load(folder).sampler
    else:
        sampler = importlib.import_module("experiments.runs.trained").trained_sampler(folder)
    try:
        for network in (sampler.energy_net, sampler.initializer):
            if network is not None:
                network.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"cannot use device '{device}' ({str(error).splitlines()[0]}); use cpu") from None
    return sampler


def _prepare_folder(folder: Path, n: int) -> None:
    """Makes a folder for images 0 … n − 1. Raises `UserError` where others lie there or nothing can be written."""
    from PIL import Image

    suffixes = Image.registered_extensions()
    ours = {f"{number:06}.png" for number in range(n)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(path.name for path in folder.iterdir() if path.suffix in suffixes and path.name not in ours)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); choose another folder with --outdir") from error
    if others:
        raise UserError(
            f"{folder} holds {others[0]}, which is none of these samples; empty it, or choose another folder"
        )
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to {folder}; choose another folder with --outdir")


def _check_finite(lost: int, n: int) -> None:
    if lost:
        raise UserError(
            f"{lost:,} of {n:,} images are not finite or ran away, and were left out; the model diverged: use another "
            "run or an earlier checkpoint"
        )
