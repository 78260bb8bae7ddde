"""From a resolved method configuration to a `cdrl.method.Method`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from baselines.ddpm import DDPM, DDPMSettings
from baselines.short_run import ShortRun, ShortRunSettings
from cdrl import conditions, noise, randomness, released
from cdrl.cooperative import Cooperative, Settings
from cdrl.errors import UserError
from cdrl.fast import EAGER, Engine
from cdrl.langevin import Langevin
from cdrl.learner import Optimisation
from cdrl.method import Method
from cdrl.networks import EnergyNet, Initializer

Config = Mapping[str, Any]
Builder = Callable[..., Method]
BUILDERS: dict[str, Builder] = {}
REFERENCES = ("real", "noise")
"""Rows of a table that no network stands behind."""
UNTRAINED = (*REFERENCES, "released")
"""Kinds for which there is nothing to train here."""


def builder(kind: str) -> Callable[[Builder], Builder]:
    """Registers the builder of a kind of method; see CONTRIBUTING.md."""

    def register(function: Builder) -> Builder:
        BUILDERS[kind] = function
        return function

    return register


def build(
    method: Config,
    *,
    image_size: int,
    channels: int,
    classes: int,
    seed: int,
    iterations: int,
    device: torch.device,
    engine: Engine = EAGER,
) -> Method:
    """A method ready to train; its initial weights are a function of ``seed``.

    Raises:
        UserError: an unknown kind, or settings that do not fit.
    """
    if method["kind"] not in BUILDERS:
        raise UserError(f"unknown kind of method '{method['kind']}'; there are {', '.join(sorted(BUILDERS))}")
    sizes: dict[str, Any] = {
        "image_size": image_size,
        "channels": channels,
        "classes": classes if method["conditional"] else 0,
    }
    make = BUILDERS[method["kind"]]
    try:
        with randomness.global_generator(randomness.key(seed, "initial weights"), torch.device("cpu")):
            return make(method, sizes, seed=seed, iterations=iterations, device=device, engine=engine)
    except (TypeError, ValueError) as error:  # a setting of the wrong kind that nothing else has noticed
        raise UserError(
            f"method '{method.get('label', method['kind'])}': {error}; --cfg job shows its settings"
        ) from error


@builder("cooperative")
def cooperative(
    method: Config, sizes: dict[str, Any], *, seed: int, iterations: int, device: torch.device, engine: Engine
) -> Cooperative:
    """CDRL, DRL and everything between."""
    initializer = method["initializer"]
    return Cooperative(
        EnergyNet(**sizes, **_tuples(method["energy"])).to(device),
        Initializer(**sizes, **_tuples(initializer)).to(device) if initializer else None,
        cooperative_settings(method),
        Optimisation(**_tuples(method["optimisation"])),
        Optimisation(**_tuples(method["initializer_optimisation"])),
        seed=seed,
        iterations=iterations,
        engine=engine,
    )


def cooperative_settings(method: Config) -> Settings:
    """The switches of a series of energies as configured."""
    if method["schedule"] not in noise.SCHEDULES:
        raise UserError(f"unknown schedule '{method['schedule']}'; choose one of {', '.join(noise.SCHEDULES)}")
    arguments = method["schedule_args"] if method["schedule"] == "cosine_logsnr" else {}
    chain = Langevin(**method["chain"])
    sampling = dict(method["sampling"])
    steps = chain.steps if sampling["steps"] is None else sampling["steps"]
    return Settings(
        schedule=noise.SCHEDULES[method["schedule"]](method["levels"], **arguments),
        chain=chain,
        sampling=Langevin(**{**sampling, "steps": steps, "step_variance": chain.step_variance}),
        **{
            name: method[name]
            for name in ("shared_noise", "last_denoise", "spectral_ema", "initializer_target", "label_dropout")
        },
    )


@builder("short_run")
def short_run(
    method: Config, sizes: dict[str, Any], *, seed: int, iterations: int, device: torch.device, engine: Engine
) -> ShortRun:
    """The short-run EBM."""
    names = ("steps", "gain", "step_noise", "data_noise", "energy_weight")
    return ShortRun(
        EnergyNet(**sizes, **_tuples(method["energy"])).to(device),
        ShortRunSettings(**{name: method[name] for name in names}),
        Optimisation(**_tuples(method["optimisation"])),
        seed=seed,
        iterations=iterations,
        engine=engine,
    )


@builder("ddpm")
def ddpm(
    method: Config, sizes: dict[str, Any], *, seed: int, iterations: int, device: torch.device, engine: Engine
) -> DDPM:
    """A plain DDPM; it has no chains for an engine to run."""
    return DDPM(
        Initializer(**sizes, **_tuples(method["network"])).to(device),
        EnergyNet(**sizes, **_tuples(method["energy"])),
        DDPMSettings(**{name: method[name] for name in ("schedule", "diffusion_steps", "sampling_steps", "eta")}),
        Optimisation(**_tuples(method["optimisation"])),
        (sizes["channels"], sizes["image_size"], sizes["image_size"]),
        seed,
        iterations,
    )


@builder("released")
def from_release(
    method: Config, sizes: dict[str, Any], *, seed: int, iterations: int, device: torch.device, engine: Engine
) -> Cooperative:
    """The networks of an authors' checkpoint file, sampled with the released code's switches."""
    if not method["checkpoint"]:
        raise UserError("name the authors' file: python -m experiments experiment=released checkpoint=PATH")
    energy_net, initializer = released.load(method["checkpoint"], method["weights"])
    if energy_net.image_size != sizes["image_size"] or energy_net.channels != sizes["channels"]:
        raise UserError(f"{method['checkpoint']} is for {energy_net.image_size} pixels; choose its data: data=…")
    unused = Optimisation()
    settings = released.settings()
    return Cooperative(energy_net.to(device), initializer.to(device), settings, unused, unused, seed, 1, engine)


def noise_images(n: int, shape: tuple[int, int, int], seed: int, batch_size: int) -> Iterator[Tensor]:
    """Gaussian noise clamped to [−1, 1], ``(B, C, H, W)``: the reference row that knows nothing of the data."""
    for start in range(0, n, batch_size):
        index = torch.arange(start, min(start + batch_size, n))
        yield randomness.normal(randomness.key(seed, "reference/noise"), index, shape).clamp(-1.0, 1.0)


def class_condition(n: int, classes: int, seed: int, guidance: float) -> conditions.Condition:
    """Guidance towards labels drawn uniformly, one per image."""
    labels = 1 + randomness.integers(randomness.key(seed, "sample/label"), torch.arange(n), classes)
    return conditions.guided(labels, guidance)


def _tuples(values: Config) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
