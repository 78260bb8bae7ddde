"""How much memory an iteration takes: counted on tensors without contents, so that a paper's network needs no GPU.

    footprint = footprint_of(recipe, ImageShape(32, 3))      # seconds, once
    footprint.needed(32)                                     # bytes for shards of 32 images
    footprint.largest_shard(24e9)                            # images

Every operation of a shard, forward and backward, is carried out on PyTorch's "meta" device, where tensors have shapes
and storages but no numbers, and the bytes of the storages that live at the same time are counted. Two sizes of a shard
give bytes per image. What is not there: the allocator's gaps, the workspaces of cuDNN and cuBLAS, the CUDA context, and
the data set's pixels; `MARGIN` stands for them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from cdrl import fast
from cdrl.fast import Engine
from cdrl.langevin import Chain, Refine, Refined
from cdrl.method import Batch, Method
from cdrl.recipe import ImageShape, Recipe

MARGIN = 0.1
"""Share of a device's memory that is left for what is not counted."""
_SIZES = (8, 16)
"""Images in the two shards that are counted: enough that their activations decide when most is alive."""


class Line(NamedTuple):
    """Bytes as a function of the images in a shard."""

    constant: float
    per_image: float

    def at(self, images: float) -> float:
        return self.constant + images * self.per_image


@dataclass(frozen=True)
class Footprint:
    """What training takes on a device, in bytes.

    Attributes:
        fixed: of weights, their averages, their gradients and Adam's two moments.
        chain: what lives beside these while a shard's chain walks; None where a method has none.
        learning: the same of everything else: proposal, both signs of the energy, backward passes.
    """

    fixed: float
    chain: Line | None
    learning: Line

    def needed(self, images: int) -> float:
        """Bytes at the height of an iteration with shards of so many images."""
        return self.fixed + max(line.at(images) for line in self._lines)

    def largest_shard(self, available: float) -> int:
        """How many images a shard may have where so many bytes are, `MARGIN` kept free; 0 where none fits."""
        free = (1.0 - MARGIN) * available - self.fixed
        return max(0, int(min((free - line.constant) / line.per_image for line in self._lines)))

    @property
    def _lines(self) -> tuple[Line, ...]:
        return (self.learning,) if self.chain is None else (self.chain, self.learning)


def footprint_of(recipe: Recipe, shape: ImageShape, device: torch.device | str = "meta") -> Footprint:
    """Counts what a recipe takes for images of a shape.

    Args:
        recipe: one that trains.
        shape: of the images; the classes count only where the recipe is ``conditional``.
        device: "meta", or one that really computes, for comparison.
    """
    phases = _Phases(fast.engine("eager", torch.device(device), recipe.precision).refine)
    method = recipe.build(shape, device=device, engine=Engine(refine=phases.refine))
    for learner in method.learners.values():
        learner.put_gradient(learner.gradient())  # zeros: a shard adds to what others have left
    counted = [phases.of(partial(_shard, method, shape, images)) for images in _SIZES]
    chain, learning = (_line(*heights) for heights in zip(*counted, strict=True))
    return Footprint(_fixed(method), chain if chain.per_image else None, learning)


def _shard(method: Method, shape: ImageShape, images: int) -> None:
    """A shard's part of `Method.train_step`."""
    pixels = torch.zeros(images, shape.channels, shape.size, shape.size, device=method.device)
    labels = torch.ones(images, dtype=torch.long, device=method.device) if shape.classes else None
    for loss in method.losses(Batch.whole(pixels, labels), 0).values():
        loss.backward()


def _fixed(method: Method) -> float:
    """Live and averaged weights with their spectral vectors; a gradient and two moments of every parameter."""
    learners = method.learners.values()
    networks = [network for learner in learners for network in (learner.network, learner.ema.average)]
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    parameters = [parameter for learner in learners for parameter in learner.parameters]
    return float(sum(tensor.nbytes for tensor in tensors) + 3 * sum(parameter.nbytes for parameter in parameters))


def _line(first: int, second: int) -> Line:
    """Through the heights at `_SIZES`."""
    slope = (second - first) / (_SIZES[1] - _SIZES[0])
    return Line(first - slope * _SIZES[0], slope)


class _Phases:
    """Tells the height inside chains from the height outside; of a chain's steps, which are alike, it walks one."""

    def __init__(self, refine: Refine) -> None:
        self._refine = refine
        self._live, self._chain = LiveBytes(), 0

    def of(self, act: Callable[[], None]) -> tuple[int, int]:
        """The most bytes that live at a time in the chains of ``act``, and outside of them."""
        self._live, self._chain = LiveBytes(), 0
        with self._live:
            act()
        return self._chain, self._live.height

    def refine(self, chain: Chain) -> Refined:
        live, outside = self._live, self._live.height
        live.height = live.now
        refined = self._refine(chain._replace(streams=chain.streams[:1]))
        self._chain = max(self._chain, live.height)
        live.height = outside
        return refined


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations make, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.height = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {x.untyped_storage()._cdata for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        results = function(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(results):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in before:  # no view, not in place
                self._count(tensor.untyped_storage())
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name in self._known:
            return
        self._known.add(name)
        self.now += size
        self.height = max(self.height, self.now)
        weakref.finalize(storage, self._release, name, size)

    def _release(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.now -= size
