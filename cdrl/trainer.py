"""The training loop: one flat loop for any `Method`, with reports, checks of its health, rollbacks and checkpoints.

Killed anywhere, a run called again goes on from its last checkpoint and, because every draw is a function of (seed,
iteration), ends bit for bit where it would have ended without the kill (on the CPU), on any number of processes.
Nothing in the loop waits for the device but reports, checks and checkpoints.

Two states are kept. The *checkpoint* is the newest, by the clock. The *anchor* is the last one, at iterations fixed
beforehand, that was found healthy: a run that diverges goes back to it (`cdrl.guard`), however it was killed before,
and one whose checkpoint is damaged goes on from it.
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
from torch import Tensor

from cdrl import checkpoint
from cdrl.errors import UserError
from cdrl.guard import STANDARD, Guard, Trip, trouble
from cdrl.method import Batch, Method
from cdrl.parallel import ALONE, Group

Batches = Callable[[int, int, int], Batch]
"""(iteration 0, 1, …; number of the first image in the iteration's batch; how many) → a shard, on the device."""

Report = dict[str, Any]

CHECKPOINT, ANCHOR = "checkpoint", "anchor"
"""Stems of the files that hold the two states; see `cdrl.checkpoint`."""
STATUSES = ("interrupted", "finished", "diverged")
_METERS = "trainer/meters."


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended; also what stands beside the tensors of a state.

    Attributes:
        status: "finished", "interrupted" (call again to go on) or "diverged".
        iteration: iterations done, also those that a rollback took back.
        seconds: spent training, over all calls; without milestones.
        reason: which number went wrong, when diverged.
        rollbacks: how often the run went back to its anchor.
        lost: iterations that these took back.
        allowed: rollbacks, after which the run is given up.
    """

    status: str
    iteration: int
    seconds: float
    reason: str = ""
    rollbacks: int = 0
    lost: int = 0
    allowed: int = 0


def train(
    method: Method,
    batches: Batches,
    *,
    batch_size: int,
    iterations: int,
    group: Group = ALONE,
    guard: Guard = STANDARD,
    on_report: Callable[[Report], None],
    report_every: int,
    folder: Path | None,
    checkpoint_seconds: float = 30.0,
    milestones: Sequence[int] = (),
    on_milestone: Callable[[int], None] | None = None,
    on_resume: Callable[[int], None] | None = None,
    on_trip: Callable[[Trip], None] | None = None,
    on_damage: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    retry: bool = False,
) -> Outcome:
    """Train until ``iterations`` are done, or go on from what is kept in ``folder``.

    Args:
        method: what is trained, in place.
        batches: the data.
        batch_size: images an iteration.
        iterations: the run's length, rollbacks included.
        group: the shards of a batch, and the processes that share them. All call this with the same arguments; the
            first of them decides, reports and keeps.
        guard: what is done about divergence.
        on_report: called every ``report_every`` iterations and at the end with {"iteration", "images", "grad_evals",
            "seconds", "lr": {network: rate}, and each meter's means per level (None: no image, or not finite)}.
        report_every: iterations.
        folder: where checkpoint and anchor are, or None to keep none.
        checkpoint_seconds: time between checkpoints of a healthy run. One is also kept when the run ends or is
            interrupted. What is not healthy is never kept.
        milestones: iterations after which ``on_milestone`` is called; its time is not counted. After a kill the last
            may come again.
        on_milestone: see there.
        on_resume: called once before the first iteration with the number of iterations already done; reports after that
            one will be made again, with the same numbers.
        on_trip: called for each rollback; after a kill the last may come again.
        on_damage: called with what is damaged, in words, where the run can go on without it.
        should_stop: asked before every iteration. Ctrl-C does the same, at the end of the iteration.
        retry: take up a run that was given up: as many rollbacks are allowed again.

    Raises:
        UserError: impossible numbers, or a folder whose state is damaged or belongs to another configuration.

    Example:
        recipe = CooperativeRecipe(batch_size=32, …)                                   # cdrl.recipe
        method = recipe.build(ImageShape(size=8, channels=1), iterations=1000)
        train(method, batches, batch_size=32, iterations=1000, on_report=print, report_every=100, folder=Path("run"))
    """
    _check_positive(batch_size=batch_size, iterations=iterations, report_every=report_every)
    if batch_size % group.shards:
        raise UserError(f"a batch of {batch_size} images cannot be {group.shards} equal shards")
    size = batch_size // group.shards
    anchor_every = math.ceil(iterations / guard.anchors)

    # Start, or go on from what is kept.
    kept = _restore(method, folder, iterations, group, on_damage)
    state = kept or Outcome("interrupted", 0, 0.0, allowed=guard.rollbacks)
    group.agree({"iteration to go on from": state.iteration})
    if on_resume is not None and group.first:
        on_resume(state.iteration)
    if state.status == "diverged":
        if not retry or state.iteration >= iterations:
            return state
        state = replace(state, status="interrupted", reason="", allowed=state.rollbacks + guard.rollbacks)
    if state.iteration >= iterations:
        return replace(state, status="finished")
    _slow_down(method, guard, state.rollbacks)

    begun = checked = state.iteration
    clock = _Clock(state.seconds)
    saved_at = clock.seconds
    with _deferred_interrupt() as interrupted:
        anchor = _Anchor(method, folder, group)
        if not anchor.there:
            anchor.keep(state)

        def to_go_on() -> bool:
            stop = group.first and (interrupted() or (should_stop is not None and should_stop()))
            return state.status == "interrupted" and state.iteration < iterations and not group.decided(stop)

        def keep_checkpoint() -> None:
            """Unless its weights would be diverged ones."""
            if folder is not None and group.first and not trouble(method, checked, state.iteration):
                _keep(method, folder, CHECKPOINT, state)

        while to_go_on():
            # One iteration.
            shards = (batches(state.iteration, number * size, size) for number in group.share())
            method.train_step(shards, state.iteration, group)
            iteration = state.iteration + 1
            state = replace(state, iteration=iteration, seconds=clock.seconds)

            # Check.
            last, tripped, reason = iteration == iterations, False, ""
            to_report, to_anchor = last or iteration % report_every == 0, iteration % anchor_every == 0
            if to_report or to_anchor or iteration % guard.every == 0:
                reason = trouble(method, checked, iteration)
                tripped, checked = group.decided(bool(reason)), iteration

            # Report.
            if to_report:
                meters, images = method.meters.read(), iteration * batch_size
                report = {
                    "iteration": iteration,
                    "images": images,
                    "grad_evals": round(images * method.training_cost),
                    "seconds": round(state.seconds, 3),
                    "lr": _rates(method, iteration - 1),
                    **_finite(meters),
                }
                if group.first:
                    on_report(report)

            # Diverged: back to the anchor. After too often it stays there; also where that is the very beginning and no
            # iteration is left.
            if tripped:
                record, back = method.meters.recorded(0, iteration), anchor.restore()
                lost = state.lost + iteration - back.iteration
                state = replace(state, rollbacks=state.rollbacks + 1, lost=lost)
                if group.first and on_trip is not None:
                    on_trip(Trip(state.rollbacks, iteration, back.iteration, reason, record))
                if state.rollbacks > state.allowed or (last and back.iteration == 0):
                    state = replace(state, status="diverged", reason=reason)
                _slow_down(method, guard, state.rollbacks)
            elif to_anchor:
                anchor.keep(state)

            # Milestone.
            if on_milestone is not None and iteration in milestones and group.first and state.status != "diverged":
                with clock.paused(method.device):
                    on_milestone(iteration)

            # Checkpoint.
            if tripped or clock.seconds - saved_at >= checkpoint_seconds:
                keep_checkpoint()
                saved_at = clock.seconds

    # Outcome, and the last checkpoint.
    if state.status != "diverged" and state.iteration >= iterations:
        state = replace(state, status="finished")
    if state.iteration > begun:
        keep_checkpoint()
    return state


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


class _Anchor:
    """The last healthy state, to go back to: in the folder, or in memory where there is none."""

    def __init__(self, method: Method, folder: Path | None, group: Group) -> None:
        self._method, self._folder, self._writes = method, folder, group.first
        self._memory: tuple[dict[str, Tensor], Outcome] | None = None

    @property
    def there(self) -> bool:
        return checkpoint.exists(self._folder, ANCHOR) if self._folder is not None else self._memory is not None

    def keep(self, state: Outcome) -> None:
        """The state as it is now."""
        if self._folder is None:
            self._memory = {name: value.clone() for name, value in _tensors(self._method).items()}, state
        elif self._writes:
            _keep(self._method, self._folder, ANCHOR, state)

    def restore(self) -> Outcome:
        """Puts the method back; only its record of the last iterations stays. Meters begin at nothing."""
        if self._folder is None:
            assert self._memory is not None
            tensors, state = self._memory
        else:
            tensors, facts = checkpoint.load(self._folder, ANCHOR)
            state = Outcome(**facts)
        self._method.load_state(tensors)
        self._method.meters.sums.zero_()
        return state


def _keep(method: Method, folder: Path, stem: str, state: Outcome) -> None:
    checkpoint.save(folder, _tensors(method), vars(state), stem)


def _tensors(method: Method) -> dict[str, Tensor]:
    return {**method.state(), **{_METERS + name: value for name, value in method.meters.state().items()}}


def _restore(
    method: Method, folder: Path | None, iterations: int, group: Group, on_damage: Callable[[str], None] | None
) -> Outcome | None:
    """Where the checkpoint leaves off, or, where it is damaged or missing, the anchor; None where there is neither.

    The anchor then stands in for the checkpoint, also on disk.

    Raises:
        UserError: both are damaged, or what is there belongs to another configuration.
    """
    damage: list[UserError] = []
    for stem in (CHECKPOINT, ANCHOR):
        if folder is None or not checkpoint.exists(folder, stem):
            continue
        try:
            tensors, facts = checkpoint.load(folder, stem)
        except UserError as error:
            damage.append(error)
            continue
        try:
            state = Outcome(**facts)
            if state.status not in STATUSES or not 0 <= state.iteration <= iterations:
                raise ValueError(f"{state.status} at iteration {state.iteration} of {iterations}")
            if state.iteration > state.lost and not any("/optimizer." in name for name in tensors):
                raise KeyError("optimizer")
            method.load_state(tensors)
            method.meters.load_state({name: tensors[_METERS + name] for name in method.meters.state()})
        except torch.OutOfMemoryError:
            raise
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(
                f"the {stem} in {folder} belongs to another configuration ({error!s:.80}); restore that one, or delete "
                "the folder"
            ) from None
        if damage and on_damage is not None and group.first:
            on_damage(f"{str(damage[0]).rpartition('; ')[0]}; the run goes on from iteration {state.iteration}")
        if group.gathered(stem)[0] == ANCHOR and state.iteration and group.first:  # when all have read it
            _keep(method, folder, CHECKPOINT, state)
        return state
    if damage:
        raise damage[0]
    return None


def _slow_down(method: Method, guard: Guard, rollbacks: int) -> None:
    for learner in method.learners.values():
        learner.slowdown = guard.slowdown**rollbacks


def _finite(meters: dict[str, list[float | None]]) -> dict[str, list[float | None]]:
    """JSON has no NaN."""
    return {
        name: [value if value is not None and math.isfinite(value) else None for value in values]
        for name, values in meters.items()
    }


def _rates(method: Method, iteration: int) -> dict[str, float]:
    return {name: learner.rate(iteration, method.iterations) for name, learner in method.learners.items()}


def _check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
