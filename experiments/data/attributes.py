"""Concepts: properties of images as labels of one label space, so that they can be composed.

A *kind* of concept has values of which exactly one holds for each image: its class, its slant, or an attribute it has
or lacks. All values of all kinds are numbered through, 1 … C, and a training image is labelled with its value of a kind
drawn each time it is shown. So a network learns f(y, c) for each concept alone, and never sees a pair named as such.

The slant of a digit is computed from the image: with central moments of the ink, the shear ``−μ11/μ02`` that would set
it upright (pixels to the right per pixel upwards, so that / leans right). "left", "upright" and "right" are the thirds
of the training digits. The tone of a colour image is warm or cold by its mean red and blue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl import randomness
from cdrl.errors import UserError
from cdrl.method import Batch
from experiments.data.batches import DeviceBatches
from experiments.data.images import ImageSet

SLANTS = ("left", "upright", "right")
SLANT_LIMITS = (-0.0924, 0.0106)
"""Between left and upright, and upright and right: the terciles of scikit-learn's training digits."""
CLASS = "class"


@dataclass(frozen=True)
class Kind:
    """One kind of concept.

    Attributes:
        name: such as "class" or "slant".
        values: the names of its values.
        first: the label of its first value, counted from 1.
        of: int64 ``(n,)``, which value holds for each image, 0 … len(values) − 1.
    """

    name: str
    values: tuple[str, ...]
    first: int
    of: NDArray[np.int64]

    def label(self, value: int) -> int:
        """The label of a value, in 1 … C."""
        return self.first + value


def kinds(image_set: ImageSet, names: Sequence[str]) -> list[Kind]:
    """The kinds of concepts of a set by name: "class", one of `RULES`, or one of its attributes ("not NAME", "NAME").

    Raises:
        UserError: the set has no such thing.
    """
    rules = {name: rule for name, rule in RULES.items() if rule.channels == image_set.channels}
    concepts: list[Kind] = []
    first = 1
    for name in names:
        if name == CLASS and image_set.labels is not None:
            values, of = image_set.class_names, image_set.labels
        elif image_set.attributes is not None and name in image_set.attribute_names:
            holds = image_set.attributes[:, image_set.attribute_names.index(name)]
            values, of = (f"not {name}", name), holds.astype(np.int64)
        elif name in rules:
            values, of = rules[name].values, rules[name].decide(image_set.images)
        else:
            known = [*([CLASS] if image_set.labels is not None else []), *image_set.attribute_names, *rules]
            raise UserError(f"data set {image_set.name} has no kind of concept '{name}'; there are {', '.join(known)}")
        concepts.append(Kind(name, values, first, of))
        first += len(values)
    return concepts


def count(image_set: ImageSet, names: Sequence[str]) -> int:
    """C, the number of labels that `kinds` gives out."""
    return sum(len(kind.values) for kind in kinds(image_set, names))


def slant(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The slant of each image ``(n, H, W, C)``: 0 left, 1 upright, 2 right."""
    return np.digitize(shear(images), SLANT_LIMITS).astype(np.int64)


def shear(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """``−μ11/μ02`` of the ink, ``(n,)``, rows counted downwards; 0 where there is no ink, or all in one row."""
    ink = images.astype(np.float64).mean(axis=3)
    rows, columns = np.mgrid[: ink.shape[1], : ink.shape[2]]
    mass = np.maximum(ink.sum(axis=(1, 2)), 1e-12)
    vertical = rows - ((ink * rows).sum(axis=(1, 2)) / mass)[:, None, None]
    horizontal = columns - ((ink * columns).sum(axis=(1, 2)) / mass)[:, None, None]
    spread = (ink * vertical**2).sum(axis=(1, 2))
    mixed = (ink * vertical * horizontal).sum(axis=(1, 2))
    return -np.divide(mixed, spread, out=np.zeros_like(mixed), where=spread > 0)


def tone(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The tone of each RGB image ``(n, H, W, 3)``: 0 cold (more blue than red on average), 1 warm."""
    means = images.mean(axis=(1, 2), dtype=np.float64)
    return (means[:, 0] >= means[:, 2]).astype(np.int64)


@dataclass(frozen=True)
class Rule:
    """A kind that is computed from the pixels, and so decided exactly for samples too.

    Attributes:
        values: their names.
        channels: the images it is meant for.
        decide: images ``(n, H, W, C)`` → which value holds, ``(n,)``.
    """

    values: tuple[str, ...]
    channels: int
    decide: Callable[[NDArray[np.uint8]], NDArray[np.int64]]


RULES = {"slant": Rule(SLANTS, 1, slant), "tone": Rule(("cold", "warm"), 3, tone)}


class ConceptBatches:
    """Training batches whose labels are concepts, of a kind drawn for each position of the stream.

    Args:
        batches: where images come from.
        names: the kinds of concepts, see `kinds`.
    """

    def __init__(self, batches: DeviceBatches, names: Sequence[str]) -> None:
        self.batches = batches
        table = np.stack([kind.first + kind.of for kind in kinds(batches.image_set, names)], axis=1)
        self._table = torch.from_numpy(table).to(batches.indices(0, 1).device)

    def batch(self, iteration: int, first: int = 0, count: int | None = None) -> Batch:
        """As `DeviceBatches.batch`."""
        batch = self.batches.batch(iteration, first, count)
        start = iteration * self.batches.batch_size + first
        positions = torch.arange(start, start + len(batch.images), device=self._table.device)
        key = randomness.key(self.batches.seed, "data/concept")
        columns = randomness.integers(key, positions, self._table.shape[1])
        labels = self._table[self.batches.indices(start, len(batch.images)), columns]
        return batch._replace(labels=labels.to(batch.images.device, non_blocking=True))
