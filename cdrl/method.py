"""What the trainer and the suite know of a method: it takes training steps, reports, and samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from cdrl.conditions import Condition
from cdrl.learner import Learner


class Meters:
    """Means of named quantities per level, gathered on the device and synchronised only when read.

    Args:
        names: the quantities.
        rows: number of levels + 1 (row 0 stands for "no level").
        device: of the values.
        dtype: of the values.
    """

    def __init__(
        self, names: tuple[str, ...], rows: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.names = names
        self.sums = torch.zeros(len(names) + 1, rows, device=device, dtype=dtype)

    def add(self, level: Tensor, **values: Tensor) -> None:
        """Add one value per image to each quantity, by its name.

        Args:
            level: int64 ``(B,)``.
            values: ``(B,)`` for every name.

        Raises:
            TypeError: a name is missing, or is none of the meters'.
        """
        if wrong := values.keys() ^ set(self.names):
            raise TypeError(f"meters of {', '.join(self.names)}: missing or unknown {', '.join(sorted(wrong))}")
        rows = [values[name].detach() for name in self.names]
        self.sums.index_add_(1, level, torch.stack([torch.ones_like(rows[0]), *rows]))

    def read(self) -> dict[str, list[float | None]]:
        """`means` since the last reading."""
        means = self.means()
        self.sums.zero_()
        return means

    def means(self) -> dict[str, list[float | None]]:
        """Means per level so far (None where there was no image); one synchronisation."""
        counts, *sums = self.sums.tolist()
        return {
            name: [value / count if count else None for value, count in zip(row, counts, strict=True)]
            for name, row in zip(self.names, sums, strict=True)
        }


def rms(images: Tensor) -> Tensor:
    """Root mean square over the pixels of each image, ``(B,)``."""
    return images.detach().square().mean(dim=(1, 2, 3)).sqrt()


class Method(ABC):
    """A generative method in training.

    Subclasses set ``learners`` (the networks by name) and ``meters``, and take the run's ``seed`` and ``iterations``.
    """

    learners: dict[str, Learner]
    meters: Meters
    seed: int
    iterations: int

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self._parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the networks' parameters, and so of everything that is drawn and computed."""
        return self._parameter.dtype

    @property
    def _parameter(self) -> Tensor:
        return next(next(iter(self.learners.values())).network.parameters())

    @property
    @abstractmethod
    def training_cost(self) -> float:
        """Energy-gradient evaluations per image and iteration: the chain's, and two for the learning gradient.

        A method without an energy counts its operations in this unit, which need not give a whole number.
        """

    @property
    @abstractmethod
    def sampling_cost(self) -> float:
        """Energy-gradient evaluations per sampled image."""

    @abstractmethod
    def train_step(self, x0: Tensor, label: Tensor | None, iteration: int) -> None:
        """One iteration on images ``(B, C, H, W)`` in [−1, 1] with labels in 1 … C ``(B,)`` or None."""

    @abstractmethod
    def sample(
        self, n: int, seed: int, condition: Condition | None = None, batch_size: int = 256, first: int = 0
    ) -> Iterator[Tensor]:
        """Images number ``first`` … ``n − 1`` from the averaged weights, in batches ``(B, C, H, W)`` in [−1, 1]."""

    def state(self) -> dict[str, Tensor]:
        """All learners' states as named tensors."""
        return {f"{name}/{key}": value for name, part in self.learners.items() for key, value in part.state().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`. Raises KeyError or RuntimeError when the tensors belong to another method."""
        own, given = ({key for key in keys if "/optimizer." not in key} for keys in (self.state(), tensors))
        if strangers := {key for key in own ^ given if not key.startswith("trainer/")}:
            raise KeyError(min(strangers))
        for name, learner in self.learners.items():
            prefix = f"{name}/"
            learner.load_state({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
