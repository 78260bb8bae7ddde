"""What a sample is conditioned on: labels, their linear combinations, and known pixels.

All of label conditioning, classifier-free guidance (Ho & Salimans 2022; Zhu et al. 2024, section 3.4) and composition
(Du et al. 2020; Zhu et al. 2024, section 4.4) is one thing, a linear combination of concepts whose weights sum to one:

    f = Σ_j w_j f(y, c_j)        label:        w = (1)                 c = (c)
    ĝ = Σ_j w_j g(x, c_j)        guidance:     w = (1 + w, −w)         c = (c, ∅)
                                 composition:  w = (1 − Σ w_i, w_1, …)  c = (∅, c_1, …)

The tether and the noise are common to all concepts and are not scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cdrl.errors import UserError

NULL_LABEL = 0
MOST_REPEATS = 1000
"""Every repetition costs as much as the level itself; the literature has 10 to 20."""


@dataclass(frozen=True)
class Condition:
    """A combination of concepts for each of n images, and perhaps pixels that are known.

    Attributes:
        labels: int64 ``(J, n)`` in 0 … C, or ``(J, 1)``: the same for every image.
        weights: J numbers that sum to one.
        image: clean images in [−1, 1] whose pixels are known in part, ``(n, C, H, W)`` or ``(1, C, H, W)``, or None.
        mask: true where a pixel is known, bool, ``(n or 1, C or 1, H, W)``; None without an image.
        repeats: times each level is gone through again from re-noised samples, to harmonise the seam.
    """

    labels: Tensor
    weights: tuple[float, ...] = (1.0,)
    image: Tensor | None = None
    mask: Tensor | None = None
    repeats: int = 0

    def __post_init__(self) -> None:
        if self.labels.ndim != 2 or len(self.labels) != len(self.weights):
            raise UserError(
                f"a condition needs labels (J, n) for its {len(self.weights)} weights, not {tuple(self.labels.shape)}"
            )
        if self.labels.dtype == torch.bool or self.labels.is_floating_point():
            raise UserError(f"labels must be whole numbers, not {self.labels.dtype}")
        if not abs(sum(self.weights) - 1.0) < 1e-4:
            raise UserError(f"the weights of a condition must sum to one, not {self.weights}")
        if (self.image is None) != (self.mask is None):
            raise UserError("known pixels need both an image and a mask")
        if self.image is not None and self.mask is not None and not self.image.ndim == self.mask.ndim == 4:
            raise UserError("known pixels need an image and a mask of four dimensions (n, C, H, W)")
        if self.mask is not None and self.mask.dtype != torch.bool:
            raise UserError(f"the mask of known pixels must be boolean, not {self.mask.dtype}")
        if not 0 <= self.repeats <= MOST_REPEATS:
            raise UserError(f"levels cannot be repeated {self.repeats} times; use 0 … {MOST_REPEATS}")

    def batch(self, positions: Tensor, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Condition:
        """The conditions of the images at ``positions`` (int64 ``(B,)``), on ``device``; known pixels in ``dtype``."""

        def pick(values: Tensor | None, dim: int) -> Tensor | None:
            if values is None:
                return None
            if (rows := values.shape[dim]) == 1:
                return values.to(device)
            if int(positions.max()) >= rows:
                raise UserError(f"the condition describes {rows} images, too few for image {int(positions.max())}")
            return values.index_select(dim, positions.to(values.device)).to(device)

        labels, image = pick(self.labels, 1), pick(self.image, 0)
        assert labels is not None
        return replace(
            self,
            labels=labels.expand(-1, len(positions)).contiguous(),
            image=None if image is None else image.to(dtype),
            mask=pick(self.mask, 0),
        )

    def check_classes(self, classes: int) -> None:
        """Raises `UserError` unless a network of C = ``classes`` knows every label."""
        if not classes and bool((self.labels != NULL_LABEL).any()):
            raise UserError("this model was trained without classes: ask for no labels, or use a conditional model")
        if not bool(((self.labels >= 0) & (self.labels <= classes)).all()):
            raise UserError(f"labels must be 0 (none) or a class 1 … {classes}, not {self.labels.unique().tolist()}")

    def check_rows(self, n: int) -> None:
        """Raises `UserError` unless ``n`` images are described, or one that stands for all."""
        rows = [self.labels.shape[1], *(len(x) for x in (self.image, self.mask) if x is not None)]
        if any(1 < number < n for number in rows):
            raise UserError(f"the condition describes {min(x for x in rows if x > 1)} images, too few for {n}")

    def check_pixels(self, shape: tuple[int, int, int]) -> None:
        """Raises `UserError` unless the known pixels are of images ``shape`` (C, H, W) in [−1, 1]."""
        if self.image is None or self.mask is None:
            return
        if self.image.shape[1:] != shape or self.mask.shape[2:] != shape[1:] or self.mask.shape[1] not in (1, shape[0]):
            shapes = f"image {tuple(self.image.shape[1:])} and mask {tuple(self.mask.shape[1:])}"
            raise UserError(f"known pixels must be of images {shape}, not {shapes}")
        if not self.image.is_floating_point() or not bool((self.image.abs() <= 1.0).all()):
            raise UserError("known pixels must be floating-point numbers in [−1, 1]; scale the image first")

    def inpainting(self, image: Tensor, mask: Tensor, repeats: int = 0) -> Condition:
        """The same concepts with the pixels of ``image`` known where ``mask`` is true."""
        return replace(self, image=image, mask=mask, repeats=repeats)

    def mix(self, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """The weights as a tensor ``(J,)`` beside the labels, or None when there is one concept only."""
        if len(self.weights) == 1:
            return None
        return torch.tensor(self.weights, dtype=dtype).to(self.labels.device, non_blocking=True)


def unconditional() -> Condition:
    """The null label for every image."""
    return Condition(torch.tensor([[NULL_LABEL]]))


def labelled(labels: Tensor | Sequence[int]) -> Condition:
    """One class in 1 … C per image, ``(n,)``."""
    return Condition(_as_labels(labels)[None])


def guided(labels: Tensor | Sequence[int], weight: float) -> Condition:
    """Classifier-free guidance towards one class in 1 … C per image, ``(n,)``, with strength ``weight`` ≥ 0.

    Raises:
        UserError: the weight is negative; `composed` leads away from a class.
    """
    if not weight >= 0:
        raise UserError(f"the weight of guidance must be 0 or more, not {weight}; composed() leads away from a class")
    labels = _as_labels(labels)
    return _combined(torch.stack((labels, torch.zeros_like(labels))), (1.0 + weight, -weight))


def composed(concepts: Tensor | Sequence[Sequence[int]], weights: Sequence[float]) -> Condition:
    """A product of concepts ``(J, n)`` in 1 … C with one weight each; a negative weight negates its concept."""
    concepts = _as_labels(concepts)
    labels = torch.cat((torch.zeros_like(concepts[:1]), concepts))
    return _combined(labels, (1.0 - sum(weights), *weights))


def _as_labels(labels: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):  # words, ragged rows, numbers beyond 64 bits
        raise UserError("labels must be whole numbers, as many for every concept") from None


def _combined(labels: Tensor, weights: tuple[float, ...]) -> Condition:
    """The concepts ``(J, n)`` with their weights; what has weight 0 is left out, and costs nothing."""
    every = Condition(labels, weights)
    asked = [number for number, weight in enumerate(weights) if weight]
    return replace(every, labels=labels[asked], weights=tuple(weights[number] for number in asked))
