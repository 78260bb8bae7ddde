"""The training loop: budget, reports, health, checkpoints. It knows any `cdrl.method.Method` and nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cdrl import checkpoint
from cdrl.method import Method

_EXPLODED = 1e7
"""An energy gap beyond this is a run that has diverged: healthy gaps are of order one."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: ``status`` is "finished", "diverged" or "interrupted"; ``seconds`` are those spent training."""

    status: str
    iteration: int
    seconds: float


def train(
    method: Method,
    batch: Callable[[int], tuple[Tensor, Tensor | None]],
    *,
    batch_size: int,
    iterations: int,
    on_report: Callable[[dict[str, Any]], None],
    report_every: int,
    folder: Path | None = None,
    checkpoint_seconds: float = 30.0,
    milestones: Sequence[int] = (),
    on_milestone: Callable[[int], None] | None = None,
    on_resume: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Train until ``iterations``, from the checkpoint in ``folder`` if there is one.

    Checkpoints are kept at reports only, where the meters are empty: what follows a resume is what would have followed
    without one, numbers in the reports included (all but the seconds).

    Args:
        method: what to train; its state is replaced by the checkpoint's.
        batch: iteration → images ``(B, C, H, W)`` in [−1, 1] and labels ``(B,)`` or None; a pure function.
        batch_size: B, for the accounts.
        iterations: when to stop.
        on_report: receives ``iteration, images, grad_evals, seconds`` and the meters' means per level.
        report_every: iterations between reports, each of which waits for the device once.
        folder: where checkpoints are kept; None keeps none.
        checkpoint_seconds: at least this long between checkpoints.
        milestones: iterations after which ``on_milestone`` is called; its time is not counted.
        on_resume: told the iteration a resumed run starts from.
        should_stop: asked at every iteration; True ends the call with a checkpoint of the last report.
    """
    iteration, seconds = 0, 0.0
    if folder is not None and checkpoint.exists(folder):
        tensors, facts = checkpoint.load(folder, method.device)
        method.load_state(tensors)
        iteration, seconds = facts["iteration"], facts["seconds"]
    if on_resume is not None:
        on_resume(iteration)
    begin = saved = time.monotonic()
    status = "finished"
    stop = should_stop or (lambda: False)
    while iteration < iterations:
        method.train_step(*batch(iteration), iteration)
        iteration += 1
        if iteration in milestones and on_milestone is not None:
            pause = time.monotonic()
            on_milestone(iteration)
            begin += time.monotonic() - pause
        if iteration % report_every and iteration < iterations:
            if stop() and folder is None:
                status = "interrupted"
                break
            continue
        meters = method.meters.read()
        elapsed = seconds + time.monotonic() - begin
        accounts = {"iteration": iteration, "images": iteration * batch_size}
        accounts["grad_evals"] = accounts["images"] * method.training_cost
        on_report({**accounts, "seconds": round(elapsed, 3), **meters})
        if not healthy(meters):
            status = "diverged"
        elif stop():
            status = "interrupted"
        now = time.monotonic()
        if folder is not None and (status != "finished" or iteration == iterations or now - saved > checkpoint_seconds):
            checkpoint.save(folder, method.state(), {"iteration": iteration, "seconds": elapsed, "status": status})
            saved = time.monotonic()
        if status != "finished":
            break
    return Outcome(status, iteration, seconds + time.monotonic() - begin)


def healthy(meters: dict[str, list[float | None]]) -> bool:
    """Whether all means are finite and no energy gap has exploded."""
    values = [value for row in meters.values() for value in row if value is not None]
    gaps = [abs(value) for value in meters.get("energy_gap", []) if value is not None]
    return all(math.isfinite(value) for value in values) and all(gap < _EXPLODED for gap in gaps)
