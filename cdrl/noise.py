"""Noise levels, and everything that follows from them.

Levels ``t = 0 … T`` carry a log signal-to-noise ratio ``λ_t``; the process keeps the variance:

    α_t² = sigmoid(λ_t)      σ_t² = sigmoid(−λ_t)      x_t = α_t x_0 + σ_t ε
    a_t = α_t / α_{t−1}      β_t = 1 − a_t²            x_t = a_t x_{t−1} + √β_t ε       (transition t−1 → t)

Energies and chains live in ``y = scale_t · x_{t−1}``, where ``scale_t`` is ``a_t`` below the top level and 1 at the
top, because the top level has no tether to ``x_T`` (Gao et al. 2021, section 3; Zhu et al. 2024, section 3).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cdrl.errors import UserError

MOST_LEVELS = 10_000
"""Of a process: each takes a chain, and a row of every meter."""
_LARGEST_LOGSNR = 80.0
"""e to this power is a float32."""
_UNDEFINED = float("nan")


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels of one process, from nearly clean (0) to nearly pure noise (T).

    Every quantity is a tensor of length levels + 1, indexed by the level ``t``. Those of a transition stand at the
    index of its upper level; at index 0, where no transition ends, they are NaN: a wrong index shows. They are computed
    in float64 and rounded to float32; `to` gives them in another type. Raises `UserError` unless ``logsnr`` decreases
    strictly and is finite; its last value may be −∞, which is noise alone.
    """

    logsnr: Tensor
    name: str = "custom"
    arguments: dict[str, float] = field(default_factory=dict)
    """What the function ``name`` of `SCHEDULES` was called with."""
    alpha: Tensor = field(init=False)
    """α_t, the signal's scale."""
    sigma: Tensor = field(init=False)
    """σ_t, the noise's scale."""
    a: Tensor = field(init=False)
    """a_t = α_t / α_{t−1}."""
    scale: Tensor = field(init=False)
    """a_t, and 1 at the top level: ``y = scale_t · x_{t−1}``."""
    beta: Tensor = field(init=False)
    """β_t = 1 − a_t², the transition's variance."""
    tether: Tensor = field(init=False)
    """σ_{t−1}/σ_0, and 0 at the top: the pull towards x_t, in units of b²/2."""
    proposal_std: Tensor = field(init=False)
    """τ_t = scale_t σ_{t−1} √β_t / σ_t, the noise of the initializer's draw."""
    posterior_std: Tensor = field(init=False)
    """σ_{t−1} √β_t / σ_t, the standard deviation of q(x_{t−1} | x_t, x_0)."""
    loss_weight: Tensor = field(init=False)
    """w_t = √(β_1/β_t)."""
    unit_step: Tensor = field(init=False)
    """s_t / b = √(σ_{t−1}/σ_0 · β_t): the Langevin step size for b² = 1."""
    _exact: dict[str, Tensor] = field(init=False, repr=False)
    """The quantities in float64, on the CPU."""

    def __post_init__(self) -> None:
        logsnr = self.logsnr.double().cpu()
        if logsnr.ndim != 1 or len(logsnr) < 2 or not bool((logsnr[1:] < logsnr[:-1]).all()):
            raise UserError("a noise schedule needs at least two levels of strictly decreasing log-SNR")
        _check_levels(len(logsnr) - 1)
        if not bool(logsnr[:-1].isfinite().all()):
            raise UserError("the log-SNRs of a noise schedule must be finite, all but the last")
        alpha, sigma = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
        undefined = logsnr.new_tensor([_UNDEFINED])

        def transitions(values: Tensor, top: float | None = None) -> Tensor:
            full = torch.cat((undefined, values))
            if top is not None:
                full[-1] = top
            return full

        # β from log-SNRs, not as 1 − a²: at high SNR the difference would lose half its digits.
        beta = -torch.expm1(torch.nn.functional.logsigmoid(logsnr[1:]) - torch.nn.functional.logsigmoid(logsnr[:-1]))
        a = alpha[1:] / alpha[:-1]
        posterior = sigma[:-1] * beta.sqrt() / sigma[1:]
        quantities = {
            "logsnr": logsnr,
            "alpha": alpha,
            "sigma": sigma,
            "a": transitions(a),
            "scale": transitions(a, top=1.0),
            "beta": transitions(beta),
            "tether": transitions(sigma[:-1] / sigma[0], top=0.0),
            "proposal_std": transitions(posterior) * transitions(a, top=1.0),
            "posterior_std": transitions(posterior),
            "loss_weight": transitions((beta[0] / beta).sqrt()),
            "unit_step": transitions((sigma[:-1] / sigma[0] * beta).sqrt()),
        }
        object.__setattr__(self, "_exact", quantities)
        for name, value in quantities.items():
            object.__setattr__(self, name, value.float())

    @property
    def levels(self) -> int:
        """T, the number of transitions."""
        return len(self.logsnr) - 1

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> NoiseSchedule:
        """The same schedule on another device and, with ``dtype``, its quantities rounded to that type from float64."""
        moved = copy.copy(self)
        for name, value in self._exact.items():
            object.__setattr__(moved, name, value.to(dtype or self.logsnr.dtype).to(device))
        return moved


