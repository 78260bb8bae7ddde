"""How both networks read the log-SNR: an angle, then sinusoids (Ho & Salimans 2022; Zhu et al. 2024, appendix)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def logsnr_embedding(logsnr: Tensor, width: int) -> Tensor:
    """Sinusoids of ``1000 · arctan(e^{−λ/2}) / (π/2)``.

    Args:
        logsnr: λ, ``(B,)``; clamped to [−20, 20].
        width: number of features, even and at least 4.

    Returns:
        ``(B, width)`` in the type of ``logsnr``: the sines, then the cosines, with frequencies from 1 down to 1e-4.
    """
    time = 1000.0 * torch.atan(torch.exp(-0.5 * logsnr.clamp(-20.0, 20.0))) / (0.5 * math.pi)
    half = width // 2
    exponents = torch.arange(half, dtype=logsnr.dtype, device=logsnr.device) * (-math.log(10_000.0) / (half - 1))
    angles = time[:, None] * torch.exp(exponents)[None, :]
    return torch.cat((angles.sin(), angles.cos()), dim=1)
