"""Trained runs and what training them takes: shapes, lengths, batches; for the work on runs and for commands."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch

import cdrl
from cdrl import checkpoint
from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from cdrl.recipe import ImageShape
from cdrl.sampler import Sampler
from experiments import methods
from experiments.data import DeviceBatches, ImageSet, PointBatches, PointSet, attributes
from experiments.runs.folder import RunFolder, RunSettings


def image_shape(settings: RunSettings, training: ImageSet) -> ImageShape:
    """What the networks must know of the images; the classes are the labels that a conditional one distinguishes."""
    if settings.data.concepts:
        classes = attributes.count(training, settings.data.concepts)
    else:
        classes = 2 if settings.data.label_from else training.classes
    return ImageShape(training.image_size, training.channels, classes)


def configured_shape(settings: RunSettings) -> ImageShape:
    """What the data set is configured to be, without looking at it."""
    data = settings.data
    return ImageShape(data.image_size, data.channels, data.classes or 0)


def planned_iterations(settings: RunSettings, shape: ImageShape | None = None) -> int:
    """The iterations that a budget in energy gradients pays for; at least one. Arguments as in `training_cost`."""
    assert isinstance(settings.budget, int)
    return max(1, int(settings.budget // (training_cost(settings, shape) * settings.recipe.batch_size)))


def training_cost(settings: RunSettings, shape: ImageShape | None = None) -> float:
    """Of an image in an iteration, see `cdrl.cost`; ``shape`` is by default `configured_shape`."""
    return _cost_of(json.dumps(settings.method, sort_keys=True), shape or configured_shape(settings))


@lru_cache
def _cost_of(method: str, shape: ImageShape) -> float:
    """Networks are built to be counted; runs that differ in their seed share the answer."""
    return methods.recipe(json.loads(method)).build(shape, device="meta").training_cost


def training_batches(
    settings: RunSettings, training: ImageSet, device: torch.device
) -> DeviceBatches | attributes.ConceptBatches | PointBatches:
    """The batches of a run: points, or images labelled by class, by one attribute, or by concepts."""
    data, size = settings.data, settings.recipe.batch_size
    if isinstance(training, PointSet):
        return PointBatches(training, size, settings.seed, device)
    label_from = None if data.concepts else data.label_from
    batches = DeviceBatches(training, size, settings.seed, device, flip=data.flip, label_from=label_from)
    return attributes.ConceptBatches(batches, data.concepts) if data.concepts else batches


def trained_sampler(folder: Path) -> Sampler:
    """The sampler of a saved model, or of a finished run, on the CPU; the data are needed only to count labels.

    Raises:
        UserError: the folder holds neither, a run that diverged, or a method that is no series of energies.
    """
    if (folder / "model.json").exists():
        return cdrl.load(folder).sampler
    if RunFolder(folder).state == "missing":
        raise UserError(
            f"{folder} is neither a finished run nor a saved model; give one of runs/<data set>/cdrl/…/seed0"
        )
    run = RunFolder.open(folder)
    settings, recipe = run.settings, run.settings.recipe
    if recipe.trains:
        run.finished()
    shape = ImageShape(settings.data.image_size, settings.data.channels)
    if recipe.conditional:
        shape = image_shape(settings, settings.data.load("train"))
    method = recipe.build(shape, seed=settings.seed)
    if not isinstance(method, Cooperative):
        raise UserError(f"{folder} is a run of '{recipe.label}'; only CDRL and DRL have levels to sample")
    if recipe.trains:
        method.load_state(checkpoint.load(folder)[0])
    return method.sampler()
