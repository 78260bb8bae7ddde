"""What the trainer and the suite know of a method: it takes training steps, reports, and samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cdrl.conditions import Condition
from cdrl.learner import Learner
from cdrl.networks.spectral import iterate_all
from cdrl.parallel import ALONE, Group


class Batch(NamedTuple):
    """Training images, all of an iteration's or one shard of them, on the device."""

    images: Tensor
    """``(B, C, H, W)`` in [−1, 1]."""
    labels: Tensor | None
    """In 1 … C, int64 ``(B,)``; None without labels."""
    image_index: Tensor
    """Each image's position in the whole batch, which names its random draws; int64 ``(B,)``."""
    share: float = 1.0
    """Of the whole batch."""

    @classmethod
    def whole(cls, images: Tensor, labels: Tensor | None = None) -> Batch:
        """A batch of one shard."""
        return cls(images, labels, torch.arange(len(images), device=images.device))


class Meters:
    """Means of named quantities per level, gathered on the device and synchronised only when read.

    The last iterations are kept one by one, for whoever asks what happened (`recorded`).

    Args:
        names: quantities of an image.
        norms: quantities of an iteration; they count as every image's.
        rows: number of levels + 1 (row 0 stands for "no level").
        device: of the values.
        dtype: of the values.
    """

    WINDOW = 256
    """Iterations that are kept one by one."""

    def __init__(
        self,
        names: tuple[str, ...],
        norms: tuple[str, ...],
        rows: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.names = names + norms
        self._of_images = set(names)
        self.sums = torch.zeros(len(self.names) + 1, rows, device=device, dtype=dtype)
        """Since the last reading: a row of counts, then one of sums for each name."""
        self.fresh = torch.zeros_like(self.sums)
        """The same of the iteration that is going on."""
        self.history = self.sums.new_zeros(self.WINDOW, *self.sums.shape)
        """The same of the last iterations; number i is at i mod `WINDOW`."""

    def add(self, level: Tensor, **values: Tensor) -> None:
        """Add one value per image to each quantity, by its name.

        Args:
            level: int64 ``(B,)``.
            values: ``(B,)`` for every name.

        Raises:
            TypeError: a name is missing, or is none of the meters'.
        """
        if wrong := values.keys() ^ self._of_images:
            raise TypeError(f"meters of {', '.join(self.names)}: missing or unknown {', '.join(sorted(wrong))}")
        rows = [values[name].detach() for name in self.names if name in values]
        # A shard's own sums first, so that those of all shards add up in the same order everywhere.
        shard = torch.zeros_like(self.fresh[: len(rows) + 1])
        shard.index_add_(1, level, torch.stack([torch.ones_like(rows[0]), *rows]))
        self.fresh[: len(rows) + 1] += shard

    def conclude(self, norms: Sequence[Tensor], iteration: int) -> None:
        """Iteration 0, 1, … is over: ``norms`` are its scalars, in the order of their names."""
        self.fresh[-len(norms) :] = self.fresh[0] * torch.stack(list(norms))[:, None]
        self.sums += self.fresh
        self.history[iteration % self.WINDOW] = self.fresh
        self.fresh.zero_()

    def read(self) -> dict[str, list[float | None]]:
        """`means` since the last reading."""
        means = self.means()
        self.sums.zero_()
        return means

    def means(self) -> dict[str, list[float | None]]:
        """Means per level so far (None where there was no image); one synchronisation."""
        return self._means(self.sums.tolist())

    def recorded(self, first: int, stop: int) -> list[dict[str, list[float | None]]]:
        """`means` of each of the iterations ``first … stop − 1``, the last `WINDOW` of them; one synchronisation."""
        history = self.history.tolist()
        return [self._means(history[i % self.WINDOW]) for i in range(max(first, stop - self.WINDOW, 0), stop)]

    def _means(self, sums: list[list[float]]) -> dict[str, list[float | None]]:
        counts, *values = sums
        return {
            name: [value / count if count else None for value, count in zip(row, counts, strict=True)]
            for name, row in zip(self.names, values, strict=True)
        }

    def state(self) -> dict[str, Tensor]:
        """What has been gathered, as named tensors."""
        return {"sums": self.sums, "history": self.history}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`. Raises KeyError or RuntimeError when the tensors belong to other meters."""
        for name, own in self.state().items():
            own.copy_(tensors[name])


def rms(images: Tensor) -> Tensor:
    """Root mean square over the pixels of each image, ``(B,)``."""
    return images.detach().square().mean(dim=(1, 2, 3)).sqrt()


def reach(images: Tensor) -> Tensor:
    """The largest absolute pixel of each image, ``(B,)``."""
    return images.detach().abs().amax(dim=(1, 2, 3))


class Method(ABC):
    """A generative method in training.

    Subclasses set ``learners`` (the networks by name) and ``meters``, and take the run's ``seed`` and ``iterations``.
    They say what is lost on a shard (`losses`); how shards, processes and networks become one step stands here.
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
        """Of an image in an iteration, all networks counted, in the unit of `cdrl.cost`."""

    @property
    @abstractmethod
    def sampling_cost(self) -> float:
        """Of a sampled image, all networks counted, in the unit of `cdrl.cost`."""

    @abstractmethod
    def losses(self, batch: Batch, iteration: int) -> dict[str, Tensor]:
        """What is lost on a shard, as the mean over its images: a differentiable scalar for each learner.

        Values for the meters are added on the way.
        """

    def train_step(self, shards: Iterable[Batch], iteration: int, group: Group = ALONE) -> None:
        """One iteration: the gradients of every shard, their sum over all processes, one step of each learner.

        Args:
            shards: this process's, in order; each is let go before the next is asked for.
            iteration: 0, 1, …
            group: the processes that share the batch.

        Raises:
            UserError: images that are not the networks'.
        """
        # The power iteration, one as a rule: every shard, chain and pass of this iteration shares its result.
        learners = self.learners.values()
        for learner in learners:
            learner.clear_gradient()
            iterate_all(learner.network, learner.settings.power_iterations)

        # Gradients and meters add up in place, which is the order of the shards; a later process keeps its shards
        # apart, because the sum of an earlier process comes before them.
        parts: list[Tensor] = []
        for batch in shards:
            for loss in self.losses(batch, iteration).values():
                (loss if batch.share == 1.0 else batch.share * loss).backward()
            if not group.first:
                parts.append(self._taken())
        if group.size > 1:
            self._put(group.total(parts or [self._taken()]))

        # One step of each learner.
        self.meters.conclude([learner.descend(iteration, self.iterations) for learner in learners], iteration)

    def _taken(self) -> Tensor:
        """Gradients and meters of the iteration so far, as one vector; they then begin again at nothing."""
        taken = [learner.gradient() for learner in self.learners.values()]
        vector = torch.cat([*taken, self.meters.fresh.flatten()])
        for learner in self.learners.values():
            learner.clear_gradient()
        self.meters.fresh.zero_()
        return vector

    def _put(self, vector: Tensor) -> None:
        """The inverse of `_taken`."""
        sizes = [learner.size for learner in self.learners.values()]
        *gradients, meters = vector.split([*sizes, self.meters.fresh.numel()])
        for learner, gradient in zip(self.learners.values(), gradients, strict=True):
            learner.put_gradient(gradient)
        self.meters.fresh.copy_(meters.view_as(self.meters.fresh))

    @abstractmethod
    def sample(
        self,
        n: int,
        seed: int,
        condition: Condition | None = None,
        batch_size: int = 256,
        first: int = 0,
        every: int = 1,
    ) -> Iterator[Tensor]:
        """Images from the averaged weights, in batches ``(B, C, H, W)`` in [−1, 1].

        Which of them say ``first`` and ``every``: see `cdrl.sampler.index_batches`.
        """

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
