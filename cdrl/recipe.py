"""How a method is trained, as data: everything but the images, the budget and the seed.

A recipe is what a configuration file says of a method, with types and ranges, and builds the method:

    recipe = CooperativeRecipe(energy={"width": 32, "multipliers": (1, 2), "blocks": 1}, batch_size=32)
    method = recipe.build(ImageShape(size=8, channels=1), seed=0, iterations=1000)
    train(method, batches, batch_size=32, iterations=1000, …)     # cdrl.trainer
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch

from cdrl import noise, randomness
from cdrl.cooperative import Cooperative, Settings
from cdrl.errors import UserError
from cdrl.fast import EAGER, Engine
from cdrl.langevin import Langevin
from cdrl.learner import Optimisation
from cdrl.method import Method
from cdrl.networks import EnergyNet, Initializer

Network = TypeVar("Network", EnergyNet, Initializer)
MOST_IMAGES = 2**20
"""In an iteration."""


class ImageShape(NamedTuple):
    """What a network must know of the images: height and width in pixels, channels, and the number of classes."""

    size: int
    channels: int
    classes: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """What every method's recipe has.

    Attributes:
        label: the method's name in tables; not part of what it is.
        batch_size: images per iteration.
        shards: parts of a batch, see `cdrl.parallel`: as many processes may share it, and each part must fit a device.
        conditional: whether the networks are told the images' classes.
        precision: of products, see `cdrl.precision`.
    """

    trains: ClassVar[bool] = True
    """Whether there is anything to train."""

    label: str = ""
    batch_size: int = 256
    shards: int = 1
    conditional: bool = False
    precision: str = "fp32"

    def build(
        self,
        shape: ImageShape,
        *,
        seed: int = 0,
        iterations: int = 1,
        device: torch.device | str = "cpu",
        engine: Engine = EAGER,
    ) -> Method:
        """The method ready to train; its initial weights are a function of ``seed``.

        Args:
            shape: of the images; the classes count only where the recipe is ``conditional``.
            seed: of all draws.
            iterations: planned length of the run, which learning-rate decays refer to.
            device: where it trains; "meta" builds the shapes alone.
            engine: the form in which the hot loop runs.

        Raises:
            UserError: settings that do not fit together.
        """
        if not 1 <= self.batch_size <= MOST_IMAGES:
            raise UserError(f"batch_size must be in 1 … {MOST_IMAGES:,}, not {self.batch_size}")
        if not 1 <= self.shards <= self.batch_size or self.batch_size % self.shards:
            raise UserError(f"a batch of {self.batch_size} images cannot be {self.shards} equal shards")
        if not self.conditional:
            shape = shape._replace(classes=0)
        try:
            with randomness.global_generator(randomness.key(seed, "initial weights"), torch.device("cpu")):
                return self._build(shape, seed, iterations, torch.device(device), engine)
        except (AttributeError, TypeError, ValueError, ArithmeticError) as error:  # a setting of the wrong kind
            name = self.label or type(self).__name__
            raise UserError(f"method '{name}': {error}; --cfg job shows its settings") from error

    @abstractmethod
    def _build(self, shape: ImageShape, seed: int, iterations: int, device: torch.device, engine: Engine) -> Method:
        """`build` with PyTorch's generator seeded."""


@dataclass(frozen=True, kw_only=True)
class CooperativeRecipe(Recipe):
    """CDRL, DRL and everything between; the defaults are the released CIFAR-10 settings.

    Attributes:
        levels: T.
        schedule: one of `cdrl.noise.SCHEDULES`.
        schedule_args: of "cosine_logsnr"; "linear_beta" takes none.
        shared_noise, last_denoise, spectral_ema, initializer_target, label_dropout: see `cdrl.cooperative.Settings`.
        chain: in training.
        sampling: in sampling; None for the training's.
        energy: sizes of the energy network, arguments of `cdrl.networks.EnergyNet`.
        numbered_levels: tell the energy network a level's number (DRL, as released) instead of its log-SNR.
        initializer: sizes of the initializer, or None for chains that start at x_t.
        optimisation: of the energy network.
        initializer_optimisation: of the initializer; None for the energy network's.
    """

    levels: int = 6
    schedule: str = "cosine_logsnr"
    schedule_args: Mapping[str, float] = field(default_factory=dict)
    shared_noise: bool = True
    chain: Langevin = field(default_factory=Langevin)
    sampling: Langevin | None = None
    last_denoise: str = "consistent"
    spectral_ema: str = "refresh"
    initializer_target: str = "noisy"
    label_dropout: float = 0.1
    energy: Mapping[str, Any] = field(default_factory=dict)
    numbered_levels: bool = False
    initializer: Mapping[str, Any] | None = field(default_factory=dict)
    optimisation: Optimisation = field(default_factory=Optimisation)
    initializer_optimisation: Optimisation | None = None

    @property
    def settings(self) -> Settings:
        """The switches. Raises `UserError` for an unknown schedule or switch."""
        if self.schedule not in noise.SCHEDULES:
            raise UserError(f"unknown schedule '{self.schedule}'; choose one of {', '.join(noise.SCHEDULES)}")
        arguments = self.schedule_args if self.schedule == "cosine_logsnr" else {}
        return Settings(
            schedule=noise.SCHEDULES[self.schedule](self.levels, **arguments),
            shared_noise=self.shared_noise,
            chain=self.chain,
            sampling=self.sampling,
            last_denoise=self.last_denoise,
            spectral_ema=self.spectral_ema,
            initializer_target=self.initializer_target,
            label_dropout=self.label_dropout,
        )

    def _build(
        self, shape: ImageShape, seed: int, iterations: int, device: torch.device, engine: Engine
    ) -> Cooperative:
        settings, g = self.settings, self.initializer
        levels = {"levels": settings.schedule.logsnr[:-1].tolist()} if self.numbered_levels else {}
        energy_net = network(EnergyNet, shape, {**self.energy, **levels}, device)
        return Cooperative(
            energy_net,
            None if g is None else network(Initializer, shape, g, device),
            settings,
            self.optimisation,
            self.initializer_optimisation,
            seed=seed,
            iterations=iterations,
            engine=engine,
        )


def network(kind: type[Network], shape: ImageShape, sizes: Mapping[str, Any], device: torch.device) -> Network:
    """A network of these ``sizes`` for images of this ``shape``, on a device.

    Args:
        kind: `EnergyNet` or `Initializer`.
        shape: of the images.
        sizes: the other arguments; lists, as files have them, may stand for tuples.
        device: where it is to be.
    """
    tuples: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()}
    with torch.device("meta" if device.type == "meta" else "cpu"):  # weights are drawn on the CPU for every device
        built = kind(image_size=shape.size, channels=shape.channels, classes=shape.classes, **tuples)
    return built.to(device)
