"""Use trained models and protocols from the command line.

    cdrl sample RUN --images 36 --label 3 --guidance 0.7 --out samples.png
    cdrl inpaint RUN photo.png mask.png --completions 8 --out completions.png
    cdrl score FOLDER --data cifar10 --protocol fd-efficientnet-lite0

RUN is a finished run (runs/<data set>/cdrl/<hash>/seed0) or a saved model (results/demo/nano).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from cdrl import Model, conditions
from cdrl.conditions import Condition
from cdrl.errors import UserError
from experiments import configuration, data
from experiments.data import decoding, tree
from experiments.evaluate.inpaint import mask_from_picture
from experiments.metrics import Protocol, Scorer
from experiments.report.animation import trained_sampler
from experiments.report.figures.common import tile

_WIDTH = 600
"""Pixels across a picture of samples, about."""
_BATCH = 100


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.act(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def script() -> int:
    """The console script ``cdrl``."""
    return main(sys.argv[1:])


def sample(model: Model, images: int, seed: int = 0, condition: Condition | None = None) -> Image.Image:
    """A square grid of ``images`` samples; image i depends on (seed, i) and its condition alone.

    Raises:
        UserError: nothing to draw.
    """
    if images < 1:
        raise UserError(f"--images must be at least 1, not {images}")
    return grid(_drawn(model, images, seed, condition), int(np.ceil(images**0.5)))


def label_condition(classes: int, label: int | None, guidance: float) -> Condition | None:
    """What ``--label`` (0 … classes − 1) and ``--guidance`` ask of a model with so many classes; None for nothing.

    Raises:
        UserError: the model does not know the label, or guidance leads nowhere.
    """
    if label is None:
        if guidance:
            raise UserError("--guidance leads towards a class: name it with --label")
        return None
    if not classes:
        raise UserError("this model was trained without classes: leave --label out, or sample a conditional run")
    if not 0 <= label < classes:
        raise UserError(f"--label must be one of the model's classes 0 … {classes - 1}, not {label}")
    if guidance < 0:
        raise UserError(f"--guidance must be 0 or more, not {guidance}")
    return conditions.guided([1 + label], guidance)


def inpaint(model: Model, picture: Path, mask: Path, completions: int, seed: int, repeats: int) -> Image.Image:
    """The picture with its hole in grey, then ``completions`` completions, in a row.

    Args:
        model: a trained model.
        picture: an image; cropped to a square and brought to the model's size.
        mask: a picture of the same shape whose white pixels are known; cropped in the same way.
        completions: how many.
        seed: of the completions.
        repeats: see `cdrl.conditions.Condition`.

    Raises:
        UserError: a picture cannot be read, the mask has another shape, or there is nothing to complete.
    """
    if completions < 1:
        raise UserError(f"--completions must be at least 1, not {completions}")
    channels, size, _ = model.sampler.shape
    photo = decoding.picture(str(picture), picture, _mode(channels), decoding.upright)
    truth = np.asarray(decoding.central_square(photo, size)).reshape(size, size, channels)
    known = mask_from_picture(mask, photo.size, size)
    if known.all():
        raise UserError(f"{mask} is white in its whole central square, so nothing is missing; paint a black hole there")
    pixels = torch.from_numpy(known)[None, None]
    condition = conditions.unconditional().inpainting(data.to_float(truth[None]), pixels, repeats)
    shown = np.where(known[..., None], truth, 128).astype(np.uint8)
    return grid(np.concatenate([shown[None], _drawn(model, completions, seed, condition)]), completions + 1)


def score(folder: Path, protocol: Protocol, dataset: str, root: Path | None, cache: Path) -> dict[str, float]:
    """A protocol's metrics of a folder's images against a data set; ``class_accuracy`` has no meaning here.

    Raises:
        UserError: no images, one that cannot be read, data or weights that are missing, or a protocol that does not
            fit the data set.
    """
    files = tree.images_in(folder) if folder.is_dir() else []
    if len(files) < 2:
        raise UserError(f"{folder} holds {len(files)} images; name a folder of at least two image files")
    settings = configuration.plain(configuration.resolve([f"data={dataset}"]))["data"]
    protocol.check_fits(settings["channels"], settings["image_size"])  # decoding may take minutes
    real = data.load_config({**settings, "root": root and str(root)}, protocol.reference_split)
    scorer = Scorer(protocol, real, cache)
    starts = range(0, len(files), _BATCH)
    for start in track(starts, "scoring", console=Console(stderr=True), transient=True):
        batch = [read(path, real.image_size, real.channels) for path in files[start : start + _BATCH]]
        pixels = torch.from_numpy(np.stack(batch))
        scorer.update(pixels if protocol.rounding else pixels.float())
    return scorer.result()


def read(path: Path, size: int, channels: int) -> NDArray[np.uint8]:
    """A picture file ``(size, size, channels)``, as the data set "folder" reads it.

    Raises:
        UserError: it is not there, or no picture.
    """
    picture = decoding.picture(str(path), path, _mode(channels), decoding.photograph(size))
    return np.asarray(picture).reshape(size, size, channels)


def grid(images: NDArray[np.uint8], columns: int) -> Image.Image:
    """Images ``(n, H, W, C)`` as one picture, enlarged by whole pixels where they are small."""
    tiled = tile(images, columns)
    zoom = max(1, _WIDTH // tiled.shape[1])
    return Image.fromarray(np.repeat(np.repeat(tiled, zoom, axis=0), zoom, axis=1).squeeze())


def save(picture: Image.Image, out: Path) -> None:
    """Write the picture, in the format that the name ends in, and say so.

    Raises:
        UserError: there is no such format, or no writing there.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {out} ({error}); choose another file with --out, ending in .png") from error
    print(f"written to {out}")


