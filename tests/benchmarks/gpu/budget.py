"""Equal GPU seconds: seconds become iterations, and iterations the budget that a run's configuration holds.

A run is a function of its configuration, so time must not enter it: what a method does in a second is measured once on
the device at hand and written down, and from then on its budget is a number like any other. So a run can be resumed,
repeated, and trained on another machine to the same end.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from cdrl import precision
from cdrl.method import Method
from experiments import data, methods
from experiments.worker import engine_for, label_count, planned_iterations, training_batches
from tests.benchmarks.gpu.device import wait

WARM_UP = 3
"""Iterations before the clock starts; the first ones choose algorithms, compile and record."""


@dataclass(frozen=True)
class Prepared:
    """A method ready to train on its data.

    Attributes:
        config: as a run's `config.json`: data, method, budget.
        method: at its first iteration.
        batches: see `experiments.worker.training_batches`.
        training: the images.
    """

    config: dict[str, Any]
    method: Method
    batches: Any
    training: data.ImageSet

    @property
    def batch_size(self) -> int:
        return int(self.config["method"]["batch_size"])


def prepare(
    config: dict[str, Any], training: data.ImageSet, iterations: int, engine: str, device: torch.device, seed: int = 0
) -> Prepared:
    """A method as `experiments.worker` builds it, planned for so many iterations."""
    classes = label_count(config, training)
    method = methods.build(
        config["method"],
        image_size=training.image_size,
        channels=training.channels,
        classes=classes,
        seed=seed,
        iterations=iterations,
        device=device,
        engine=engine_for(config["method"], engine, device, iterations),
    )
    return Prepared(config, method, training_batches(training, config, seed, device), training)


def iteration_seconds(prepared: Prepared, at_least: float, most: int = 1000) -> float:
    """Seconds an iteration takes, over ``at_least`` that many seconds or ``most`` iterations; trains the method."""
    method, done = prepared.method, 0

    def step(number: int) -> None:
        images, label = prepared.batches.batch(number)
        method.train_step(images, label, number)

    for number in range(WARM_UP):
        step(number)
    wait(method.device)
    begin = time.perf_counter()
    while done == 0 or (time.perf_counter() - begin < at_least and done < most):
        step(WARM_UP + done)
        done += 1
        if done % 10 == 0:  # kernels are queued faster than they run: now and then the clock waits for them
            wait(method.device)
    wait(method.device)
    return (time.perf_counter() - begin) / done


def iterations_in(seconds: float, an_iteration: float) -> int:
    """Whole iterations that fit, at least one."""
    return max(1, math.floor(seconds / an_iteration))


def budget_for(iterations: int, cost: float, batch_size: int) -> int:
    """The budget that `experiments.worker.planned_iterations` turns back into so many iterations."""
    return math.ceil(iterations * cost * batch_size)


def measure(
    config: dict[str, Any], seconds: float, probe: float, training: data.ImageSet, engine: str, device: torch.device
) -> dict[str, Any]:
    """The budget that takes ``seconds`` of training here, with what it was made from; probes for ``probe`` seconds."""
    prepared = prepare(config, training, 1000, engine, device)
    with precision.products(config["method"]["precision"]):
        each = iteration_seconds(prepared, probe)
    iterations = iterations_in(seconds, each)
    budget = budget_for(iterations, prepared.method.training_cost, prepared.batch_size)
    planned = planned_iterations({**config, "budget": budget}, label_count(config, training))
    if planned != iterations:
        raise AssertionError(f"a budget of {budget} is {planned} iterations, not {iterations}")
    return {
        "seconds": seconds,
        "iteration_seconds": each,
        "iterations": iterations,
        "budget": budget,
        "images_per_second": prepared.batch_size / each,
        "engine": engine,
    }
