"""One model on one and on two processes: the points that the model of ``docs/scaling.md`` is checked against.

pytest --benchmark-only tests/benchmarks/test_scaling.py
"""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from cdrl.method import Batch
from cdrl.parallel import Group, joined
from tests.benchmarks import cases

SHARDS = 2
PARAMETERS = 38_602_947
"""Of the paper's two networks."""
TURNS = [1, 2]
"""One and two processes take turns."""

Act = Callable[[Group], None]


def iteration(size: str, batch: int) -> Act:
    """One iteration of CDRL; every process takes its shards."""
    setting = cases.SIZES[size]
    method, each = cases.build(setting), batch // SHARDS
    images = cases.images(setting, batch).split(each)
    shards = [Batch(part, None, torch.arange(each) + each * number, 1 / SHARDS) for number, part in enumerate(images)]
    return lambda group: method.train_step([shards[number] for number in group.share()], 1, group)


def reduction(numbers: int) -> Act:
    """The ordered sum of one vector for each shard, here of ones, in every process."""
    vector = torch.ones(numbers)

    def act(group: Group) -> None:
        group.total([vector.clone()])

    return act


ACTS: dict[str, Callable[[], Act]] = {
    "nano": lambda: iteration("nano", 32),
    "mini": lambda: iteration("mini", 8),
    "paper": lambda: reduction(PARAMETERS),
}


@contextmanager
def two_processes(name: str) -> Iterator[Group]:
    """This process's group with a second one, which does the same act whenever this one decides to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    second = multiprocessing.get_context("spawn").Process(target=follow, args=(name, address))
    second.start()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {**address, "RANK": "0"}.items():
            patch.setenv(key, value)
        with joined(shards=SHARDS) as group:
            yield group
            group.decided(False)
    second.join()


def follow(name: str, address: dict[str, str]) -> None:
    """The second process."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {**address, "RANK": "1"}.items():
            patch.setenv(key, value)
        torch.set_num_threads(1)
        act = ACTS[name]()
        with joined(shards=SHARDS) as group:
            while group.decided(True):
                act(group)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize(("size", "images"), [("nano", 32), ("mini", 8)])
def test_iteration_in_two_shards(measure: Any, size: str, images: int, turn: int, processes: int) -> None:
    measured(measure, size, f"processes/iteration {size}", images, processes)


def test_reduction_of_the_papers_gradients(measure: Any) -> None:
    measured(measure, "paper", "processes/reduction 38.6 M", 1, 2)


def measured(measure: Any, name: str, case: str, images: int, processes: int) -> None:
    """``fast`` is one process, so that the table says how many times faster it is than two."""
    act, variant = ACTS[name](), "fast" if processes == 1 else f"{processes} processes"
    if processes == 1:
        measure(lambda: act(Group(shards=SHARDS)), case, variant, images, rounds=5)
        return
    with two_processes(name) as group:
        measure(lambda: (group.decided(True), act(group)), case, variant, images, rounds=5)
