"""The training loop: one flat loop for any `Method`, with reports, health checks and checkpoints.

Killed anywhere, a run called again goes on from its last checkpoint and, because every draw is a function of (seed,
iteration), ends bit for bit where it would have ended without the kill (on the CPU), on any number of processes.
Nothing in the loop waits for the device but reports and checkpoints.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cdrl import checkpoint
from cdrl.errors import UserError
from cdrl.method import Batch, Method
from cdrl.parallel import ALONE, Group

Batches = Callable[[int, int, int], Batch]
"""(iteration 0, 1, …; number of the first image in the iteration's batch; how many) → a shard, on the device."""

Report = dict[str, Any]

LIMITS = {"displacement": 1e2, "proposal_error": 1e2, "refined_error": 1e2}
"""A mean beyond these shows divergence; all are root mean squares over pixels of images in [−1, 1]."""
LIMIT = 1e8
"""The same for every other meter."""

_METERS = "trainer/meters"


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        status: "finished", "interrupted" (call again to go on) or "diverged".
        iteration: iterations done.
        seconds: spent training, over all calls; without milestones.
        reason: which number went wrong, when diverged.
        kept: the iteration of the weights in the checkpoint, when they are earlier: the last healthy ones kept.
    """

    status: str
    iteration: int
    seconds: float
    reason: str = ""
    kept: int | None = None


def train(
    method: Method,
    batches: Batches,
    *,
    batch_size: int,
    iterations: int,
    group: Group = ALONE,
    on_report: Callable[[Report], None],
    report_every: int,
    folder: Path | None,
    checkpoint_seconds: float = 30.0,
    milestones: Sequence[int] = (),
    on_milestone: Callable[[int], None] | None = None,
    on_resume: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Train until ``iterations`` are done, or go on from the checkpoint in ``folder``.

    Args:
        method: what is trained, in place.
        batches: the data.
        batch_size: images an iteration.
        iterations: the run's length.
        group: the shards of a batch, and the processes that share them. All call this with the same arguments; the
            first of them decides, reports and keeps.
        on_report: called every ``report_every`` iterations and at the end with {"iteration", "images", "grad_evals",
            "seconds", "lr": {network: rate}, and each meter's means per level (None: no image, or not finite)}.
        report_every: iterations; the only ones at which the device is waited for, checkpoints apart.
        folder: where the checkpoint is, or None to keep none.
        checkpoint_seconds: time between checkpoints of a healthy run. One is also kept when the run ends or is
            interrupted; a run that diverged leaves its last healthy one, if there is any.
        milestones: iterations after which ``on_milestone`` is called; its time is not counted. After a kill the last
            may come again.
        on_milestone: see there.
        on_resume: called once before the first iteration with the number of iterations already done; reports after that
            one will be made again, with the same numbers.
        should_stop: asked before every iteration. Ctrl-C does the same, at the end of the iteration.

    Raises:
        UserError: impossible numbers, or a checkpoint that is damaged or belongs to another configuration.

    Example:
        recipe = CooperativeRecipe(batch_size=32, …)                                   # cdrl.recipe
        method = recipe.build(ImageShape(size=8, channels=1), iterations=1000)
        train(method, batches, batch_size=32, iterations=1000, on_report=print, report_every=100, folder=Path("run"))
    """
    _check_positive(batch_size=batch_size, iterations=iterations, report_every=report_every)
    if batch_size % group.shards:
        raise UserError(f"a batch of {batch_size} images cannot be {group.shards} equal shards")
    size = batch_size // group.shards

    # Start, or go on from the checkpoint.
    start = _restore(method, folder)
    group.agree({"iteration to go on from": start.iteration})
    if on_resume is not None and group.first:
        on_resume(start.iteration)
    if start.status == "diverged":
        return start
    if start.iteration >= iterations:
        return replace(start, status="finished")

    iteration, reason, clock = start.iteration, "", _Clock(start.seconds)
    saved_at = clock.seconds
    with _deferred_interrupt() as interrupted:

        def wished() -> bool:
            return interrupted() or (should_stop is not None and should_stop())

        while iteration < iterations and not group.decided(group.first and wished()):
            # One iteration.
            shards = (batches(iteration, number * size, size) for number in group.share())
            method.train_step(shards, iteration, group)
            iteration += 1

            # Report, and end a run that diverged.
            if iteration % report_every == 0 or iteration == iterations:
                meters = method.meters.read()
                reason = _divergence(meters)
                spent = iteration * batch_size
                if group.first:
                    on_report(
                        {
                            "iteration": iteration,
                            "images": spent,
                            "grad_evals": round(spent * method.training_cost),
                            "seconds": round(clock.seconds, 3),
                            "lr": _rates(method, iteration - 1),
                            **_finite(meters),
                        }
                    )
                if reason:
                    break

            # Milestone.
            if on_milestone is not None and iteration in milestones and group.first:
                with clock.paused(method.device):
                    on_milestone(iteration)

            # Checkpoint, unless its weights would be diverged ones.
            if folder is not None and group.first and clock.seconds - saved_at >= checkpoint_seconds:
                if not _divergence(method.meters.means()):
                    _keep(method, folder, Outcome("interrupted", iteration, clock.seconds))
                saved_at = clock.seconds

    # Outcome, and the last checkpoint.
    status = "diverged" if reason else "finished" if iteration >= iterations else "interrupted"
    outcome = Outcome(status, iteration, clock.seconds, reason)
    if folder is not None and group.first and iteration > start.iteration:
        _conclude(method, folder, outcome)
    return outcome


class _Clock:
    """Seconds spent, on top of those of earlier calls."""

    def __init__(self, before: float) -> None:
        self._begin = time.monotonic() - before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    @contextmanager
    def paused(self, device: torch.device) -> Iterator[None]:
        """Does not count what happens inside; work still queued on the device is waited for, and counted, first."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.monotonic()
        yield
        self._begin += time.monotonic() - begin


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into an answer "yes", so that no iteration is cut in two; a second one interrupts."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def remember(*_: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _keep(method: Method, folder: Path, outcome: Outcome) -> None:
    tensors = {**method.state(), _METERS: method.meters.sums}
    checkpoint.save(folder, tensors, vars(outcome))


def _conclude(method: Method, folder: Path, outcome: Outcome) -> None:
    """Keeps the run's end; healthy weights that are at hand do not give way to diverged ones."""
    if outcome.status == "diverged" and checkpoint.exists(folder):
        before = checkpoint.facts(folder)
        checkpoint.annotate(folder, vars(replace(outcome, kept=before["iteration"])))
    else:
        _keep(method, folder, outcome)


def _restore(method: Method, folder: Path | None) -> Outcome:
    """Where the checkpoint leaves off; the beginning when there is none."""
    if folder is None or not checkpoint.exists(folder):
        return Outcome("interrupted", 0, 0.0)
    tensors, facts = checkpoint.load(folder)
    try:
        start = Outcome(**facts)
        if start.iteration and not any("/optimizer." in name for name in tensors):
            raise KeyError("optimizer")
        method.load_state(tensors)
        method.meters.sums.copy_(tensors[_METERS])
        return start
    except torch.OutOfMemoryError:
        raise
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"the checkpoint in {folder} belongs to another configuration ({error!s:.80}); restore that one, or delete "
            "the folder"
        ) from None


def _divergence(meters: dict[str, list[float | None]]) -> str:
    """The first meter that shows divergence, in words, or nothing."""
    for name, values in meters.items():
        limit = LIMITS.get(name, LIMIT)
        for level, value in enumerate(values):
            if value is not None and not abs(value) <= limit:
                return f"{name} is {value:.3g} at level {level} (limit {limit:.0e})"
    return ""


def _finite(meters: dict[str, list[float | None]]) -> dict[str, list[float | None]]:
    """JSON has no NaN."""
    return {
        name: [value if value is not None and math.isfinite(value) else None for value in values]
        for name, values in meters.items()
    }


def _rates(method: Method, iteration: int) -> dict[str, float]:
    return {name: learner.settings.rate(iteration, method.iterations) for name, learner in method.learners.items()}


def _check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
