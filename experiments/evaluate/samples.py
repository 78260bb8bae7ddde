"""Sample quality: draw images, score them under the protocol, keep a grid; optionally along training.

Settings: ``samples``, ``batch``; ``guidance`` (a weight: labels are drawn uniformly), ``steps``, ``step_multiplier``,
``last_denoise``, ``spectral_ema`` override the sampler's; ``curve`` also scores the milestones, with
``milestone_samples`` each.

Written to ``grid.npy``: the first images, uint8 ``(n, H, W, C)``; with ``curve`` to ``curve.npz``: ``grad_evals`` spent
in training and the protocol's first metric there, ``value``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdrl import checkpoint
from cdrl.conditions import Condition
from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from cdrl.method import Method
from cdrl.sampler import Sampler
from experiments import methods
from experiments.evaluate import OnProgress, TrainedRun
from experiments.measurement import Measurement
from experiments.metrics import Scorer, to_pixels

SCORES = True
GRID = 100
"""Images kept for the sample grids."""


def evaluate(run: TrainedRun, settings: dict[str, Any], out: Path, progress: OnProgress) -> list[Measurement]:
    """See the module's docstring. Raises `UserError` for guidance without learned classes or of negative weight."""
    n = len(run.test.images) if _real(run) else settings["samples"]
    labels = condition = None
    weight = settings.get("guidance")
    if weight is not None:
        if not 0 < run.train.classes <= run.sampler().energy_net.classes:
            raise UserError(
                "evaluate.guidance leads towards classes, which this run was trained without; leave it out, or train "
                "with conditional: true, as experiment=guidance does"
            )
        condition = methods.class_condition(n, run.train.classes, run.seed, weight)
        labels = condition.labels[0] - 1
    in_curve = settings["milestone_samples"] if settings.get("curve") and run.method is not None else 0
    total = n + in_curve * len(run.milestones)

    # Sample, score, and keep the first.
    scorer = Scorer(run.protocol, run.train, run.cache, run.device)
    first: list[Tensor] = []
    grid: list[np.ndarray] = []
    done, seconds = 0, 0.0
    batches = draw(run, n, settings, condition)
    begin = time.monotonic()
    for pixels in batches:
        seconds += time.monotonic() - begin
        scorer.update(pixels, None if labels is None else labels[done : done + len(pixels)])
        first.append(pixels[: max(0, in_curve - done)])
        grid.extend(pixels[: max(0, GRID - done)].numpy().round().astype(np.uint8))
        done += len(pixels)
        progress(done / total, f"sampled {done} of {n}")
        begin = time.monotonic()
    np.save(out / "grid.npy", np.stack(grid))

    # Measure.
    progress(n / total, f"comparing {n} samples with {scorer.reference_samples} images")
    measurements = [
        Measurement(
            metric=name, protocol=run.protocol.name, value=value, samples=n, steps=settings.get("steps"),
            weight=weight, grad_evals=sampling_cost(run, settings), seconds=seconds,
        )
        for name, value in scorer.result().items()
    ]  # fmt: skip
    if not in_curve or run.method is None:
        return measurements

    # The same along training. The last point counts as many samples as the others: a Fréchet distance falls with them.
    iterations, values = [], []
    for number, folder in enumerate(run.milestones):
        text = f"scoring milestone {number + 1} of {len(run.milestones)}"
        progress((n + in_curve * number) / total, text)
        iteration, method = _at_milestone(run.method, folder)
        scorer = Scorer(run.protocol.headline, run.train, run.cache, run.device)
        for pixels in draw(replace(run, method=method), in_curve, settings):
            scorer.update(pixels)
            progress((n + in_curve * number + scorer.samples) / total, text)
        iterations.append(iteration)
        values.append(scorer.result()[run.protocol.metrics[0]])
    iterations.append(run.method.iterations)
    values.append(headline(run, first))
    spent = np.array(iterations) * run.method.training_cost * run.recipe.batch_size
    np.savez(out / "curve.npz", grad_evals=spent, value=values)
    return measurements


def draw(run: TrainedRun, n: int, settings: dict[str, Any], condition: Condition | None = None) -> Iterator[Tensor]:
    """Images ``(B, H, W, C)`` in 0 … 255 of a run, or of a reference row; uint8 where the protocol rounds."""
    batch = settings["batch"]
    if _real(run):
        for start in range(0, n, batch):
            pixels = torch.from_numpy(run.test.images[start : start + batch].copy())
            yield pixels if run.protocol.rounding else pixels.float()
        return
    for images in batches(run, n, settings, condition):
        yield to_pixels(images, run.protocol.rounding)


def batches(run: TrainedRun, n: int, settings: dict[str, Any], condition: Condition | None = None) -> Iterator[Tensor]:
    """Images ``(B, C, H, W)`` in [−1, 1] of a run or of noise; NaN where a chain ran away."""
    if run.method is None:
        return methods.noise_images(n, run.shape, run.seed, settings["batch"])
    if isinstance(run.method, Cooperative):
        return sampler(run.method, settings).batches(n, run.seed, condition, settings["batch"])
    return run.method.sample(n, run.seed, condition, settings["batch"])


def sampler(method: Cooperative, settings: dict[str, Any]) -> Sampler:
    """The method's sampler with an evaluation's changes."""

    def changes(*names: str) -> dict[str, Any]:
        return {name: settings[name] for name in names if name in settings}

    own = method.settings
    chain = replace(own.sampling or own.chain, **changes("steps", "step_multiplier"))
    return method.sampler(replace(own, sampling=chain, **changes("last_denoise", "spectral_ema")))


def sampling_cost(run: TrainedRun, settings: dict[str, Any]) -> float:
    """Of an image, see `cdrl.cost`; guidance takes both networks twice."""
    if run.method is None:
        return 0
    if not isinstance(run.method, Cooperative):
        return run.method.sampling_cost
    return sampler(run.method, settings).cost * (2 if settings.get("guidance") else 1)


def _real(run: TrainedRun) -> bool:
    return isinstance(run.recipe, methods.Reference) and run.recipe.images == "real"


def _at_milestone(method: Method, folder: Path) -> tuple[int, Method]:
    """Iterations done, and the method with the averaged weights of that time; the method itself stays as it is."""
    tensors, facts = checkpoint.load(folder)
    earlier = copy.copy(method)
    earlier.learners = {name: copy.copy(learner) for name, learner in method.learners.items()}
    for name, learner in earlier.learners.items():
        learner.ema = copy.deepcopy(learner.ema)
        own = [key for key in tensors if key.startswith(f"{name}/")]
        learner.ema.average.load_state_dict({key.removeprefix(f"{name}/"): tensors[key] for key in own})
    return facts["iteration"], earlier


def headline(run: TrainedRun, batches: Iterable[Tensor]) -> float:
    """The protocol's first metric of pixels."""
    scorer = Scorer(run.protocol.headline, run.train, run.cache, run.device)
    for pixels in batches:
        scorer.update(pixels)
    return scorer.result()[run.protocol.metrics[0]]
