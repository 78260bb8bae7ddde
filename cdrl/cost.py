"""What is spent, in one unit for every method: the gradient of the energy network with respect to one image.

That gradient takes a forward and a backward pass to the image, 2 F_E operations, where F_E are those of the energy
network's forward and F_U those of another network's (an initializer's, a denoiser's). In this unit

    a Langevin step                                               1
    learning an energy from one positive and one negative image   3     two forwards, two whole backwards
    a forward of the other network                                F_U/(2 F_E)
    learning it: a forward and a backward                         3 F_U/(2 F_E)

F is *counted*, on the meta device, where nothing is computed.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

LEARN_ENERGY = 3
LEARN_NETWORK = 3
"""Forwards: a backward pass to weights and inputs takes twice a forward's operations."""


def operations(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Floating-point operations of one forward pass of ``network(images, logsnr)`` on an image of this shape."""
    shadow = copy.deepcopy(network).to("meta", torch.float32).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(2, *shape, device="meta"), torch.empty(2, device="meta"))  # GroupNorm refuses single values
    return counter.get_total_flops() // 2


def forward_share(network: nn.Module, energy_net: nn.Module, shape: tuple[int, int, int]) -> float:
    """One forward of ``network`` on an image of this shape, in gradients of ``energy_net``: F_U/(2 F_E)."""
    return operations(network, shape) / (2 * operations(energy_net, shape))