def cosine_logsnr(levels: int = 6, logsnr_max: float = 9.8, logsnr_min: float = -5.1) -> NoiseSchedule:
    """CDRL's schedule, ``λ(u) = −2 ln tan(A u + B)`` at ``u = t/T`` (Ho & Salimans 2022; Zhu et al. 2024, sec. 3).

    Raises:
        UserError: ``levels`` is not 1 … `MOST_LEVELS`, or the log-SNRs do not fall within −80 … 80.
    """
    _check_levels(levels)
    if not -_LARGEST_LOGSNR <= logsnr_min < logsnr_max <= _LARGEST_LOGSNR:
        raise UserError(f"logsnr_max ({logsnr_max}) must exceed logsnr_min ({logsnr_min}), both within −80 … 80")
    low, high = math.atan(math.exp(-logsnr_max / 2)), math.atan(math.exp(-logsnr_min / 2))
    angle = torch.linspace(low, high, levels + 1, dtype=torch.float64)
    arguments = {"levels": levels, "logsnr_max": logsnr_max, "logsnr_min": logsnr_min}
    return NoiseSchedule(-2.0 * torch.log(torch.tan(angle)), "cosine_logsnr", arguments)


def linear_beta(levels: int = 6) -> NoiseSchedule:
    """DRL's schedule: the 1000-step linear-β diffusion (1e-4 … 0.02) cut into ``levels`` transitions.

    Level 0 is the data with the first step's noise. As released, the first T cuts share out the first half of the
    steps and the last is the end: 0, 100, …, 500 and 999 for six levels (Gao et al. 2021, section 4), 0, 166, 332, 498
    and 999 for four. Above 501 levels the first cuts are at every step; 1000 of them use up the diffusion, and level
    1000 is a last step of β = 1, noise alone (the paper's T1k; its code was not released).

    Raises:
        UserError: ``levels`` is not 1 … 1000.
    """
    _check_levels(levels, most=1000)
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    beta = torch.cat((beta, beta.new_ones(1)))
    log_signal = torch.log1p(-beta).cumsum(0)  # ln α²
    spacing = max(1, 1000 // max(1, 2 * (levels - 1)))
    signal = log_signal[[spacing * t for t in range(levels)] + [max(999, levels)]]
    return NoiseSchedule(signal - torch.log(-torch.expm1(signal)), "linear_beta", {"levels": levels})


SCHEDULES = {"cosine_logsnr": cosine_logsnr, "linear_beta": linear_beta}


def shared_noise_pair(schedule: NoiseSchedule, x0: Tensor, level: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A pair (x_{t−1}, x_t) with one ε for both members: CDRL's variance reduction (Zhu et al. 2024, section 3).

    Args:
        x0: clean images ``(B, C, H, W)`` in [−1, 1].
        level: t in 1 … T, int64 ``(B,)``.
        noise: standard normal, the shape of ``x0``.
    """
    return marginal(schedule, x0, level - 1, noise), marginal(schedule, x0, level, noise)


def independent_pair(
    schedule: NoiseSchedule, x0: Tensor, level: Tensor, noise: Tensor, posterior_noise: Tensor
) -> tuple[Tensor, Tensor]:
    """A pair (x_{t−1}, x_t) as the forward process draws it: x_t from its marginal, x_{t−1} from q(x_{t−1} | x_t, x_0).

    Arguments as in `shared_noise_pair`; ``posterior_noise`` is a second, independent draw.
    """
    upper = marginal(schedule, x0, level, noise)
    return posterior(schedule, x0, upper, level, posterior_noise), upper


def posterior(schedule: NoiseSchedule, x0: Tensor, upper: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """x_{t−1} drawn from q(x_{t−1} | x_t, x_0) (Ho et al. 2020, eq. 7), ``upper`` being x_t; see `independent_pair`."""
    lower_sigma, upper_sigma = schedule.sigma[level - 1], schedule.sigma[level]
    mean = (
        per_image(schedule.a[level] * (lower_sigma / upper_sigma).square()) * upper
        + per_image(schedule.alpha[level - 1] * schedule.beta[level] / upper_sigma.square()) * x0
    )
    return mean + per_image(schedule.posterior_std[level]) * noise


def same_noise(schedule: NoiseSchedule, x0: Tensor, upper: Tensor, level: Tensor) -> Tensor:
    """x_{t−1} with the very ε that made x_t (``upper``) of x_0: the partner of x_t in a `shared_noise_pair`."""
    noise = (upper - per_image(schedule.alpha[level]) * x0) / per_image(schedule.sigma[level])
    return marginal(schedule, x0, level - 1, noise)


def marginal(schedule: NoiseSchedule, x0: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """``α_t x_0 + σ_t ε``, ``(B, C, H, W)``; ``level`` int64 ``(B,)`` in 0 … T."""
    return per_image(schedule.alpha[level]) * x0 + per_image(schedule.sigma[level]) * noise


def per_image(values: Tensor) -> Tensor:
    """``(B,)`` → ``(B, 1, 1, 1)``, to scale images."""
    return values[:, None, None, None]


def _check_levels(levels: int, most: int = MOST_LEVELS) -> None:
    if not levels >= 1:
        raise UserError(f"a noise schedule needs at least one transition, not levels={levels}")
    if not levels <= most:
        raise UserError(f"this schedule has room for {most} transitions, not for levels={levels}; use {most} or fewer")
