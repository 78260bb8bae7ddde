"""A small classifier of CIFAR-10 at 16×16 pixels: whether class-conditional samples show the class they were asked for.

Training it takes minutes, so its weights come with the repository, in half precision; what is known of them (accuracy,
recipe, data) is in the file. They were made by the command

    python -m experiments.metrics.extractors.cifar10 [FILE]

on one CPU thread, from the verified training images alone. Another processor rounds otherwise and gives other weights,
which take the place of the committed ones only together with `SHA256`.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from cdrl.errors import UserError
from experiments.data import ImageSet, load
from experiments.files import sha256
from experiments.metrics import weights
from experiments.metrics.extractors import classifiers
from experiments.metrics.extractors.classifiers import Recipe
from experiments.progress import progress

NAME, SIZE, DIM, CLASSES = "cifar10-16", 16, 96, 10
FILE = Path(__file__).parent / "weights" / "cifar10-16.safetensors"
SHA256 = "82ac59f9a4c5f46063bdcd15b6bb42356b6a845f56ae4ab5a1e549a60308d518"
_CPU_BATCH = 16
RECIPE = Recipe(
    version=1,
    seed=0,
    width=32,
    epochs=12,
    batch_size=128,
    learning_rate=5e-3,
    weight_decay=2e-2,
    noise=0.1,
    shift=1,
)
"""Of the committed weights."""


class Network(nn.Module):
    """Images (n, 3, 16, 16) in [−1, 1] → features (n, 96), the means of 4×4 pixels, and logits (n, 10)."""

    def __init__(self, width: int) -> None:
        super().__init__()

        def layer(channels: int, out: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]

        self.body = nn.Sequential(
            *layer(3, width, 1), *layer(width, 2 * width, 2), *layer(2 * width, 2 * width, 1),
            *layer(2 * width, DIM, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(DIM, CLASSES)
        self.to(memory_format=torch.channels_last)  # a quarter faster on a CPU

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x.contiguous(memory_format=torch.channels_last))
        return features, self.head(features)


class Cifar10Extractor(classifiers.Classifier):
    """See the module's docstring; arguments and errors as of `build`."""

    def __init__(self, device: torch.device, given: str | Path | None = None, expected: str | None = None) -> None:
        path, wanted = Path(given) if given else FILE, expected or SHA256
        if not path.is_file():
            raise UserError(f"no weight file {path}; get it from the repository again")
        if (actual := sha256(path)) != wanted:
            raise UserError(f"{path} has SHA-256 {actual}, not {wanted}; get it from the repository again")
        network = Network(RECIPE.width)
        network.load_state_dict(safetensors.torch.load_file(path))
        super().__init__(
            network, device, name=NAME, channels=3, dim=DIM, classes=CLASSES, sha256=actual, cpu_batch=_CPU_BATCH
        )


def train(images: ImageSet, recipe: Recipe) -> Network:
    """The classifier of labelled 16×16 images; the same weights every time on one machine."""
    with progress(f"training the classifier of {images.name}", recipe.epochs * len(images)) as advance:
        return classifiers.train(images, recipe, lambda: Network(recipe.width), flip=True, advance=advance)


def accuracy(extractor: classifiers.Classifier, images: ImageSet) -> float:
    """The share of labelled images of which it names the class."""
    probabilities = extractor(images.images).probabilities
    assert probabilities is not None
    return float((probabilities.argmax(dim=1) == torch.as_tensor(images.labels)).double().mean())


def main(arguments: Sequence[str]) -> None:
    """Train, write the file, and print what is known of it."""
    path = Path(arguments[0]) if arguments else FILE
    images, held_out, recipe = load("cifar10", "train", size=SIZE), load("cifar10", "test", size=SIZE), RECIPE
    start = time.process_time()
    network = train(images, recipe)
    seconds = time.process_time() - start

    # Half precision, and judged as it will be read.
    state = {name: value.half() for name, value in network.state_dict().items() if value.is_floating_point()}
    weights.save(path, state)
    judged = Cifar10Extractor(torch.device("cpu"), path, sha256(path))
    about = {
        "accuracy": f"{accuracy(judged, held_out):.4f} of {len(held_out)} test images",
        "data": f"cifar10 at {SIZE}x{SIZE}, training images with SHA-256 {images.checksum}",
        "made by": f"python -m experiments.metrics.extractors.cifar10, in {seconds:.0f} s of one CPU thread",
        "recipe": str(dataclasses.asdict(recipe)),
    }
    weights.save(path, state, about)
    print(*(f"{key}: {value}" for key, value in about.items()), f"SHA-256: {sha256(path)}", sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
