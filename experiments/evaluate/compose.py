"""Products of concepts: sample every combination, and decide by classifiers whether each concept is there.

Measured on samples: ``all_concepts``, also of the ``all_concepts_rare``; ``concept_shown`` per concept; and
``one_without_other``. Of every classifier, ``classifier_accuracy`` on held-out real images.

Settings: ``concepts``, the kinds the run was trained on (see `experiments.data.attributes`); ``weight``, w of every
concept in ``f(y, ∅) + Σ w (f(y, c) − f(y, ∅))``: at 0 nothing is asked for, which gives the rate without composition;
``negative_weight``, of the concept to avoid; ``samples``, of each combination; ``batch``; ``rare``: combinations that
a smaller share of the training images has are rare.

Written to ``compose.npz``: ``images`` (combinations, samples, H, W, C), ``success`` and ``joint`` (one rate per
combination: every concept right), ``share`` of the training images, ``combinations`` (labels), ``names``; the same
with ``avoid_`` for "this, and not that".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl import conditions
from experiments.data.attributes import CLASS, RULES, Kind, kinds
from experiments.evaluate import OnProgress, TrainedRun
from experiments.measurement import Measurement
from experiments.metrics import Extractor, build

Classifier = Callable[[NDArray[np.uint8]], NDArray[np.int64]]
"""Images ``(n, H, W, C)`` → the value of a kind that each shows, ``(n,)``."""
Progress = Callable[[float], object]
_PROBE_IMAGES = 20_000


@dataclass(frozen=True)
class Task:
    """Combinations of concepts to sample.

    Attributes:
        combinations: a value of each kind, ``(m, J)``.
        signs: 1 for a concept to show, −1 for one to avoid, ``(J,)``.
        kinds: J kinds.
    """

    combinations: NDArray[np.int64]
    signs: tuple[int, ...]
    kinds: Sequence[Kind]

    def labels(self, samples: int) -> torch.Tensor:
        """``(J, m · samples)``, combination by combination."""
        firsts = np.array([kind.first for kind in self.kinds])
        return torch.from_numpy(np.repeat(self.combinations + firsts, samples, axis=0).T.copy())

    def condition(self, settings: dict[str, Any]) -> conditions.Condition:
        """Every concept with the weight that it has by its sign; at weight 0 nothing is avoided either."""
        size = {1: settings["weight"], -1: -settings["negative_weight"] if settings["weight"] else 0.0}
        return conditions.composed(self.labels(settings["samples"]), [size[sign] for sign in self.signs])

    def correct(self, shown: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each concept is as asked, for values ``(m, samples, J)``."""
        return np.equal(shown == self.combinations[:, None], np.array(self.signs) > 0)

    def share(self) -> NDArray[np.float64]:
        """The share of the training images that are as each combination asks, ``(m,)``."""
        values = np.stack([kind.of for kind in self.kinds], axis=1)
        return self.correct(np.broadcast_to(values, (len(self.combinations), *values.shape))).all(axis=2).mean(axis=1)


def evaluate(run: TrainedRun, settings: dict[str, Any], out: Path, progress: OnProgress) -> list[Measurement]:
    """See the module's docstring."""
    concepts = kinds(run.train, settings["concepts"])
    classifiers = [classifier(run, kind) for kind in concepts]

    # Every combination; and, of the first and the last kind, one value without the other.
    every = np.array(list(itertools.product(*(range(len(kind.values)) for kind in concepts))))
    pairs = np.unique(every[:, [0, -1]], axis=0)
    together = Task(every, (1,) * len(concepts), concepts)
    avoiding = Task(pairs, (1, -1), (concepts[0], concepts[-1]))
    images, correct = _sampled(run, together, classifiers, settings, lambda done: progress(0.7 * done, "combinations"))
    avoided, without = _sampled(
        run, avoiding, [classifiers[0], classifiers[-1]], settings, lambda done: progress(0.7 + 0.3 * done, "negations")
    )
    everything, alone = np.asarray(correct.all(axis=2)), np.asarray(without.all(axis=2))
    names = np.array([[kind.values[value] for kind, value in zip(concepts, row, strict=True)] for row in every])
    np.savez(
        out / "compose.npz", combinations=every, names=names, share=together.share(), images=images,
        success=correct.mean(axis=1), joint=everything.mean(axis=1), avoid_combinations=pairs,
        avoid_share=avoiding.share(), avoid_images=avoided, avoid_joint=alone.mean(axis=1),
    )  # fmt: skip

    # Measure.
    cost = run.sampler().cost

    def measured(metric: str, hits: NDArray[np.bool_], task: Task | None = None, variant: str = "") -> Measurement:
        return Measurement(
            metric=metric, protocol=f"classifiers-{run.protocol.extractor}", value=float(hits.mean()),
            samples=hits.size, weight=settings["weight"], variant=variant,
            grad_evals=None if task is None else cost * len(task.condition(settings).weights),
        )  # fmt: skip

    rare = together.share() < settings["rare"]
    measurements = [measured("all_concepts", everything, together)]
    if rare.any():
        measurements.append(measured("all_concepts_rare", everything[rare], together))
    measurements.append(measured("one_without_other", alone, avoiding))
    for number, (kind, decide) in enumerate(zip(concepts, classifiers, strict=True)):
        (held_out,) = kinds(run.test, [kind.name])
        measurements.append(measured("concept_shown", correct[..., number], together, kind.name))
        measurements.append(measured("classifier_accuracy", decide(run.test.images) == held_out.of, variant=kind.name))
    return measurements


def classifier(run: TrainedRun, kind: Kind) -> Classifier:
    """A kind's rule, or the protocol's own classifier, or a linear probe."""
    if kind.name in RULES and kind.name not in run.train.attribute_names:
        return RULES[kind.name].decide
    run.protocol.check_fits(run.train.channels, run.train.image_size)
    extractor = build(run.protocol.extractor, run.cache, run.device, run.protocol.weights, run.protocol.weights_sha256)
    if kind.name == CLASS and getattr(extractor, "classes", None) == len(kind.values):
        return lambda images: _extracted(extractor, images, "probabilities").argmax(axis=1)
    return linear_probe(extractor, run.train.images[:_PROBE_IMAGES], kind.of[:_PROBE_IMAGES])


def linear_probe(extractor: Extractor, images: NDArray[np.uint8], values: NDArray[np.int64]) -> Classifier:
    """Logistic regression on the extractor's features of images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(_extracted(extractor, images, "features"), values)
    return lambda shown: model.predict(_extracted(extractor, shown, "features")).astype(np.int64)


def _extracted(extractor: Extractor, images: NDArray[np.uint8], what: str, batch: int = 256) -> NDArray[np.float32]:
    parts = (extractor(images[start : start + batch]) for start in range(0, len(images), batch))
    return np.concatenate([getattr(part, what).cpu().numpy() for part in parts])


def _sampled(
    run: TrainedRun, task: Task, classifiers: Sequence[Classifier], settings: dict[str, Any], progress: Progress
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Images ``(m, samples, H, W, C)`` of a task and whether each concept is as asked ``(m, samples, J)``."""
    rows = (len(task.combinations), settings["samples"])
    images = run.pictures(rows[0] * rows[1], task.condition(settings), settings["batch"], progress)
    shown = np.stack([decide(images) for decide in classifiers], axis=1)
    return images.reshape(*rows, *images.shape[1:]), task.correct(shown.reshape(*rows, -1))
