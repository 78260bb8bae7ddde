"""Inpainting: several completions of held-out images whose pixels are known in part.

Settings: ``masks``, each "half" (the left half is known), "box" (all but the central half-size box), "random" (every
second pixel on average, other ones for each image) or the path of a square PNG whose white pixels are known;
``images``; ``completions`` of each; ``repeats``, see `cdrl.conditions.Condition`; ``batch``.

Measured on 8-bit images scaled to [−1, 1]: ``known_exact``, the share of known pixels that are the truth's;
``hole_mse`` of all completions and ``hole_mse_best`` of each image's best; ``hole_mse_mean_image``, what filling in
the mean training image gives; ``agreement``, how often the protocol's classifier decides as on the truth;
``diversity``, the root mean square difference in the hole between two completions of an image.

A mask is called by its word, a picture by its file's name, with as many folders before it as tell it from the others.
Written to ``inpaint-<mask>.npz``: ``truth``, ``mask`` (true where known), ``completions`` (images, completions, H, W,
C).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl import conditions, randomness
from cdrl.errors import UserError
from cdrl.pictures import mask_from_picture
from experiments import data
from experiments.evaluate import OnProgress, TrainedRun
from experiments.measurement import Measurement
from experiments.metrics import build

Images = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def evaluate(run: TrainedRun, settings: dict[str, Any], out: Path, progress: OnProgress) -> list[Measurement]:
    """See the module's docstring."""
    run.protocol.check_fits(run.test.channels, run.test.image_size)
    rows = np.linspace(0, len(run.test) - 1, min(settings["images"], len(run.test))).round().astype(np.int64)
    truth = run.test.images[rows]
    # Per image: every chain runs 1 + repeats times, the last denoise once.
    sampler = run.sampler()
    repeated = settings["repeats"] * sampler.schedule.levels * (sampler.chain.steps + sampler.proposal_cost)
    cost = sampler.cost + repeated
    masks = mask_names(settings["masks"])
    measurements: list[Measurement] = []
    for number, (mask_file, name) in enumerate(masks.items()):
        known = mask(mask_file, truth.shape[1], torch.from_numpy(rows), run.seed)

        def partly(done: float, number: int = number, name: str = name) -> None:
            progress((number + done) / len(masks), f"mask {name}")

        completions = complete(run, truth, known, settings, partly)
        np.savez(out / f"inpaint-{name}.npz", truth=truth, mask=known, completions=completions)
        values = measure(truth, known, completions, run.train.images.mean(axis=0)) | _agreement(run, truth, completions)
        count = completions.shape[0] * completions.shape[1]
        measured = partial(Measurement, protocol="inpaint", samples=count, mask=name, grad_evals=cost)
        measurements += [measured(metric=metric, value=value) for metric, value in values.items()]
    return measurements


def check(settings: dict[str, Any]) -> None:
    """Raises `UserError` for masks that cannot be told apart."""
    mask_names(settings["masks"])


def mask_names(masks: Sequence[str]) -> dict[str, str]:
    """A name of its own for each mask, for files and tables; see the module's docstring.

    Raises `UserError` where two cannot be told apart.
    """
    parts = {mask: [part for part in Path(mask).with_suffix("").parts if part != Path(mask).anchor] for mask in masks}
    names = {}
    for mask, mine in parts.items():
        others = [other for name, other in parts.items() if name != mask]
        lengths = range(1, len(mine) + 1)
        alone = [length for length in lengths if all(mine[-length:] != other[-length:] for other in others)]
        names[mask] = "-".join(mine[-min(alone, default=len(mine)) :])
    if len(set(names.values())) < len(names):
        raise UserError(f"two of the masks {', '.join(names)} would have the same name; rename one of the files")
    return names


def mask(name: str, size: int, index: Tensor, seed: int) -> Mask:
    """The known pixels, ``(n, size, size, 1)`` for images number ``index`` ``(n,)``; see the module's docstring.

    Raises `UserError` when there is no such mask, or the picture cannot be read.
    """
    if name == "random":
        known = randomness.uniform(randomness.key(seed, "mask"), index, (size, size)).numpy() < 0.5
        return known[..., None]
    single, edge = np.full((size, size), name == "box"), size // 4
    if name == "half":
        single[:, : size // 2] = True
    elif name == "box":
        single[edge : size - edge, edge : size - edge] = False
    elif not Path(name).is_file():
        raise UserError(f"there is no mask '{name}'; use half, box, random or the path of a PNG, white where known")
    else:
        single = mask_from_picture(Path(name), (size, size), size)
    return np.broadcast_to(single[..., None], (len(index), size, size, 1)).copy()


def complete(
    run: TrainedRun, truth: Images, known: Mask, settings: dict[str, Any], progress: Callable[[float], None]
) -> Images:
    """Completions ``(n, completions, H, W, C)`` of images ``(n, H, W, C)`` given their known pixels."""
    times, shape = settings["completions"], truth.shape
    image = data.to_float(truth).repeat_interleave(times, dim=0)
    pixels = torch.from_numpy(known).permute(0, 3, 1, 2).repeat_interleave(times, dim=0)
    condition = conditions.unconditional().inpainting(image, pixels, settings["repeats"])
    return run.pictures(len(image), condition, settings["batch"], progress).reshape(shape[0], times, *shape[1:])


def measure(truth: Images, known: Mask, completions: Images, filling: NDArray[np.floating]) -> dict[str, float]:
    """The metrics that need no classifier; arrays as in `complete`, ``filling`` ``(H, W, C)`` in 0 … 255."""
    hole, target = ~np.broadcast_to(known, truth.shape), truth.astype(np.float64) / 127.5

    def in_hole(difference: NDArray[np.floating]) -> NDArray[np.float64]:
        """Mean square over each image's hole."""
        return (np.square(difference) * hole).sum(axis=(1, 2, 3)) / np.maximum(hole.sum(axis=(1, 2, 3)), 1)

    shown = np.moveaxis(completions, 1, 0).astype(np.float64) / 127.5
    errors = np.stack([in_hole(completion - target) for completion in shown])
    between = [in_hole(first - second) ** 0.5 for first, second in itertools.combinations(shown, 2)]
    exact = (np.moveaxis(completions, 1, 0) == truth)[:, ~hole]
    values = {
        "known_exact": exact.mean(),
        "hole_mse": errors.mean(),
        "hole_mse_best": errors.min(axis=0).mean(),
        "hole_mse_mean_image": in_hole(filling / 127.5 - target).mean(),
    }
    if between:
        values["diversity"] = np.mean(between)
    return {name: float(value) for name, value in values.items()}


def _agreement(run: TrainedRun, truth: Images, completions: Images) -> dict[str, float]:
    """Share of completions that the protocol's classifier takes for the truth's class; {} where it has no classes."""
    protocol = run.protocol
    extractor = build(protocol.extractor, run.cache, run.device, protocol.weights, protocol.weights_sha256)
    expected = extractor(truth).probabilities
    if expected is None:
        return {}
    shown = (extractor(images).probabilities for images in np.moveaxis(completions, 1, 0))
    hits = [seen.argmax(dim=1) == expected.argmax(dim=1) for seen in shown if seen is not None]
    return {"agreement": float(torch.stack(hits).double().mean())}
