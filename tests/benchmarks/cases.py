"""What is measured: three sizes of network, three methods, and the ways to run them."""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from baselines.drl import drl_settings
from baselines.short_run import ShortRun, ShortRunSettings
from cdrl import langevin, randomness
from cdrl.cooperative import Cooperative, Settings
from cdrl.fast import EAGER, Engine
from cdrl.langevin import Langevin
from cdrl.learner import Optimisation
from cdrl.method import Method
from cdrl.networks import EnergyNet, Initializer
from experiments import configuration
from experiments.configuration import plain
from tests import reference
from tests.baselines import short_run_reference


@dataclass(frozen=True)
class Size:
    """One size of network, and as much work as a CPU does in seconds."""

    image: tuple[int, int]
    """Image size and channels."""
    energy: dict[str, Any]
    initializer: dict[str, Any]
    batch: int
    steps: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.image[1], self.image[0], self.image[0])


def _nano() -> Size:
    """CDRL as scale nano trains it."""
    config = plain(configuration.resolve(["scale=nano"]))
    data, method = config["data"], config["methods"]["cdrl"]
    image = (data["image_size"], data["channels"])
    return Size(image, method["energy"], method["initializer"], method["batch_size"], method["chain"]["steps"])


SIZES = {
    "nano": _nano(),
    "mini": Size(
        (32, 3),
        {"width": 64, "multipliers": (1, 2, 2), "blocks": 1},
        {"width": 32, "multipliers": (1, 1, 1), "blocks": 1, "dropout": 0.0},
        batch=4,
        steps=2,
    ),
    "paper": Size((32, 3), {}, {}, batch=8, steps=3),
}


def build(
    size: Size,
    method: str = "cdrl",
    engine: Engine = EAGER,
    device: str | torch.device = "cpu",
    optimisation: Optimisation = Optimisation(),  # noqa: B008  (frozen)
    dtype: torch.dtype = torch.float32,
) -> Method:
    """A method at a size with weights that depend on nothing."""
    torch.manual_seed(0)
    sizes = {"image_size": size.image[0], "channels": size.image[1]}
    net = EnergyNet(**sizes, **size.energy).to(device, dtype)
    if method == "short_run":
        return ShortRun(net, ShortRunSettings(steps=size.steps), optimisation, engine=engine)
    chain = Langevin(size.steps * (2 if method == "drl" else 1))
    settings = drl_settings(chain=chain) if method == "drl" else Settings(chain=chain)
    initializer = None if method == "drl" else Initializer(**sizes, **size.initializer).to(device, dtype)
    return Cooperative(net, initializer, settings, optimisation, engine=engine)


def images(size: Size, batch: int, device: str | torch.device = "cpu") -> Tensor:
    index = torch.arange(batch, device=device)
    return 2.0 * randomness.uniform(1, index, size.shape) - 1.0


def chain(method: Cooperative, y: Tensor, steps: int, plain: bool = False) -> Callable[[], Tensor]:
    """K Langevin steps from ``y`` at level 3; ``plain`` is the transcription of the equations."""
    index, settings = torch.arange(len(y), device=y.device), Langevin(steps)
    level = torch.full((len(y),), 3)
    net = method.energy_net
    if plain:
        at = reference.Transition(
            *(x.to(y.device) for x in reference.transition(method.settings.schedule, level, settings.step_variance))
        )
        streams = [randomness.key(0, "bench", step) for step in range(steps)]
        f = lambda images: reference.energy(net, images, at.lower)  # noqa: E731
        return lambda: reference.reference_chain(f, y, y, at, settings, streams, index)
    level = level.to(y.device)
    constants = langevin.coefficients(method.schedule, level, settings)
    streams_ = randomness.keys(0, "bench", count=steps, device=y.device)

    def run() -> Tensor:
        energy = net.frozen(net.weights(), method.schedule.logsnr[level - 1])
        return method.engine.refine(langevin.Chain(energy, y, y, constants, streams_, index)).y

    return run


def plain_step(method: Method, x0: Tensor) -> Callable[[], object]:
    """One training iteration by the transcription of the equations."""
    if isinstance(method, Cooperative):
        state = reference.state_of(method)
        return lambda: reference.reference_step(state, x0, None, 1)
    assert isinstance(method, ShortRun)
    short_run = short_run_reference.state_of(method)
    return lambda: short_run_reference.step(short_run, x0, 1)


def plain_sampling(method: Method, size: Size, n: int) -> Callable[[], object]:
    """``n`` samples by the transcription of the equations."""
    if isinstance(method, Cooperative):
        state = reference.state_of(method)
        return lambda: reference.reference_sample(state, torch.arange(n), 0, size.shape)
    assert isinstance(method, ShortRun)
    short_run = short_run_reference.state_of(method)
    return lambda: short_run_reference.sample(short_run, n, 0, size.shape)


def released_chain(checkout: Path, size: Size, y: Tensor, steps: int) -> Callable[[], Tensor]:
    """The same chain over the authors' energy network from a checkout of their repository; other weights."""
    sys.modules.setdefault("tkinter", types.SimpleNamespace(W=None))  # type: ignore[arg-type]
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    from models.ebm import EBM  # type: ignore[import-not-found]

    sizes = {"width": 128, "multipliers": (1, 2, 2, 2), "blocks": 8, **size.energy}
    net = EBM(
        ch_mult=sizes["multipliers"],
        in_channel=size.image[1],
        temb_dim=sizes["width"],
        n_blocks=sizes["blocks"],
        use_sn=True,
    ).to(y.device)
    logsnr = torch.zeros(len(y), device=y.device)
    for _ in range(15):  # as many power iterations as ours begin with
        net(y, logsnr)
    net.eval()

    def run() -> Tensor:
        state = y
        for _ in range(steps):
            state = state.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(net(state, logsnr).sum(), state)
            state = state + 0.5 * gradient - 1e-3 * (state - y) + 0.05 * torch.randn_like(state)
        return state.detach()

    return run


def flops(act: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in ``act``."""
    with FlopCounterMode(display=False) as counter:
        act()
    return int(counter.get_total_flops())


def ceiling(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    n: int = 1024,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """FLOP/s of a large matrix product, the best of some, by ``clock``."""
    a, best = torch.randn(n, n, device=device, dtype=dtype), 0.0
    for _ in range(50):
        begin = clock()
        a @ a
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * n**3 / (clock() - begin))
    return best
