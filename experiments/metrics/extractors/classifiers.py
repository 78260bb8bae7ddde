"""What small classifiers trained here have in common: the training, and how an image becomes features and classes.

Shifts and noise of varied strength during training keep features and verdicts meaningful for images that are not quite
those of the data set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.data import ImageSet
from experiments.metrics.extractors import Extracted, Pixels, extract, to_nchw
from experiments.progress import Advance

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights, besides the data. Change ``version`` with the code that uses it.

    Attributes:
        noise: largest standard deviation, in units of half the pixel range.
        shift: largest, in pixels.
    """

    version: int
    seed: int
    width: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    noise: float
    shift: int


class Classifier:
    """An extractor of a network that maps images (n, C, H, W) in [−1, 1] to features (n, d) and logits (n, classes).

    Attributes as of `Extractor`; the arguments are those, and ``channels`` of an image.
    """

    def __init__(
        self, network: nn.Module, device: torch.device, *, name: str, channels: int, dim: int, classes: int,
        sha256: str, cpu_batch: int,
    ) -> None:  # fmt: skip
        self.name, self.dim, self.classes, self.sha256 = name, dim, classes, sha256
        self._device, self._network = device, network.to(device).eval()
        self._channels, self._cpu_batch = channels, cpu_batch

    def __call__(self, pixels: Pixels) -> Extracted:
        """Features (n, d) and probabilities (n, classes) of ``pixels`` (n, H, W, C)."""

        def classified(images: Tensor) -> Extracted:
            features, logits = self._network(images)
            return Extracted(features, logits.softmax(dim=1))

        return extract(classified, to_nchw(pixels, self._channels, self._device) / 127.5 - 1, self._cpu_batch)


def train(
    images: ImageSet, recipe: Recipe, make: Callable[[], Network], *, flip: bool = False,
    advance: Advance = lambda _: None,
) -> Network:  # fmt: skip
    """The network that ``make`` builds, trained to tell the classes of labelled images; the same weights every time on
    one machine.

    Args:
        flip: whether every other image is mirrored.
        advance: is told of images done, ``recipe.epochs`` times all of them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums split over threads round differently
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            network = make()
            x = to_nchw(images.images, images.channels, "cpu") / 127.5 - 1
            labels = torch.as_tensor(images.labels)
            optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
            steps = recipe.epochs * -(-len(x) // recipe.batch_size)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
            for _ in range(recipe.epochs):
                for rows in torch.randperm(len(x)).split(recipe.batch_size):
                    batch = x[rows]
                    if flip:
                        batch = torch.where((torch.rand(len(rows)) < 0.5)[:, None, None, None], batch.flip(3), batch)
                    _, logits = network(_augment(batch, recipe))
                    optimizer.zero_grad()
                    F.cross_entropy(logits, labels[rows], label_smoothing=0.05).backward()
                    optimizer.step()
                    schedule.step()
                    advance(len(rows))
    finally:
        torch.set_num_threads(threads)
    return network.eval()


def _augment(x: Tensor, recipe: Recipe) -> Tensor:
    """Shift each image (its border repeats outward) and add noise of a strength drawn for each image."""
    n, _, height, width = x.shape
    padded = F.pad(x, (recipe.shift,) * 4, mode="replicate").permute(0, 2, 3, 1)
    rows = torch.randint(2 * recipe.shift + 1, (n, 1)) + torch.arange(height)
    columns = torch.randint(2 * recipe.shift + 1, (n, 1)) + torch.arange(width)
    shifted = padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    shifted = shifted.permute(0, 3, 1, 2).contiguous()
    return shifted + recipe.noise * torch.rand(n, 1, 1, 1) * torch.randn_like(shifted)
