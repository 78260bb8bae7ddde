"""A trained series of energies as its user sees it: draw images, ask for densities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cdrl import conditions
from cdrl.conditions import Condition
from cdrl.errors import UserError
from cdrl.networks import EnergyNet, Initializer
from cdrl.networks.energy import ResidualBlock
from cdrl.networks.initializer import Stage
from cdrl.sampler import Sampler

Network = TypeVar("Network", bound=nn.Module)
MOST_IMAGES = 10**9
"""In one call."""


@dataclass(frozen=True)
class Model:
    """Trained networks and the way to sample them, as saved by `cdrl.checkpoint.save_model`."""

    sampler: Sampler

    def sample(self, n: int, seed: int = 0, condition: Condition | None = None, batch_size: int = 256) -> Tensor:
        """``n`` images ``(n, C, H, W)`` in [−1, 1]; image i depends on (seed, i) and its condition alone.

        Raises `UserError` unless ``n`` and ``batch_size`` are in 1 … `MOST_IMAGES`.
        """
        if not (n <= MOST_IMAGES and batch_size <= MOST_IMAGES):
            raise UserError(f"cannot draw {n} images in batches of {batch_size}; use {MOST_IMAGES:,} or fewer")
        return torch.cat(list(self.sampler.batches(n, seed, condition, batch_size)))

    @torch.no_grad()
    def log_density(self, y: Tensor, level: int, label: Tensor | None = None) -> Tensor:
        """The *unnormalised* log-density of ``y`` under the energy of one transition, ``f(y; λ_{t−1}) / s_t²``.

        The constant that would normalise it is unknown and differs between levels and labels: compare images at one
        level. Below the top level this is ``log p(y | x_t)`` without its tether (Zhu et al. 2024, eq. 6).

        Args:
            y: images of level t − 1 in energy units, ``scale_t · x_{t−1}``, ``(B, C, H, W)``, on the model's device;
                clean images are a good stand-in at ``level`` 1.
            level: t in 1 … T, the upper level of the transition.
            label: int64 ``(B,)`` in 0 … C, or None for the null label.

        Returns:
            ``(B,)`` in the type of the networks, natural logarithm.

        Raises:
            UserError: images, level or labels that are not the model's.
        """
        levels = self.sampler.schedule.levels
        if not 1 <= level <= levels:
            raise UserError(f"level must be 1 … {levels}, not {level}")
        self.sampler.energy_net.check_images(y)
        if label is not None:
            conditions.labelled(label).check_classes(self.sampler.energy_net.classes)
        transitions = self.sampler.transitions
        logsnr = transitions.schedule.logsnr[level - 1].expand(len(y))
        return self.sampler.energy_net(y, logsnr, label) / transitions.step_variance(level)


def energy_sizes(network: EnergyNet) -> dict[str, Any]:
    """The arguments that build an energy network like this one, all but how its weights start."""
    blocks = [block for block in network.blocks if isinstance(block, ResidualBlock)]
    ends = [block for block in blocks if block.pool] + blocks[-1:]
    return {
        "image_size": network.image_size,
        "channels": network.channels,
        "width": network.width,
        "multipliers": [len(block.gain) // network.width for block in ends],
        "blocks": len(blocks) // len(ends),
        "classes": network.classes,
        "kernel": network.stem.weight.shape[-1],
        "frequencies": 0 if network.frequencies is None else len(network.frequencies),
        "levels": [] if network.levels is None else network.levels.tolist(),
        "closed": blocks[0].closed,
        "time_activation": blocks[0].time_activation,
        "readout_bias": network.readout.bias is not None,
        "frequency": network.frequency,
    }


def initializer_sizes(network: Initializer, image_size: int) -> dict[str, Any]:
    """The arguments that build an initializer like this one, for images of ``image_size`` pixels."""
    stages = [stage for stage in network.down if isinstance(stage, Stage)]
    resolutions: list[list[Stage]] = [[]]
    for stage in stages:
        if stage.block.resample == "down":
            resolutions.append([])
        else:
            resolutions[-1].append(stage)
    return {
        "image_size": image_size,
        "channels": network.stem.in_channels,
        "width": network.width,
        "multipliers": [group[0].block.conv_in.out_channels // network.width for group in resolutions],
        "blocks": len(resolutions[0]),
        "classes": network.classes,
        "dropout": network.dropout,
        "attention_sizes": [image_size >> n for n, group in enumerate(resolutions) if group[0].attention is not None],
        "kernel": network.stem.kernel_size[0],
    }


def filled(kind: type[Network], sizes: Mapping[str, Any], state: Mapping[str, Tensor]) -> Network:
    """A network of these sizes with these weights, in evaluation mode and in the widest type among them.

    What the sizes claim is compared with the weights that are there on tensors without contents, before anything is
    allocated. Raises `UserError`, KeyError, TypeError, ValueError or RuntimeError where they do not fit.
    """
    if sizes["blocks"] > len(state) / len(sizes["multipliers"]):
        raise ValueError("more blocks than there are tensors")
    with torch.device("meta"):
        kind(**sizes).load_state_dict(state, assign=True)
    network = kind(**sizes)
    network.to(reduce(torch.promote_types, (value.dtype for value in state.values()), torch.get_default_dtype()))
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)
