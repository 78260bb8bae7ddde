"""Products of concepts: sample every combination, and decide by classifiers whether each concept is there.

Settings: ``concepts``, the kinds the run was trained on (see `experiments.data.attributes`); ``weight``, w of every
concept in ``f(y, ∅) + Σ w (f(y, c) − f(y, ∅))``: at 0 nothing is asked for, which gives the rate without composition;
``negative_weight``, of the concept to avoid; ``samples``, of each combination; ``batch``; ``rare``: combinations that
a smaller share of the training images has are also scored by themselves.

Written to ``compose.npz``: ``images`` (combinations, samples, H, W, C), ``success`` and ``joint`` (one rate a
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
from experiments import data
from experiments.data.attributes import CLASS, RULES, Kind, kinds
from experiments.evaluate import Measurement, Progress, TrainedRun
from experiments.metrics import Extractor, build

Judge = Callable[[NDArray[np.uint8]], NDArray[np.int64]]
"""Images ``(n, H, W, C)`` → which value of a kind each shows, ``(n,)``."""
_PROBE_IMAGES = 20_000


@dataclass(frozen=True)
class Task:
    """What is asked of a number of samples.

    Attributes:
        combinations: which value of each kind, ``(m, J)``.
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

    def met(self, shown: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each concept is as asked, for values ``(m, samples, J)``."""
        return np.equal(shown == self.combinations[:, None], np.array(self.signs) > 0)

    def share(self) -> NDArray[np.float64]:
        """The share of the training images that meet each combination, ``(m,)``."""
        of = np.stack([kind.of for kind in self.kinds], axis=1)
        asked = np.broadcast_to(of, (len(self.combinations), *of.shape))
        return self.met(asked).all(axis=2).mean(axis=1)


def evaluate(run: TrainedRun, settings: dict[str, Any], out: Path, progress: Progress) -> list[Measurement]:
    """See the module's docstring."""
    found = kinds(run.train, settings["concepts"])
    judges = [judge(run, kind) for kind in found]
    every = np.array(list(itertools.product(*(range(len(kind.values)) for kind in found))))
    pairs = np.unique(every[:, [0, -1]], axis=0)
    together = Task(every, (1,) * len(found), found)
    avoiding = Task(pairs, (1, -1), (found[0], found[-1]))
    images, met = _carried_out(run, together, judges, settings, lambda done: progress(0.7 * done, "combinations"))
    avoided, kept = _carried_out(
        run, avoiding, [judges[0], judges[-1]], settings, lambda done: progress(0.7 + 0.3 * done, "negations")
    )
    np.savez(
        out / "compose.npz",
        images=images,
        success=met.mean(axis=1),
        joint=met.all(axis=2).mean(axis=1),
        share=together.share(),
        combinations=every,
        names=np.array([[found[k].values[v] for k, v in enumerate(row)] for row in every]),
        avoid_images=avoided,
        avoid_joint=kept.all(axis=2).mean(axis=1),
        avoid_share=avoiding.share(),
        avoid_combinations=pairs,
    )
    return _measurements(run, judges, together, met, avoiding, kept, settings)


def judge(run: TrainedRun, kind: Kind) -> Judge:
    """How a kind is decided for samples: by its rule, by the protocol's own classifier, or by a linear probe."""
    if kind.name in RULES and kind.name not in run.train.attribute_names:
        return RULES[kind.name].decide
    run.protocol.check_fits(run.train.channels, run.train.image_size)
    extractor = build(run.protocol.extractor, run.cache, run.device, run.protocol.weights, run.protocol.weights_sha256)
    if kind.name == CLASS and getattr(extractor, "classes", None) == len(kind.values):
        return lambda images: _extracted(extractor, images, "probabilities").argmax(axis=1)
    return _probe(extractor, run.train.images[:_PROBE_IMAGES], kind.of[:_PROBE_IMAGES])


def _probe(extractor: Extractor, images: NDArray[np.uint8], of: NDArray[np.int64]) -> Judge:
    """Logistic regression on the protocol's features of training images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(_extracted(extractor, images, "features"), of)
    return lambda shown: model.predict(_extracted(extractor, shown, "features")).astype(np.int64)


def _extracted(extractor: Extractor, images: NDArray[np.uint8], what: str, batch: int = 256) -> NDArray[np.float32]:
    parts = (extractor(images[start : start + batch]) for start in range(0, len(images), batch))
    return np.concatenate([getattr(part, what).cpu().numpy() for part in parts])


def _carried_out(
    run: TrainedRun, task: Task, judges: Sequence[Judge], settings: dict[str, Any], progress: Callable[[float], None]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Images ``(m, samples, H, W, C)`` of a task and whether each concept is as asked ``(m, samples, J)``."""
    samples = settings["samples"]
    condition = task.condition(settings)
    total, drawn = samples * len(task.combinations), []
    for batch in run.sampler().batches(total, run.seed, condition, settings["batch"]):
        drawn.append(data.to_uint8(batch).cpu().numpy())
        progress(sum(map(len, drawn)) / total)
    images = np.concatenate(drawn)
    shown = np.stack([decide(images) for decide in judges], axis=1)
    rows = (len(task.combinations), samples)
    return images.reshape(*rows, *images.shape[1:]), task.met(shown.reshape(*rows, -1))


def _measurements(
    run: TrainedRun,
    judges: Sequence[Judge],
    together: Task,
    met: NDArray[np.bool_],
    avoiding: Task,
    kept: NDArray[np.bool_],
    settings: dict[str, Any],
) -> list[Measurement]:
    everything = np.asarray(met.all(axis=2))
    rare = together.share() < settings["rare"]
    cost = run.sampler().gradient_evaluations

    def one(metric: str, task: Task, hits: NDArray[np.bool_]) -> Measurement:
        return {
            "metric": metric,
            "protocol": f"classifiers-{run.protocol.extractor}",
            "value": float(hits.mean()),
            "samples": hits.size,
            "grad_evals": cost * len(task.condition(settings).weights),
        }

    rows = [one("all_concepts", together, everything)]
    rows += [one(f"{kind.name}_shown", together, met[..., number]) for number, kind in enumerate(together.kinds)]
    if rare.any():
        rows.append(one("all_concepts_rare", together, everything[rare]))
    rows.append(one("one_without_other", avoiding, np.asarray(kept.all(axis=2))))
    rows += [_reliability(run, kind, decide) for kind, decide in zip(together.kinds, judges, strict=True)]
    return rows


def _reliability(run: TrainedRun, kind: Kind, decide: Judge) -> Measurement:
    """How often the judge is right about held-out real images."""
    (held_out,) = kinds(run.test, [kind.name])
    hits = decide(run.test.images) == held_out.of
    protocol = f"classifiers-{run.protocol.extractor}"
    return {"metric": f"{kind.name}_judge", "protocol": protocol, "value": float(hits.mean()), "samples": len(hits)}
