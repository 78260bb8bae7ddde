"""Out-of-distribution detection: does the log-density rank held-out images above images of another kind?

The score of an image x at level t is ``f(scale · x_t; λ_t)`` with ``x_t = α_t x + σ_t ε``: the learned log-density of
the level up to a positive factor and a constant, to which the AUROC is blind; nothing else is normalised. At level 0
the image is scored as it is (ε = 0), as in the papers; at higher levels the score is the mean over ``draws`` noises,
the same for all sets.

Settings: ``outside``, a list of "uniform" (noise), "shuffled" (each image's pixels permuted), "inverted" (255 − v),
"interp" (the mean of two held-out images), or data sets by name (a manifest's ``optional`` ones are among them where
the plan found them at hand); ``images``: at most this many of each; ``draws``; ``batch``.

Measured per level and set: ``auroc``. Written to ``ood.npz``: ``inside`` (levels, n) and each set's scores by name; to
``examples.npz``: 16 images of each by the same names.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl import randomness
from cdrl.errors import UserError
from cdrl.noise import marginal
from cdrl.sampler import Sampler
from experiments import data
from experiments.evaluate import Diverged, OnProgress, TrainedRun
from experiments.measurement import Measurement
from experiments.metrics import auroc

_EXAMPLES = 16
Images = NDArray[np.uint8]


def evaluate(run: TrainedRun, settings: dict[str, Any], out: Path, progress: OnProgress) -> list[Measurement]:
    """See the module's docstring."""
    sampler, inside = run.sampler(), run.test.images[: settings["images"]]
    sets = {name: outside(name, inside, run.seed, run.data.data_cache) for name in settings["outside"]}
    scores: dict[str, Any] = {}
    examples: dict[str, Any] = {}
    for number, (name, images) in enumerate({"inside": inside, **sets}.items(), start=1):
        scores[name] = log_densities(sampler, images, run.seed, settings["draws"], settings["batch"])
        if not np.isfinite(scores[name]).all():
            raise Diverged(f"log-densities of {name} images are not finite")
        examples[name] = images[:_EXAMPLES]
        progress(number / (len(sets) + 1), f"scored {name}")
    np.savez(out / "examples.npz", **examples)
    np.savez(out / "ood.npz", **scores)
    measured = partial(Measurement, metric="auroc", protocol="log-density")
    return [
        measured(value=auroc(above, below), samples=len(above) + len(below), level=level, against=name)
        for name in sets
        for level, (above, below) in enumerate(zip(scores["inside"], scores[name], strict=True))
    ]


def outside(name: str, inside: Images, seed: int, cache: str | None = None) -> Images:
    """Images ``(m, H, W, C)`` of another kind than ``inside`` ``(n, H, W, C)``; see the module's docstring.

    Raises `UserError` when there is no such set, or its images do not fit.
    """
    index, stream = torch.arange(len(inside)), randomness.key(seed, f"outside/{name}")
    if name == "uniform":
        return np.floor(256 * randomness.uniform(stream, index, inside.shape[1:]).numpy()).astype(np.uint8)
    if name == "inverted":
        return 255 - inside
    if name == "shuffled":
        pixels = inside.reshape(len(inside), -1, inside.shape[3])
        order = randomness.uniform(stream, index, pixels.shape[1:2]).argsort(dim=1).numpy()
        return np.take_along_axis(pixels, order[..., None], axis=1).reshape(inside.shape)
    if name == "interp":
        order = randomness.permutation(stream, len(inside)).numpy()
        return np.rint((inside[order].astype(np.float32) + inside[np.roll(order, 1)]) / 2).astype(np.uint8)
    return _of_size(data.load(name, "test", data_cache=cache).images[: len(inside)], inside.shape[1:], name)


@torch.no_grad()
def log_densities(sampler: Sampler, images: Images, seed: int, draws: int, batch: int) -> NDArray[np.float32]:
    """The scores of uint8 images ``(n, H, W, C)`` at every level, ``(levels, n)``."""
    schedule, weights = sampler.schedule.to(sampler.device, sampler.dtype), sampler.energy_net.weights()
    scores = torch.zeros(schedule.levels, len(images), dtype=sampler.dtype).numpy()
    for start in range(0, len(images), batch):
        x = data.to_float(images[start : start + batch]).to(sampler.device)
        index = torch.arange(start, start + len(x), device=sampler.device)
        for level in range(schedule.levels):
            energy = sampler.energy_net.frozen(weights, schedule.logsnr[level].expand(len(x)))
            repeats = draws if level else 1
            for draw in range(repeats):
                stream = randomness.key(seed, "score", level, draw)
                noise = randomness.normal(stream, index, sampler.shape, sampler.dtype) * float(level > 0)
                noisy = marginal(schedule, x, torch.full_like(index, level), noise)
                values = energy(schedule.scale[level + 1] * noisy)
                scores[level, start : start + len(x)] += values.cpu().numpy() / repeats
    return scores


def _of_size(images: Images, shape: tuple[int, ...], name: str) -> Images:
    """Shrunk by a whole factor where images are larger: each pixel the mean of a square."""
    factor, rest = divmod(images.shape[1], shape[0])
    if rest or images.shape[3] != shape[2]:
        raise UserError(f"images of {name} are {images.shape[1:]}, which cannot be made {tuple(shape)}; leave it out")
    return np.asarray(images) if factor == 1 else data.box_average(images, shape[0])
