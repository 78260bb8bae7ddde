"""A small classifier of scikit-learn's digits; its 64 penultimate activations are the features of ``fd-digits``.

It is trained where it is first needed, in seconds, on one CPU thread with a fixed seed, on the training split only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.data import ImageSet, load
from experiments.metrics import weights
from experiments.metrics.extractors import classifiers
from experiments.metrics.extractors.classifiers import Recipe
from experiments.progress import announce

DIM, CLASSES = 64, 10
_CPU_BATCH = 16
"""CPU microseconds per image for 1, 4, 16, 64, 256 at once, on one thread: 181, 92, 33, 19, 14."""

RECIPE = Recipe(
    version=1,
    seed=0,
    width=32,
    epochs=40,
    batch_size=64,
    learning_rate=4e-3,
    weight_decay=1e-2,
    noise=0.3,
    shift=1,
)


class Network(nn.Module):
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


class DigitsExtractor(classifiers.Classifier):
    """See the module's docstring. The weights are kept under ``cache``, named by a hash of recipe and data."""

    def __init__(self, cache: Path, device: torch.device, recipe: Recipe = RECIPE) -> None:
        images = load("digits", "train")
        path = weight_path(cache, recipe, images.checksum)
        state = weights.load_or_make(path, "the digits classifier", lambda: train(images, recipe).state_dict())
        network = Network(recipe.width)
        network.load_state_dict(state)
        super().__init__(
            network, device, name="digits", channels=1, dim=DIM, classes=CLASSES, sha256=weights.digest(state),
            cpu_batch=_CPU_BATCH,
        )  # fmt: skip


def weight_path(cache: Path, recipe: Recipe, checksum: str) -> Path:
    """The file of the weights trained by ``recipe`` on the pixels with this checksum."""
    content = json.dumps([dataclasses.asdict(recipe), checksum], sort_keys=True)
    return cache / "weights" / f"digits-{hashlib.sha256(content.encode()).hexdigest()[:16]}.safetensors"


def train(images: ImageSet, recipe: Recipe) -> Network:
    """The classifier of labelled 8×8 digits; the same weights every time on one machine."""
    announce("training the digits classifier")
    return classifiers.train(images, recipe, lambda: Network(recipe.width))
