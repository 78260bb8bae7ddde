"""From a method's configuration to its recipe, and the rows of a table that no training stands behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from pydoc import ErrorDuringImport, locate
from typing import Any, ClassVar

import torch
from torch import Tensor

from cdrl import conditions, randomness, released
from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from cdrl.fast import Engine
from cdrl.learner import Optimisation
from cdrl.method import Method
from cdrl.recipe import ImageShape, Recipe
from cdrl.sampler import index_batches


def recipe(config: Mapping[str, Any]) -> Recipe:
    """The recipe that a method's configuration describes by its ``_target_``.

    Raises:
        UserError: there is no such recipe, or a setting does not fit.
    """
    name = config.get("label") or config.get("_target_", "?")
    try:
        made = _instance(config)
    except (TypeError, ErrorDuringImport) as error:
        raise UserError(f"method '{name}': {str(error).splitlines()[0]}; --cfg job shows its settings") from None
    if not isinstance(made, Recipe):
        raise UserError(f"method '{name}': _target_ must name a recipe, a subclass of cdrl.recipe.Recipe")
    return made


def _instance(node: Any) -> Any:
    """A node in which everything that has a ``_target_`` is made an object, the innermost first.

    Only dataclasses are made, and nothing is interpolated, unlike by Hydra's ``instantiate``: a run folder's
    ``config.json`` may come from elsewhere, and must not be able to call functions.
    """
    if isinstance(node, list):
        return [_instance(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    settings = {name: _instance(value) for name, value in node.items() if name != "_target_"}
    if "_target_" not in node:
        return settings
    kind = locate(str(node["_target_"]))
    if not isinstance(kind, type) or not is_dataclass(kind):
        raise TypeError(f"_target_ '{node['_target_']}' names no dataclass")
    return kind(**settings)


@dataclass(frozen=True, kw_only=True)
class Reference(Recipe):
    """A row that no network stands behind: "real" held-out images, the floor; or "noise", the ceiling."""

    trains: ClassVar[bool] = False

    images: str

    def __post_init__(self) -> None:
        if self.images not in ("real", "noise"):
            raise UserError(f"reference images must be real or noise, not {self.images}")

    def _build(self, shape: ImageShape, seed: int, iterations: int, device: torch.device, engine: Engine) -> Method:
        raise UserError(f"there is nothing to train or sample for '{self.label or self.images}'")


@dataclass(frozen=True, kw_only=True)
class ReleasedRecipe(Recipe):
    """The networks of an authors' checkpoint file, sampled with the released code's switches."""

    trains: ClassVar[bool] = False

    checkpoint: str | None = None
    weights: str = "ema"

    def _build(
        self, shape: ImageShape, seed: int, iterations: int, device: torch.device, engine: Engine
    ) -> Cooperative:
        if not self.checkpoint:
            raise UserError("name the authors' file: cdrl run experiment=released checkpoint=PATH")
        energy_net, initializer = released.load(self.checkpoint, self.weights)
        if energy_net.image_size != shape.size or energy_net.channels != shape.channels:
            raise UserError(f"{self.checkpoint} is for {energy_net.image_size} pixels; choose its data: data=…")
        unused = Optimisation()
        networks = energy_net.to(device), initializer.to(device)
        return Cooperative(*networks, released.settings(), unused, unused, seed, 1, engine)


def noise_images(
    n: int, shape: tuple[int, int, int], seed: int, batch_size: int, first: int = 0, every: int = 1
) -> Iterator[Tensor]:
    """Gaussian noise clamped to [−1, 1], ``(B, C, H, W)``: the reference row that knows nothing of the data."""
    for index in index_batches(n, batch_size, first, every):
        yield randomness.normal(randomness.key(seed, "reference/noise"), index, shape).clamp(-1.0, 1.0)


def class_condition(n: int, classes: int, seed: int, guidance: float) -> conditions.Condition:
    """Guidance towards labels drawn uniformly, one per image."""
    labels = 1 + randomness.integers(randomness.key(seed, "sample/label"), torch.arange(n), classes)
    return conditions.guided(labels, guidance)