def _mode(channels: int) -> str:
    return "RGB" if channels == 3 else "L"


def _drawn(model: Model, n: int, seed: int, condition: Condition | None) -> NDArray[np.uint8]:
    def batches() -> Iterator[NDArray[np.uint8]]:
        for images in model.sampler.batches(n, seed, condition, _BATCH):
            yield data.to_uint8(images).numpy()

    total = -(-n // _BATCH)
    return np.concatenate(list(track(batches(), "sampling", total, console=Console(stderr=True), transient=True)))


def _sample(options: argparse.Namespace) -> None:
    model = Model(trained_sampler(options.run))
    condition = label_condition(model.sampler.energy_net.classes, options.label, options.guidance)
    save(sample(model, options.images, options.seed, condition), options.out)


def _inpaint(options: argparse.Namespace) -> None:
    model = Model(trained_sampler(options.run))
    picture = inpaint(model, options.image, options.mask, options.completions, options.seed, options.repeats)
    save(picture, options.out)


def _score(options: argparse.Namespace) -> None:
    settings = configuration.plain(configuration.resolve([f"metrics={options.protocol}"]))["metrics"]
    metrics = [name for name in settings["metrics"] if name != "class_accuracy"]
    protocol = Protocol.from_config({**settings, "metrics": metrics})
    values = score(options.folder, protocol, options.data, options.root, options.cache)
    images = len(tree.images_in(options.folder))
    if images < protocol.samples:
        print(
            f"warning: {protocol.name} asks for {protocol.samples:,} images and {options.folder} holds {images:,}; "
            "fewer images give larger distances, so compare only with numbers of as many",
            file=sys.stderr,
        )
    for name, value in values.items():
        print(f"{name:<12}{value:.6g}   ({protocol.name}, {images} images)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cdrl", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="sample | inpaint | score")

    one = commands.add_parser("sample", help="draw a grid of samples")
    one.add_argument("run", type=Path, help="a finished run, or a saved model")
    one.add_argument("--images", type=int, default=36, help="how many (default: 36)")
    one.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    one.add_argument("--label", type=int, help="a class, 0 … C − 1, of a class-conditional model")
    one.add_argument("--guidance", type=float, default=0.0, help="weight of classifier-free guidance (default: 0)")
    one.add_argument("--out", type=Path, default=Path("samples.png"), help="a picture (default: samples.png)")
    one.set_defaults(act=_sample)

    two = commands.add_parser("inpaint", help="complete a picture")
    two.add_argument("run", type=Path, help="a finished run, or a saved model")
    two.add_argument("image", type=Path, help="a picture; its central square is brought to the model's size")
    two.add_argument("mask", type=Path, help="a picture of the same shape whose white pixels are known")
    two.add_argument("--completions", type=int, default=6, help="how many (default: 6)")
    two.add_argument("--repeats", type=int, default=2, help="passes through each level besides the first (default: 2)")
    two.add_argument("--seed", type=int, default=0, help="of the completions (default: 0)")
    two.add_argument("--out", type=Path, default=Path("completions.png"), help="a picture (default: completions.png)")
    two.set_defaults(act=_inpaint)

    three = commands.add_parser("score", help="compare a folder of images with a data set")
    three.add_argument("folder", type=Path, help="of image files")
    three.add_argument("--data", default="digits", help=f"one of {', '.join(configuration.choices('data'))}")
    three.add_argument("--root", type=Path, help="where that data set is")
    three.add_argument("--protocol", default="fd-digits", help=f"one of {', '.join(configuration.choices('metrics'))}")
    three.add_argument("--cache", type=Path, default=Path(".cache"), help="weights and statistics (default: .cache)")
    three.set_defaults(act=_score)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
