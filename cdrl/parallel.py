"""A batch in shards, shared by any number of processes that end with the same bits.

A batch is a fixed number of shards, which is part of what a run is. A process takes one or several of them, one after
the other, so that any batch fits any device; how many processes there are changes nothing but the time. That holds
because floating-point sums depend on their order, and here the order is always that of the shards:

    g = ((g_1 + g_2) + g_3) + …          g_s: gradients, and meters, of shard s

Every process adds up one piece of these vectors, for all shards, and hands the sum to the others: each sends and
receives what an all-reduce would (as long as it has one shard), but in an order that everybody knows.

    with joined(shards=8) as group:             # torchrun --standalone --nproc-per-node=4 script.py
        train(method, batches, group=group, …)
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cdrl.errors import UserError

_TIMEOUT = datetime.timedelta(hours=6)
"""How long a process waits for another that neither comes nor dies; one that dies is noticed at once."""


@dataclass(frozen=True)
class Group:
    """The processes that train one model together, as seen by one of them; by default there is only this one.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
        shards: parts of a batch, among all processes.
        exact: add in the order of the shards; false takes an all-reduce, whose order is its own.

    Raises:
        UserError: there are more processes than shards.
    """

    rank: int = 0
    size: int = 1
    shards: int = 1
    exact: bool = True

    def __post_init__(self) -> None:
        if self.shards < self.size:
            raise UserError(
                f"{self.size} processes cannot share {self.shards} shard{'s' * (self.shards != 1)} of a batch; take "
                "fewer processes, or more shards (a setting of the method, and part of what the run is)"
            )

    @property
    def first(self) -> bool:
        """Whether this process decides, reports and writes."""
        return self.rank == 0

    def share(self, rank: int | None = None) -> range:
        """The shards of a process, by default of this one, in order."""
        rank = self.rank if rank is None else rank
        return range(rank * self.shards // self.size, (rank + 1) * self.shards // self.size)

    def total(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum of the vectors of all shards, in their order; every process gets the same.

        Args:
            parts: this process's vectors ``(N,)``, one for each of its `share`. The first process, whose vectors begin
                the sum, has added its own already.
        """
        if self.size == 1:
            return parts[0]
        if not self.exact:
            dist.all_reduce(total := _sum(parts))
            return total

        # Who sends how many vectors, and who adds up which piece.
        counts = [1 if rank == 0 else len(self.share(rank)) for rank in range(self.size)]
        length = len(parts[0])
        edges = [length * rank // self.size for rank in range(self.size + 1)]
        pieces = [slice(*edges[rank : rank + 2]) for rank in range(self.size)]
        own = edges[self.rank + 1] - edges[self.rank]

        # Everybody's part of my piece; then my sum of it to everybody.
        sent = torch.cat([part[piece] for piece in pieces for part in parts])
        received = sent.new_empty(sum(counts) * own)
        dist.all_to_all_single(
            received,
            sent,
            output_split_sizes=[count * own for count in counts],
            input_split_sizes=[len(parts) * (piece.stop - piece.start) for piece in pieces],
        )
        mine = _sum(received.view(sum(counts), own).unbind())
        total = torch.empty_like(parts[0])
        dist.all_to_all_single(
            total,
            mine.repeat(self.size),
            output_split_sizes=[piece.stop - piece.start for piece in pieces],
            input_split_sizes=[own] * self.size,
        )
        return total

    def decided(self, decision: bool) -> bool:
        """What the first process decided; the others' opinion is not asked. No GPU is waited for."""
        if self.size == 1:
            return decision
        flag = torch.tensor([decision], dtype=torch.uint8)
        dist.broadcast(flag, src=0, group=_words)
        return bool(flag)

    def gathered(self, value: Any) -> list[Any]:
        """Everybody's ``value``, by rank; every process gets the same. Tensors must be on the CPU."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=_words)
        return values

    def agree(self, facts: Mapping[str, object]) -> None:
        """Makes sure that all processes mean the same run.

        Args:
            facts: what must be equal, by what it is called: {"version": …, "configuration": …}.

        Raises:
            UserError: in every process, naming one that is out of step and the first fact that differs.
        """
        first, *others = self.gathered(dict(facts))
        for rank, theirs in enumerate(others, start=1):
            for name in [*first, *theirs]:
                if first.get(name) != theirs.get(name):
                    raise UserError(
                        f"process {rank} of {self.size} is out of step: its {name} is {theirs.get(name)}, the first "
                        f"process's {first.get(name)}; start all of them from the same code, settings and data"
                    )


ALONE = Group()
"""A single process, and batches of one shard."""

_words: Any = None
"""Where decisions travel: between CPUs, also when gradients travel between GPUs. None: where gradients do."""


def place() -> tuple[int, int]:
    """This process's rank, and how many there are, as torchrun or whoever started them says; (0, 1) for one alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(shards: int = 1, device: torch.device | str = "cpu", exact: bool = True) -> Iterator[Group]:
    """The group that torchrun, or whoever sets its variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), started.

    Args:
        shards: of a batch.
        device: where the gradients are: NCCL carries them between GPUs, Gloo between CPUs.
        exact: see `Group`.

    Raises:
        UserError: there are more processes than shards.
    """
    global _words
    if place()[1] == 1:
        yield Group(shards=shards, exact=exact)
        return
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        _words = dist.new_group(backend="gloo", timeout=_TIMEOUT) if backend == "nccl" else None
        yield Group(dist.get_rank(), dist.get_world_size(), shards, exact)
    finally:
        _words = None
        dist.destroy_process_group()


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """One after the other, in place of the first."""
    total = parts[0]
    for part in parts[1:]:
        total.add_(part)
    return total
