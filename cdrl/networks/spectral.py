"""Spectral normalisation whose one power iteration is an explicit act.

A layer's weight ``W`` (as a matrix, outputs × inputs) is divided by ``σ = uᵀ W v``, an estimate of its largest singular
value (Miyato et al. 2018). ``u`` and ``v`` move only when `iterate` is called: once a training iteration, so that the
chain, the positive and the negative pass all see the same function.

A bounded layer is divided by σ only where σ exceeds 1: it may be small, and so nearly closed (DRL, as released).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WARM_UP_ITERATIONS = 15
_MARGIN = 1e-6
"""Added to the σ of a bounded layer, as released."""


class SpectralNorm(nn.Module):
    """A weight and a bias for a convolution or a linear map, the weight to be used divided by its spectral norm.

    Args:
        layer: a fresh ``nn.Conv2d`` or ``nn.Linear`` whose initial values are taken over.
        bounded: keep the spectral norm at 1 or below, instead of at 1.
    """

    u: Tensor
    v: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, bounded: bool = False) -> None:
        super().__init__()
        self.bounded = bounded
        assert layer.bias is not None
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())
        matrix = self.weight.detach().flatten(1)
        self.register_buffer("u", _direction(matrix.shape[0], matrix.dtype))
        self.register_buffer("v", _direction(matrix.shape[1], matrix.dtype))
        self.settle()

    def settle(self) -> None:
        """As many power iterations as a fresh weight takes."""
        if not self.weight.is_meta:  # of shapes alone there is nothing to iterate
            for _ in range(_WARM_UP_ITERATIONS):
                self.iterate()

    @torch.no_grad()
    def iterate(self) -> None:
        """One power iteration: better ``u`` and ``v``, in place."""
        matrix = self.weight.detach().flatten(1)
        self.v.copy_(F.normalize(matrix.T @ self.u, dim=0, eps=1e-12))
        self.u.copy_(F.normalize(matrix @ self.v, dim=0, eps=1e-12))

    def sigma(self) -> Tensor:
        """σ, a scalar; differentiable in ``W``, ``u`` and ``v`` held fixed."""
        # Clones: `iterate` overwrites the vectors in place, perhaps before this value's backward pass.
        return self.u.clone() @ (self.weight.flatten(1) @ self.v.clone())

    def normalized(self) -> Tensor:
        """``W / σ``, or ``W / max(σ, 1)`` where bounded, in the weight's own shape; differentiable as `sigma` is."""
        sigma = self.sigma()
        return self.weight / ((sigma + _MARGIN).clamp(min=1.0) if self.bounded else sigma)


def _direction(size: int, dtype: torch.dtype) -> Tensor:
    """A random unit vector; of shapes alone an empty one, for which PyTorch's norms would take seconds to import."""
    values = torch.empty(size, dtype=dtype)
    return values if values.is_meta else F.normalize(values.normal_(), dim=0)


def iterate_all(module: nn.Module, times: int = 1) -> None:
    """So many power iterations in every spectrally normalised layer of ``module``."""
    for layer in spectral_layers(module):
        for _ in range(times):
            layer.iterate()


def spectral_layers(module: nn.Module) -> Iterable[SpectralNorm]:
    """All spectrally normalised layers below ``module``, in order."""
    return (layer for layer in module.modules() if isinstance(layer, SpectralNorm))
