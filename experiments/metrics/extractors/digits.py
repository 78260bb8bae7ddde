"""A small classifier of scikit-learn's digits; its 64 penultimate activations are the features of ``fd-digits``.

It is trained where it is first needed, in seconds, on one CPU thread with a fixed seed, on the training split only.
Shifts and noise of varied strength during training keep its features meaningful for images that are not quite digits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.data import ImageSet, load
from experiments.metrics import weights
from experiments.metrics.extractors import Extracted, Pixels, extract, to_nchw
from experiments.progress import announce

DIM, CLASSES = 64, 10
_CPU_BATCH = 16
"""CPU microseconds per image for 1, 4, 16, 64, 256 at once, on one thread: 181, 92, 33, 19, 14."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, besides the data. Change ``version`` with the code that uses it."""

    version: int = 1
    seed: int = 0
    width: int = 32
    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    noise: float = 0.3  # largest standard deviation, in units of half the pixel range
    shift: int = 1  # pixels


class Classifier(nn.Module):
    """Images (n, 1, 8, 8) in [−1, 1] → features (n, 64) and logits (n, 10)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.SiLU(),
            nn.Flatten(), nn.Linear(8 * width, DIM), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(features)


class DigitsExtractor:
    """See the module's docstring. The weights are kept under ``cache``, named by a hash of recipe and data."""

    name, dim, classes = "digits", DIM, CLASSES

    def __init__(self, cache: Path, device: torch.device, recipe: Recipe = Recipe()) -> None:
        images = load("digits", "train")
        path = weight_path(cache, recipe, images.checksum)
        state = weights.load_or_make(path, "the digits classifier", lambda: train(images, recipe).state_dict())
        self.sha256 = weights.digest(state)
        network = Classifier(recipe.width)
        network.load_state_dict(state)
        self._device, self._network = device, network.to(device).eval()

    def __call__(self, pixels: Pixels) -> Extracted:
        """Features (n, 64) and probabilities (n, 10) of ``pixels`` (n, 8, 8, 1)."""

        def classified(images: Tensor) -> Extracted:
            features, logits = self._network(images)
            return Extracted(features, logits.softmax(dim=1))

        return extract(classified, to_nchw(pixels, 1, self._device) / 127.5 - 1, _CPU_BATCH)


def weight_path(cache: Path, recipe: Recipe, checksum: str) -> Path:
    """The file of the weights trained by ``recipe`` on the pixels with this checksum."""
    content = json.dumps([dataclasses.asdict(recipe), checksum], sort_keys=True)
    return cache / "weights" / f"digits-{hashlib.sha256(content.encode()).hexdigest()[:16]}.safetensors"


def train(images: ImageSet, recipe: Recipe) -> Classifier:
    """The classifier of labelled 8×8 digits; the same weights every time on one machine."""
    announce("training the digits classifier")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums split over threads round differently
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            network = Classifier(recipe.width)
            x = to_nchw(images.images, 1, "cpu") / 127.5 - 1
            labels = torch.as_tensor(images.labels)
            optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
            steps = recipe.epochs * -(-len(x) // recipe.batch_size)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
            for _ in range(recipe.epochs):
                for rows in torch.randperm(len(x)).split(recipe.batch_size):
                    _, logits = network(_augment(x[rows], recipe))
                    optimizer.zero_grad()
                    F.cross_entropy(logits, labels[rows], label_smoothing=0.05).backward()
                    optimizer.step()
                    schedule.step()
    finally:
        torch.set_num_threads(threads)
    return network.eval()


def _augment(x: Tensor, recipe: Recipe) -> Tensor:
    """Shift each image (its border repeats outward) and add noise of a strength drawn for each image."""
    n, _, height, width = x.shape
    padded = F.pad(x, (recipe.shift,) * 4, mode="replicate")
    rows = torch.randint(2 * recipe.shift + 1, (n, 1)) + torch.arange(height)
    columns = torch.randint(2 * recipe.shift + 1, (n, 1)) + torch.arange(width)
    shifted = padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]
    return shifted + recipe.noise * torch.rand(n, 1, 1, 1) * torch.randn_like(shifted)
