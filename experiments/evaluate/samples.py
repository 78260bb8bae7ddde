"""Sample quality: draw images, score them under the protocol, keep a grid; optionally along training.

Settings: ``samples``, ``batch``; ``guidance`` (a weight: labels are drawn uniformly), ``steps``, ``step_multiplier``,
``last_denoise``, ``spectral_ema`` override the sampler's; ``curve`` also scores the milestones into ``curve.npz``.
"""

from __future__ import annotations

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
from cdrl.ema import EMA
from cdrl.errors import UserError
from cdrl.sampler import Sampler
from experiments import methods
from experiments.evaluate import Measurement, Progress, TrainedRun
from experiments.metrics import Scorer, to_pixels

GRID = 100
"""Images kept for the sample grids."""


def evaluate(run: TrainedRun, settings: dict[str, Any], out: Path, progress: Progress) -> list[Measurement]:
    """See the module's docstring."""
    n = len(run.test.images) if run.kind == "real" else settings["samples"]
    labels = None
    condition = None
    if settings.get("guidance") is not None:
        condition = _towards_classes(run, n, settings["guidance"])
        labels = condition.labels[0] - 1
    begin = time.monotonic()
    scorer = Scorer(run.protocol, run.train, run.cache, run.device)
    # The curve's last point counts as many samples as the others: a Fréchet distance falls with their number.
    in_curve = settings["milestone_samples"] if settings.get("curve") and run.method is not None else 0
    first: list[Tensor] = []
    grid: list[np.ndarray] = []
    done = 0
    sampling = 0.0
    for pixels, seconds in _timed(draw(run, n, settings, condition)):
        sampling += seconds
        scorer.update(pixels, None if labels is None else labels[done : done + len(pixels)])
        first.append(pixels[: max(0, in_curve - done)])
        grid.extend(pixels[: max(0, GRID - done)].numpy().round().astype(np.uint8))
        done += len(pixels)
        progress(done / n, f"sampled {done} of {n}")
    np.save(out / "grid.npy", np.stack(grid))
    cost, protocol = gradient_evaluations(run, settings), run.protocol.name
    measurements = [
        Measurement(metric=name, protocol=protocol, value=value, samples=n, grad_evals=cost, seconds=sampling)
        for name, value in scorer.result().items()
    ]
    if in_curve:
        spent, values = _curve(run, settings, torch.cat(first), progress)
        np.savez(out / "curve.npz", grad_evals=spent, value=values)
    progress(1.0, f"scored in {time.monotonic() - begin:.0f} s")
    return measurements


def draw(run: TrainedRun, n: int, settings: dict[str, Any], condition: Condition | None = None) -> Iterator[Tensor]:
    """Images ``(B, H, W, C)`` in 0 … 255 of a run, or of a reference row; uint8 where the protocol rounds."""
    batch = settings["batch"]
    if run.kind == "real":
        for start in range(0, n, batch):
            pixels = torch.from_numpy(run.test.images[start : start + batch].copy())
            yield pixels if run.protocol.rounding else pixels.float()
        return
    for images in batches(run, n, settings, condition):
        yield to_pixels(images, run.protocol.rounding)


def gradient_evaluations(run: TrainedRun, settings: dict[str, Any]) -> float:
    """Energy-gradient evaluations per sampled image; guidance evaluates two energies."""
    if run.method is None:
        return 0
    cost = (
        _sampler(run, settings).gradient_evaluations
        if isinstance(run.method, Cooperative)
        else run.method.sampling_cost
    )
    return cost * (2 if settings.get("guidance") else 1)


def _towards_classes(run: TrainedRun, n: int, weight: float) -> Condition:
    """Guidance for n images. Raises `UserError` unless the run learned the data set's classes, and ``weight`` ≥ 0."""
    if not 0 < run.train.classes <= run.sampler().energy_net.classes:
        raise UserError(
            "evaluate.guidance leads towards classes, which this run was trained without; leave it out, or train with "
            "conditional: true, as experiment=guidance does"
        )
    return methods.class_condition(n, run.train.classes, run.seed, weight)


def batches(run: TrainedRun, n: int, settings: dict[str, Any], condition: Condition | None = None) -> Iterator[Tensor]:
    """Images ``(B, C, H, W)`` in [−1, 1] of a run or of noise; NaN where a chain ran away."""
    if run.method is None:
        return methods.noise_images(n, run.shape, run.seed, settings["batch"])
    if isinstance(run.method, Cooperative):
        return _sampler(run, settings).batches(n, run.seed, condition, settings["batch"])
    return run.method.sample(n, run.seed, condition, settings["batch"])


def _sampler(run: TrainedRun, settings: dict[str, Any]) -> Sampler:
    """The run's sampler with the evaluation's changes; the run itself stays as it was."""
    assert isinstance(run.method, Cooperative)
    own = run.method.settings
    try:
        run.method.settings = replace(own, spectral_ema=settings.get("spectral_ema", own.spectral_ema))
        sampler = run.method.sampler()
    finally:
        run.method.settings = own
    chain = replace(
        sampler.chain,
        steps=settings.get("steps", sampler.chain.steps),
        step_multiplier=settings.get("step_multiplier", sampler.chain.step_multiplier),
    )
    return replace(sampler, chain=chain, last_denoise=settings.get("last_denoise", sampler.last_denoise))


def _curve(
    run: TrainedRun, settings: dict[str, Any], final: Tensor, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """The protocol's first metric at every milestone and of the ``final`` pixels, against gradient evaluations spent in
    training."""
    assert run.method is not None
    cost = run.method.training_cost * run.config["method"]["batch_size"]
    points: list[tuple[int, float]] = []
    averages = {name: learner.ema for name, learner in run.method.learners.items()}
    kept = {name: {k: v.clone() for k, v in ema.average.state_dict().items()} for name, ema in averages.items()}
    for folder in sorted((run.folder / "milestones").glob("*")):
        tensors, facts = checkpoint.load(folder)
        _put(averages, tensors)
        points.append((facts["iteration"] * cost, _headline(run, draw(run, settings["milestone_samples"], settings))))
        progress(1.0, f"scored iteration {facts['iteration']}")
    _put(averages, {f"{name}/{key}": value for name, state in kept.items() for key, value in state.items()})
    points.append((run.method.iterations * cost, _headline(run, [final])))
    spent, values = zip(*points, strict=True)
    return np.array(spent), np.array(values)


def _headline(run: TrainedRun, batches: Iterable[Tensor]) -> float:
    """The protocol's first metric of pixels."""
    scorer = Scorer(run.protocol.headline, run.train, run.cache, run.device)
    for pixels in batches:
        scorer.update(pixels)
    return next(iter(scorer.result().values()))


def _put(averages: dict[str, EMA], tensors: dict[str, Tensor]) -> None:
    for name, ema in averages.items():
        state = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        ema.average.load_state_dict(state)


def _timed(batches: Iterator[Tensor]) -> Iterator[tuple[Tensor, float]]:
    """Each batch with the seconds it took to draw."""
    while True:
        begin = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.monotonic() - begin
