"""One network and what trains it: optimiser, warm-up, gradient clip, moving average."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdrl.ema import EMA
from cdrl.errors import UserError

DECAYS = ("none", "linear", "cosine")


@dataclass(frozen=True)
class Optimisation:
    """How one network is trained.

    Attributes:
        learning_rate: of Adam, after the warm-up.
        betas: Adam's.
        weight_decay: decoupled (AdamW).
        epsilon: Adam's.
        epsilon_corrected: whether epsilon stands beside the bias-corrected √v̂ (PyTorch's Adam), or beside √v itself
            (Kingma & Ba 2015, end of section 2, and TensorFlow's Adam), where it weighs more in the first steps.
        warm_up: iterations of linear warm-up.
        warm_up_start: the rate of iteration i is (i + warm_up_start)/warm_up of the full one. The released code has 0
            for the energy network and 500 for the initializer.
        decay: "none", "linear" or "cosine": the learning rate's way to ``final`` · learning_rate at the last iteration.
        final: the share of the learning rate that is left at the end of the decay.
        clip: largest gradient norm, or None.
        ema: decay of the moving average.
        ema_ramp: see `cdrl.ema.EMA`; the released code has 1.
        power_iterations: of spectral normalisation before each iteration.
    """

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    epsilon: float = 1e-8
    epsilon_corrected: bool = True
    warm_up: int = 10_000
    warm_up_start: int = 1
    decay: str = "none"
    final: float = 0.0
    clip: float | None = 1.0
    ema: float = 0.9999
    ema_ramp: int | None = 0
    power_iterations: int = 1

    def __post_init__(self) -> None:
        ranges = {
            "learning_rate must be positive": self.learning_rate > 0,
            "epsilon must be positive": self.epsilon > 0,
            "warm_up must be 0 or more": self.warm_up >= 0,
            "warm_up_start must be 0 or more": self.warm_up_start >= 0,
            "ema_ramp must be 0 or more, or null for none": self.ema_ramp is None or self.ema_ramp >= 0,
            "power_iterations must be 1 or more": self.power_iterations >= 1,
            "weight_decay must be 0 or more": self.weight_decay >= 0,
            "clip must be positive, or null for none": self.clip is None or self.clip > 0,
            "ema must be at least 0 and below 1": 0 <= self.ema < 1,
            "betas must be at least 0 and below 1": all(0 <= beta < 1 for beta in self.betas),
        }
        for rule, valid in ranges.items():  # positive comparisons, which no NaN passes
            if not valid:
                raise UserError(f"{rule}, not {getattr(self, rule.split()[0])}")
        if self.decay not in DECAYS:
            raise UserError(f"unknown decay '{self.decay}'; choose one of {', '.join(DECAYS)}")

    def rate(self, iteration: int, iterations: int) -> float:
        """The learning rate of iteration 0, 1, …, out of ``iterations``."""
        warm = min(1.0, (iteration + self.warm_up_start) / max(1, self.warm_up))
        progress = min(1.0, iteration / max(1, iterations))
        left = {"none": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}[self.decay]
        return self.learning_rate * warm * (self.final + (1.0 - self.final) * left)

    def epsilon_at(self, iteration: int) -> float:
        """The epsilon that PyTorch's Adam is told at iteration 0, 1, …"""
        correction = 1.0 if self.epsilon_corrected else math.sqrt(1.0 - self.betas[1] ** (iteration + 1))
        return self.epsilon / correction


class Learner:
    """A network in training. ``network`` is live, ``ema.average`` is what samples are drawn from."""

    def __init__(self, network: nn.Module, settings: Optimisation) -> None:
        self.network, self.settings = network, settings
        self.parameters = list(network.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.ema = EMA(network, settings.ema, settings.ema_ramp)
        self.slowdown = 1.0
        """A factor on the learning rate: below 1 after a rollback, see `cdrl.guard`."""

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    def clear_gradient(self) -> None:
        """Forget what backward passes have added up."""
        self.optimizer.zero_grad(set_to_none=True)

    def gradient(self) -> Tensor:
        """What backward passes have added up, as one vector ``(size,)``; zeros where they reached nothing."""
        return torch.cat(
            [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in self.parameters]
        )

    def put_gradient(self, vector: Tensor) -> None:
        """The inverse of `gradient`."""
        for parameter, part in zip(self.parameters, vector.split([p.numel() for p in self.parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def rate(self, iteration: int, iterations: int) -> float:
        """The learning rate of iteration 0, 1, …, out of ``iterations``."""
        return self.slowdown * self.settings.rate(iteration, iterations)

    def descend(self, iteration: int, iterations: int) -> Tensor:
        """One optimiser step down the gradient; returns its norm before clipping, a scalar on the device."""
        limit = math.inf if self.settings.clip is None else self.settings.clip
        norm = nn.utils.clip_grad_norm_(self.parameters, limit, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(iteration, iterations)
            group["eps"] = self.settings.epsilon_at(iteration)
        self.optimizer.step()
        self.ema.update(iteration)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on, as named tensors."""
        tensors = {f"live.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.average.state_dict().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`. Raises KeyError or RuntimeError when the tensors belong to another network."""
        self.network.load_state_dict(_with_prefix(tensors, "live."))
        self.ema.average.load_state_dict(_with_prefix(tensors, "ema."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _with_prefix(tensors, "optimizer.").items():
            number, moment = name.split(".")
            state.setdefault(int(number), {})[moment] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
