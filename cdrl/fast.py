"""The forms in which the hot loop runs: eager, compiled, captured. Same numbers, different speed.

An `Engine` decides how two things are executed and nothing else: a chain, and the forward and backward passes that are
learned from. `EAGER` is the plain form and the truth for the others; each of them agrees with it to rounding.

    eager     operation by operation
    compiled  one generated program for the Langevin step (noise, gradient, update), one for each training pass
    replayed  on a GPU, a chain's eager steps recorded once as a CUDA graph and replayed: one launch, nothing to compile
    captured  the same of a chain's compiled steps
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._triton import has_triton

from cdrl import langevin, precision
from cdrl.errors import UserError
from cdrl.langevin import Chain, Refine, Refined
from cdrl.networks.energy import FrozenEnergy

MODES = ("eager", "compiled", "replayed", "captured")
_MOST_SHAPES = 64
"""Programs of one function that may be compiled in a process; beyond them the compiler gives up."""

F = TypeVar("F", bound=Callable[..., Any])
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """How the hot loop is executed.

    Attributes:
        mode: "eager", "compiled", "replayed" or "captured".
        refine: runs a chain.
        prepare: turns a function that is learned through into the form to be called instead of it.
    """

    mode: str = "eager"
    refine: Refine = langevin.refine
    prepare: Callable[[F], F] = field(default=lambda function: function)


EAGER = Engine()


def engine(mode: str, device: torch.device, chains_in: str = "fp32") -> Engine:
    """The engine of that name; `EAGER`, with a warning, where the machine cannot compile.

    Args:
        chains_in: the precision of its chains, see `cdrl.precision`.

    Raises:
        UserError: an unknown mode or precision, or "replayed" or "captured" without a GPU.
    """
    found = _engine(mode, device)
    return replace(found, refine=precision.chains(found.refine, chains_in))


def _engine(mode: str, device: torch.device) -> Engine:
    if mode not in MODES:
        raise UserError(f"unknown engine '{mode}'; choose one of {', '.join(MODES)}")
    if mode in ("replayed", "captured") and device.type != "cuda":
        raise UserError(f"engine={mode} records CUDA graphs; use engine=compiled or engine=eager on the CPU")
    if mode == "eager":
        return EAGER
    if mode == "replayed":
        return Engine(mode, Captured(langevin.refine))
    if not can_compile(device):
        _log.warning("no compiler for %s here (a C++ compiler, or Triton on a GPU): running eager", device.type)
        return EAGER
    refine = functools.partial(langevin.refine, stepper=compiled_step())
    return Engine(mode, Captured(refine) if mode == "captured" else refine, _compile)


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` finds what it needs for ``device``."""
    if device.type == "cuda":
        return has_triton()
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def compiled_step() -> langevin.Stepper:
    """`cdrl.langevin.step` as one program: noise, gradient and update; one compilation per shape."""
    return _compile(functools.partial(langevin.step, gradient_of=_functional_gradient))


def _compile(function: F) -> F:
    # One program for each set of shapes: sampling, guidance and last batches have their own, and all are wanted.
    torch._dynamo.config.recompile_limit = max(_MOST_SHAPES, torch._dynamo.config.recompile_limit)
    # fallback_random: dropout draws the numbers it draws in eager mode.
    compiled = torch.compile(function, fullgraph=True, dynamic=False, options={"fallback_random": True})
    return cast("F", compiled)


def _functional_gradient(energy: FrozenEnergy, y: Tensor) -> Tensor:
    """`cdrl.networks.energy.input_gradient` in a form that the compiler can trace through."""
    return torch.func.grad(lambda images: energy(images).sum())(y)


Recorder = Callable[[Callable[[], Refined]], tuple[Callable[[], None], Refined]]
"""Runs a chain on fixed memory and returns what repeats it, and where its result appears."""


class Graphs:
    """Records chains as CUDA graphs, all in one pool of memory.

    A graph's working memory is another's too: two never run at the same time, and `Captured` copies a result before
    the next one runs.
    """

    def __init__(self) -> None:
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def __call__(self, chain: Callable[[], Refined]) -> tuple[Callable[[], None], Refined]:
        """Warms up on a side stream, as capture demands, then records."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            chain()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._graphs[0].pool() if self._graphs else None):
            result = chain()
        self._graphs.append(graph)
        return graph.replay, result


class Captured:
    """A chain that is recorded once for each set of shapes and then replayed on copies of its inputs.

    Args:
        refine: the chain to record.
        record: how it is recorded, CUDA graphs where None; another one takes their place in tests.
    """

    def __init__(self, refine: Refine, record: Recorder | None = None) -> None:
        self._refine, self._record = refine, record or Graphs()
        self._recordings: dict[Any, tuple[list[Tensor], Callable[[], None], Refined]] = {}

    @torch.no_grad()
    def __call__(self, chain: Chain) -> Refined:
        """See `cdrl.langevin.refine`."""
        leaves, structure = pytree.tree_flatten(chain)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        signature = tuple((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in leaves)
        key = (str(structure), signature)
        if key not in self._recordings:
            fixed = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            recorded = functools.partial(self._refine, pytree.tree_unflatten(fixed, structure))
            memory = [leaf for leaf in fixed if isinstance(leaf, Tensor)]
            self._recordings[key] = (memory, *self._record_on(chain.start.device, recorded))
        memory, replay, result = self._recordings[key]
        torch._foreach_copy_(memory, tensors)
        replay()
        return Refined(*(value.clone() for value in result))

    def _record_on(self, device: torch.device, chain: Callable[[], Refined]) -> tuple[Callable[[], None], Refined]:
        """Graphs are recorded on the current device, which need not be the chain's."""
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return self._record(chain)
