"""How the networks are told of a level: a time in 0 … 1000, then sinusoids of it.

CDRL's time is an angle of the log-SNR (Ho & Salimans 2022; Zhu et al. 2024, appendix), DRL's the level's number.
"""

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
    return _sinusoids(1000.0 * torch.atan(torch.exp(-0.5 * logsnr.clamp(-20.0, 20.0))) / (0.5 * math.pi), width)


def number_embedding(logsnr: Tensor, levels: Tensor, width: int) -> Tensor:
    """Sinusoids of a level's number 0, 1, …: that of the nearest among the log-SNRs ``levels``, ``(T,)``.

    Otherwise as `logsnr_embedding` (Gao et al. 2021, as released).
    """
    number = (logsnr[:, None] - levels).abs().argmin(dim=1)
    return _sinusoids(number.to(logsnr.dtype), width)


def _sinusoids(time: Tensor, width: int) -> Tensor:
    half = width // 2
    exponents = torch.arange(half, dtype=time.dtype, device=time.device) * (-math.log(10_000.0) / (half - 1))
    angles = time[:, None] * torch.exp(exponents)[None, :]
    return torch.cat((angles.sin(), angles.cos()), dim=1)
