"""Sample quality: draw images, score them under the protocol, keep a grid; optionally along training.

Settings: ``samples`` (the real row: as many, or all that are held out), ``batch``; ``guidance`` (a weight: labels are
drawn uniformly), ``steps``, ``step_multiplier``, ``last_denoise``, ``spectral_ema`` override the sampler's; ``curve``
also scores the milestones, with ``milestone_samples`` each; ``classes_by`` is a second protocol, whose classifier says
how many samples show the class that they were asked for, and of how many real images it names the class.

Several processes draw together: batch number b, and what the extractor says of it, is made by process b mod size, and
all of it is added up in the order of the batches. So the number of processes changes no image and no score.

Written to ``grid.npy``: the first images, uint8 ``(n, H, W, C)``; with ``curve`` to ``curve.npz``: ``grad_evals`` spent
in training and the protocol's first metric there, ``value``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl.bounds import Range, watched
from cdrl.conditions import Condition
from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from cdrl.sampler import Sampler, index_batches
from experiments import methods
from experiments.evaluate import DrawingFailed, Health, OnProgress, TrainedRun, at_milestone, of_the_machine
from experiments.measurement import Measurement
from experiments.metrics import Extracted, Protocol, Scorer, build, to_pixels

SCORES = SHARED = True
GRID = 100
"""Images kept for the sample grids."""


def evaluate(run: TrainedRun, settings: dict[str, Any], out: Path, progress: OnProgress) -> list[Measurement]:
    """See the module's docstring. Raises `UserError` for guidance without learned classes or of negative weight."""
    n = min(settings["samples"], len(run.test.images)) if _real(run) else settings["samples"]
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
    judge, shown = _judge(run, settings), labels
    if judge is not None and shown is None:
        if not _real(run) or run.test.labels is None:
            raise UserError("evaluate.classes_by judges samples of classes; set evaluate.guidance, or leave it out")
        shown = torch.as_tensor(run.test.labels[:n])
    in_curve = settings["milestone_samples"] if settings.get("curve") and run.method is not None else 0
    total = n + in_curve * len(run.milestones)

    # Sample, score, and keep the first.
    scorer = Scorer(run.protocol, run.train, run.cache, run.device)
    first: list[Extracted] = []
    grid: list[np.ndarray] = []
    seconds = 0.0
    for batches in drawn(run, n, settings, scorer, condition, judge):
        for batch in batches:
            scorer.add(batch.extracted, None if labels is None else labels[batch.start : batch.stop])
            if judge is not None and shown is not None:
                judge.add(batch.judged, shown[batch.start : batch.stop])
            first += _beginning(batch.extracted, in_curve - batch.start)
            grid.extend(batch.pictures)
            seconds += batch.seconds
        progress(scorer.samples / total, f"sampled {scorer.samples} of {n}")
    if run.group.first:
        np.save(out / "grid.npy", np.stack(grid))

    # Measure.
    progress(n / total, f"comparing {n} samples with {scorer.reference_samples} images")
    measurements = [
        Measurement(
            metric=name, protocol=by.protocol.name, value=value, samples=n, steps=settings.get("steps"),
            weight=weight, grad_evals=sampling_cost(run, settings), seconds=seconds,
        )
        for by in ([scorer] if judge is None else [scorer, judge])
        for name, value in by.result().items()
    ]  # fmt: skip
    if not in_curve or run.method is None:
        return measurements

    # The same along training. The last point counts as many samples as the others: a Fréchet distance falls with them.
    iterations, values = [], []
    for number, folder in enumerate(run.milestones):
        text = f"scoring milestone {number + 1} of {len(run.milestones)}"
        progress((n + in_curve * number) / total, text)
        iteration, method = at_milestone(run.method, folder)
        scorer = Scorer(run.protocol.headline, run.train, run.cache, run.device)
        for batches in drawn(replace(run, method=method), in_curve, settings, scorer):
            for batch in batches:
                scorer.add(batch.extracted)
            progress((n + in_curve * number + scorer.samples) / total, text)
        iterations.append(iteration)
        values.append(scorer.result()[run.protocol.metrics[0]])
    iterations.append(run.method.iterations)
    scorer = Scorer(run.protocol.headline, run.train, run.cache, run.device)
    scorer.add(first)
    values.append(scorer.result()[run.protocol.metrics[0]])
    spent = np.array(iterations) * run.method.training_cost * run.recipe.batch_size
    if run.group.first:
        np.savez(out / "curve.npz", grad_evals=spent, value=values)
    return measurements


