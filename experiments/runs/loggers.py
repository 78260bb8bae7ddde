"""Where a run can be seen while it trains, beside its own ``metrics.jsonl``: TensorBoard, Weights & Biases, or nowhere.

    cdrl run logger=tensorboard        tensorboard --logdir runs
    cdrl run logger=wandb              WANDB_MODE, WANDB_PROJECT and WANDB_ENTITY mean what they always do

Both show, by iteration, every meter of every level (``energy_gap/level_1`` …), learning rates, what was spent, and at
milestones a grid of samples. A logger only looks: a run ends in the same bits with any of them.
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl import pictures
from cdrl.errors import UserError
from cdrl.method import Method
from experiments.runs.folder import RunFolder

GRID, _COLUMNS = 64, 8
"""Samples in a picture, and in each of its rows."""
_SPENT = ("images", "grad_evals", "seconds")

Pixels = NDArray[np.uint8]
"""``(H, W)`` or ``(H, W, 3)``."""


class Logger(ABC):
    """Shows the numbers and pictures of one run.

    Args:
        run: whose.
        done: iterations done when training begins or goes on.
        shown: the last iteration that was reported before; later than ``done`` where a kill took some of them back.
    """

    @abstractmethod
    def __init__(self, run: RunFolder, done: int, shown: int) -> None: ...

    @abstractmethod
    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Shows named numbers."""

    @abstractmethod
    def picture(self, iteration: int, draw: Callable[[], Pixels]) -> None:
        """Shows a grid of samples, which nobody draws who does not show it."""

    @abstractmethod
    def close(self) -> None:
        """Training has stopped; everything is written."""


class Silent(Logger):
    """Shows nothing: ``logger=none``."""

    def __init__(self, run: RunFolder, done: int, shown: int) -> None: ...

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None: ...

    def picture(self, iteration: int, draw: Callable[[], Pixels]) -> None: ...

    def close(self) -> None: ...


class TensorBoard(Logger):
    """Event files in the run's folder. What a kill took back is hidden when it is made again."""

    def __init__(self, run: RunFolder, done: int, shown: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run.tensorboard), purge_step=done + 1)

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)
        self._writer.flush()

    def picture(self, iteration: int, draw: Callable[[], Pixels]) -> None:
        pixels = draw()
        self._writer.add_image("samples", pixels, iteration, dataformats="HWC" if pixels.ndim == 3 else "HW")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb(Logger):
    """A run at Weights & Biases, which goes on there when it is resumed.

    Steps cannot be taken back there: what is made again after a kill, the same numbers, is not shown twice.
    """

    def __init__(self, run: RunFolder, done: int, shown: int) -> None:
        import wandb

        data, method, settings = run.path.parts[-4:-1]
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "cdrl"),
                id=run.wandb_id(),
                resume="allow",
                name=run.name,
                group=f"{data}/{method}/{settings}",
                dir=run.path,
                config=asdict(run.settings),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise UserError(f"logger=wandb: {str(error).splitlines()[0]}; WANDB_MODE=offline keeps it here") from error
        self._shown = shown

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        self._log(iteration, values)

    def picture(self, iteration: int, draw: Callable[[], Pixels]) -> None:
        import wandb

        self._log(iteration, {"samples": wandb.Image(draw())})

    def close(self) -> None:
        self._run.finish()

    def _log(self, iteration: int, values: Mapping[str, Any]) -> None:
        if iteration >= self._shown:
            self._run.log(dict(values), step=iteration)


LOGGERS: dict[str, type[Logger]] = {"none": Silent, "tensorboard": TensorBoard, "wandb": Wandb}


def check(name: str) -> None:
    """Raises `UserError`, with a remedy, where a run could not be shown by the logger of that name."""
    if name not in LOGGERS:
        raise UserError(f"unknown logger '{name}'; choose one of {', '.join(LOGGERS)}")
    if name == "none":
        return
    try:
        package = importlib.import_module(name)
    except ImportError:
        raise UserError(f"logger={name} needs a package that is not here; pip install 'cdrl[{name}]'") from None
    online = os.environ.get("WANDB_MODE", "online") == "online"
    if name == "wandb" and online and not package.login(prompt=False):
        raise UserError("logger=wandb has no account; run wandb login, or set WANDB_MODE=offline")


class Reports:
    """What becomes of a run's reports: lines of its own log, and whatever its logger shows.

    Args:
        run: whose.
        logger: one of `LOGGERS`.
    """

    def __init__(self, run: RunFolder, logger: str) -> None:
        self._run, self._kind = run, LOGGERS[logger]
        self._logger: Logger | None = None

    def resume(self, done: int) -> int:
        """Training begins or goes on after ``done`` iterations: later lines, which come again, are dropped.

        Returns how many of those that are kept were damaged, and so are lost.
        """
        before = self._run.metrics.lines()
        damaged = self._run.metrics.truncate(done)
        self._logger = self._kind(self._run, done, shown=before[-1]["iteration"] if before else 0)
        return damaged

    def report(self, facts: Mapping[str, Any]) -> None:
        """One report of `cdrl.trainer.train`."""
        self._run.metrics.append(facts)
        if self._logger is not None:
            self._logger.scalars(facts["iteration"], scalars(facts))

    def picture(self, method: Method, iteration: int) -> None:
        """Samples of the averaged weights: the first ones that an evaluation would draw if the run ended here."""
        if self._logger is not None:
            self._logger.picture(iteration, lambda: sample_grid(method))

    def close(self) -> None:
        if self._logger is not None:
            self._logger.close()


@contextmanager
def opened(run: RunFolder, logger: str) -> Iterator[Reports]:
    """The reports of a run, for as long as it trains. Raises `UserError` as `check` does, before it begins."""
    check(logger)
    reports = Reports(run, logger)
    try:
        yield reports
    finally:
        reports.close()


def scalars(facts: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a report by name: ``energy_gap/level_1`` … (``energy_gap`` where a method has no levels),
    ``learning_rate/energy`` …, ``spent/images`` …; what is not known is left out."""
    values = {f"spent/{name}": float(facts[name]) for name in _SPENT}
    values |= {f"learning_rate/{name}": rate for name, rate in facts["lr"].items()}
    for name in facts.keys() - {"iteration", "lr", *_SPENT}:
        for level, value in enumerate(facts[name]):
            if value is not None:
                values[f"{name}/level_{level}" if level else name] = value
    return values


@torch.no_grad()
def sample_grid(method: Method) -> Pixels:
    """`GRID` samples of the averaged weights, by the run's own seed; of points, their coordinates as greys."""
    images = torch.cat(list(method.sample(GRID, method.seed, batch_size=GRID))).nan_to_num()
    if images.shape[1] not in (1, 3):
        images = images.flatten(1)[:, None, None]
    return np.asarray(pictures.grid(list(pictures.to_uint8(images).cpu().numpy()), _COLUMNS))
