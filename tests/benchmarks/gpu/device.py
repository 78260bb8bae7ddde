"""The ways to run on a device, and how to measure there."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from cdrl import fast, langevin, precision
from cdrl.fast import Captured, Engine
from cdrl.langevin import Refined

LONG_ENOUGH = 5.0


def engines(device: torch.device, chains_in: str = "fp32") -> dict[str, Callable[[], Engine]]:
    """The forms of the hot loop by name, with chains in a precision.

    An engine is made anew for every part: what it has recorded, it recorded in one precision. On the CPU a stand-in
    takes the place of CUDA graphs, so that a rehearsal goes the same way.
    """
    if device.type != "cuda":
        stand_in = Captured(langevin.refine, record_again)
        return {
            "eager": functools.partial(fast.engine, "eager", device, chains_in),
            "replayed": lambda: Engine("replayed", precision.chains(stand_in, chains_in)),
        }
    modes = [mode for mode in fast.MODES if mode in ("eager", "replayed") or fast.can_compile(device)]
    return {mode: functools.partial(fast.engine, mode, device, chains_in) for mode in modes}


def record_again(chain: Callable[[], Refined]) -> tuple[Callable[[], None], Refined]:
    """In place of `cdrl.fast.Graphs`: a replay walks the chain again on the memory it was recorded on."""
    result = chain()

    def replay() -> None:
        for kept, value in zip(result, chain(), strict=True):
            kept.copy_(value)

    return replay, result


def measured(act: Callable[[], object], device: torch.device, rounds: int = 3) -> dict[str, Any]:
    """The shortest of some rounds after one to warm up, the device waited for, and the peak of its memory.

    Once the rounds have taken `LONG_ENOUGH` seconds there is no further one.
    """
    spent = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(rounds + 1):
        wait(device)
        begin = time.perf_counter()
        act()
        wait(device)
        spent.append(time.perf_counter() - begin)
        if sum(spent[1:]) > LONG_ENOUGH:
            break
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {"seconds": min(spent[1:]), "first_seconds": spent[0], "peak_bytes": peak}


@contextlib.contextmanager
def no_synchronisation(device: torch.device) -> Iterator[None]:
    """Any wait for the device is an error inside."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def forget() -> None:
    """Programs and memory of the part before: its compilations count against a limit, its graphs hold memory."""
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