@dataclass(frozen=True)
class Drawn:
    """A batch of samples as it travels between processes: what is kept of the images, not the images.

    Attributes:
        start, stop: of its image indices.
        extracted: what the protocol's extractor says of them.
        judged: what the classifier of ``classes_by`` says of them, if any.
        pictures: uint8 ``(≤ B, H, W, C)``, those of them that are among the first `GRID`.
        health: of the images; nothing is extracted where any was lost.
        seconds: that drawing took.
    """

    start: int
    stop: int
    extracted: list[Extracted]
    judged: list[Extracted]
    pictures: NDArray[np.uint8]
    health: Health
    seconds: float


def drawn(
    run: TrainedRun,
    n: int,
    settings: dict[str, Any],
    scorer: Scorer,
    condition: Condition | None = None,
    judge: Scorer | None = None,
) -> Iterator[list[Drawn]]:
    """Samples of a run, or of a reference row, as the scorer sees them: a round is one batch of every process.

    All processes of the run's group call this together, and get all batches, in order. In the last round there may be
    fewer batches than processes, and the last batch may be smaller.

    Raises:
        Diverged: images are not finite or ran away, whichever process drew them.
        DrawingFailed: there are several processes, and one of them could not draw.
    """
    size, group = settings["batch"], run.group
    own_batches = _own_batches(run, n, settings, condition)

    def draw(start: int) -> Drawn | None:
        begin = time.monotonic()
        with watched(seen := Range()):
            images = next(own_batches, None)
        if images is None:
            return None
        health = Health.of(images, seen)
        if health.lost:
            return Drawn(start, start + len(images), [], [], np.empty(0, np.uint8), health, time.monotonic() - begin)
        if _real(run):
            pixels = images if run.protocol.rounding else images.float()
        else:
            pixels = to_pixels(images, run.protocol.rounding)
        seconds = time.monotonic() - begin
        return Drawn(
            start=start,
            stop=start + len(pixels),
            extracted=scorer.extract(pixels),
            judged=[] if judge is None else judge.extract(pixels),
            pictures=pixels[: max(0, GRID - start)].numpy().round().astype(np.uint8),
            health=health,
            seconds=seconds,
        )

    for first in range(0, n, size * group.size):
        # A process that fails says so where the others wait for its batch, so that all of them stop in step.
        try:
            own: Drawn | str | None = draw(first + size * group.rank)
        except Exception as error:
            if group.size == 1 or of_the_machine(error):
                raise
            own = f"{type(error).__name__}: {error}"
        everybodys = group.gathered(own)
        for failure in everybodys:
            if isinstance(failure, str):
                raise DrawingFailed(failure)
        batches = [batch for batch in everybodys if batch is not None]
        for batch in batches:
            run.health.add(batch.health)
        yield batches


def _judge(run: TrainedRun, settings: dict[str, Any]) -> Scorer | None:
    """Scores what a classifier says of the classes, where that is asked for. Raises `UserError` where it has others."""
    if not settings.get("classes_by"):
        return None
    protocol = Protocol.from_config(settings["classes_by"])
    extractor = build(protocol.extractor, run.cache, run.device, protocol.weights, protocol.weights_sha256)
    if extractor.classes != run.train.classes:
        its = f"tells {extractor.classes} classes apart and {run.train.name} has {run.train.classes}"
        raise UserError(f"the classifier of {protocol.name} {its}; leave evaluate.classes_by out")
    return Scorer(protocol, run.train, run.cache, run.device, extractor)


def _own_batches(run: TrainedRun, n: int, settings: dict[str, Any], condition: Condition | None) -> Iterator[Tensor]:
    """This process's batches of images, ``(B, C, H, W)`` in [−1, 1], NaN where a chain ran away; those of the data set
    are uint8 ``(B, H, W, C)``."""
    size, method = settings["batch"], run.method
    share = (size, size * run.group.rank, run.group.size)
    if _real(run):
        return (torch.from_numpy(run.test.images[index.numpy()]) for index in index_batches(n, *share))
    if method is None:
        return methods.noise_images(n, run.shape, run.seed, *share)
    if isinstance(method, Cooperative):
        return sampler(method, settings).batches(n, run.seed, condition, *share)
    return method.sample(n, run.seed, condition, *share)


def _beginning(extracted: list[Extracted], n: int) -> list[Extracted]:
    """What was extracted of the first ``n`` images."""
    kept = []
    for part in extracted:
        if n > 0:
            kept.append(Extracted(part.features[:n], None if part.probabilities is None else part.probabilities[:n]))
        n -= len(part.features)
    return kept


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


def headline(run: TrainedRun, batches: Iterable[Tensor]) -> float:
    """The protocol's first metric of pixels."""
    scorer = Scorer(run.protocol.headline, run.train, run.cache, run.device)
    for pixels in batches:
        scorer.update(pixels)
    return scorer.result()[run.protocol.metrics[0]]
