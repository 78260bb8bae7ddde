"""The authors' own training loop and samplers, run on the CPU in float64 with this project's draws.

``main_uncond.py`` or ``main_cond.py`` of a checkout is executed as it stands, and then its `train()` or one of its
samplers is called. Around them, names of their module are replaced:

    settings                   sizes, and rates high enough for updates to be seen
    EBM, Unet                  theirs, filled by a formula; what dropout drops is drawn as below
    torch                      "float" is float64, the device the CPU; `randint`, `rand`, `randn` and `randn_like` hand
                               out our draws, each in its turn; the clip is observed before it happens
    data, torchvision, pfw, …  a few given batches; no process group, no FID, no pictures

One thing in the source itself is changed, because no setting of ours stands for it: where the refined sample is divided
by √a + 1e-8 the 1e-8 goes. It moves what is refined by 1e-8 of its size.

Everything is handed over under our names, as a checkpoint of theirs would be: through `cdrl.released`.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn, optim

from cdrl import randomness, released
from cdrl.networks.spectral import spectral_layers
from tests.cdrl.released_networks import SIZES, checkout, layout_of, numbers, put

SEED, BATCH, ITERATIONS, LEVELS, STEPS = 157, 12, 5, 6, 15
RATES, WARM_UP = {"energy": 0.1, "initializer": 1e-3}, 1000
"""Updates of about 1e-4 from the second iteration on (the energy's first rate is 0, as released)."""
N, GUIDANCE, LABELS = 2, 0.7, torch.tensor([3, 5])
_RANK = 1  # not the first process, which prints and draws pictures

Draws = Iterator[tuple[str, Tensor]]
"""The function of torch that is called next, and what it returns."""
Record = dict[str, Tensor]
"""What one iteration computed and changed, by name."""


# --- What both sides are given ----------------------------------------------------------------------------------------


def batch(variant: str, iteration: int) -> tuple[Tensor, Tensor | None]:
    """Images in [−1, 1], and labels in 1 … C where there are any."""
    size, classes = SIZES[variant]["image_size"], SIZES[variant]["classes"]
    images = numbers(BATCH * 3 * size * size, 600 + iteration).reshape(BATCH, 3, size, size)
    labels = 1 + randomness.integers(randomness.key(iteration, "parity"), torch.arange(BATCH), classes)
    return images, labels if classes else None


def training_draws(variant: str, iteration: int) -> Draws:
    """What `train()` asks for in one iteration, in its order; the same numbers as `Cooperative` draws."""
    index, size = torch.arange(BATCH), SIZES[variant]["image_size"]

    def key(purpose: str, *counters: int) -> int:
        return randomness.key(SEED, f"train/{purpose}", iteration, *counters)

    def normal(purpose: str, *counters: int) -> Tensor:
        return randomness.normal(key(purpose, *counters), index, (3, size, size), torch.float64)

    if SIZES[variant]["classes"]:
        yield "rand", randomness.uniform(key("label"), index, (), torch.float64)
    yield "randint", (1 + randomness.integers(key("level"), index, LEVELS)).double()
    yield "randn_like", normal("pair")
    for block in range(6 * SIZES[variant]["unet_blocks"] + 9):
        # As many numbers as the largest layer has values; a smaller one takes the first.
        yield "dropout", randomness.uniform(key("dropout", block), index, (32 * size * size,), torch.float64)
    yield "randn_like", normal("proposal")
    for step in range(STEPS):
        yield "randn_like", normal("chain", step)


def sampling_draws(variant: str) -> Draws:
    """The same for their sampler; `cdrl.sampler.Sampler` draws these numbers."""
    index, size = torch.arange(N), SIZES[variant]["image_size"]

    def normal(purpose: str, *counters: int) -> Tensor:
        stream = randomness.key(SEED, f"sample/{purpose}", *counters)
        return randomness.normal(stream, index, (3, size, size), torch.float64)

    yield "randn", normal("start")
    if SIZES[variant]["classes"]:
        yield "randint", LABELS
    for level in range(LEVELS, 0, -1):
        yield "randn_like", normal("proposal", level, 0)
        for step in range(STEPS):
            yield "randn_like", normal("chain", level, 0, step)


# --- Their module -----------------------------------------------------------------------------------------------------


class Instead:
    """A module in which some names mean something else."""

    def __init__(self, module: ModuleType, **names: Any) -> None:
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Theirs:
    """The authors' module, executed from the checkout; `train()` and the samplers take their draws from ``draws``."""

    def __init__(self, path: Path, variant: str, weights: str = "live") -> None:
        self.variant, self.sizes = variant, (sizes := SIZES[variant])
        path = path / ("main_cond.py" if sizes["classes"] else "main_uncond.py")
        source, found = re.subn(r" \+ 1e-8\b", "", path.read_text())
        assert found in (1, 2), "their small number is elsewhere"
        self.namespace: dict[str, Any] = {"__name__": "released", "__file__": str(path)}
        exec(compile(source, str(path), "exec"), self.namespace)
        self.draws: Draws = iter(())

        def built(kind: Any, name: str, **settings: Any) -> Any:
            def build(**theirs: Any) -> Any:
                network = kind(**{**theirs, **settings})
                put(network, layout_of(network), name, weights)
                for module in network.modules():
                    if hasattr(module, "dropout_layer"):
                        module.dropout_layer = _Dropout(module.dropout_layer.p, partial(self._drawn, "dropout"))
                return network

            return build

        unet = {"num_res_blocks": sizes["unet_blocks"], "im_sz": sizes["image_size"]}
        self.namespace |= {
            **{"im_sz": sizes["image_size"], "n_class": sizes["classes"], "load_path": None, "mode": "train"},
            **{"pi_dim": sizes["width"], "pi_n_blocks": sizes["blocks"], "p_dim": 32},
            **{"pi_lr": RATES["energy"], "p_lr": RATES["initializer"], "warmup_steps": WARM_UP},
            "EBM": built(self.namespace["EBM"], "pi"),
            "Unet": built(self.namespace["Unet"], "p", **unet),
            "torch": self._torch(),
        }
        assert self.namespace["n_updates"] == STEPS

    def _drawn(self, function: str, *_: Any, **__: Any) -> Tensor:
        asked, values = next(self.draws)
        assert asked == function, f"{function} was called where {asked} was expected"
        return values.clone()

    def _torch(self) -> Any:
        return Instead(
            torch,
            float=torch.float64,
            device=lambda kind, index: torch.device("cpu") if index == _RANK else torch.device(kind, index),
            **{name: partial(self._drawn, name) for name in ("randint", "rand", "randn", "randn_like")},
        )

    def train(self, folder: Path) -> list[Record]:
        """Their loop on our batches, ended by the loader; one record an iteration."""
        book = _Book(folder)

        class Enough(Exception):
            pass

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for iteration in range(ITERATIONS):
                images, labels = batch(self.variant, iteration)
                self.draws = training_draws(self.variant, iteration)
                yield images, torch.zeros(BATCH) if labels is None else labels - 1  # they count classes from 0
                assert next(self.draws, None) is None, "fewer draws than ours"
                book.close()
            raise Enough

        def loader(dataset: Any, sampler: Any = None, **_: Any) -> Iterable[tuple[Tensor, Any]]:
            return [(torch.zeros(1, 3, 1, 1), None)] if sampler is None else batches()

        namespace = self.namespace
        namespace["torch"] = Instead(
            namespace["torch"],
            manual_seed=_nothing,
            cuda=SimpleNamespace(manual_seed_all=_nothing),
            distributed=SimpleNamespace(init_process_group=_nothing),
            utils=_nested("data.distributed", DistributedSampler=lambda *_, **__: True),
            nn=Instead(nn, utils=SimpleNamespace(clip_grad_norm=book.clip)),
        )
        namespace |= {
            "log_path": str(folder),
            "random": SimpleNamespace(seed=_nothing),
            "np": Instead(np, random=SimpleNamespace(seed=_nothing)),
            "shutil": SimpleNamespace(copyfile=_nothing),
            "data": SimpleNamespace(DataLoader=loader),
            "torchvision": Instead(torchvision, datasets=SimpleNamespace(CIFAR10=_nothing)),
            "nn": Instead(nn, parallel=SimpleNamespace(DistributedDataParallel=lambda network, **_: network)),
            "optim": Instead(optim, lr_scheduler=SimpleNamespace(LambdaLR=_schedule)),
            **dict.fromkeys(("gen_samples", "gen_guided_samples", "calculate_fid"), _nothing),
        }
        with pytest.raises(Enough):
            namespace["train"](SimpleNamespace(local_rank=_RANK))
        return book.records

    def networks(self) -> tuple[Any, Any]:
        """Their energy network and U-Net in evaluation mode."""
        namespace, sizes = self.namespace, self.sizes
        extra = {"n_class": sizes["classes"], "p_cond": 0.1} if sizes["classes"] else {}
        energy = namespace["EBM"](temb_dim=sizes["width"], n_blocks=sizes["blocks"], use_sn=True, **extra)
        return energy.eval(), namespace["Unet"](dim=32, tanh_out=False, **extra).eval()

    def sample(self) -> dict[str, Tensor]:
        """x_{T−1}, …, x_0 and the clamped sample, guided where there are labels."""
        guided = self.sizes["classes"] > 0
        sampler = self.namespace["gen_guided_samples2" if guided else "gen_samples"]
        chain, path = "Langevin_guided" if guided else "Langevin", []
        walk = self.namespace[chain]

        def observed(*arguments: Any, **settings: Any) -> Tensor:
            path.append(walk(*arguments, **settings))
            return path[-1]

        self.namespace[chain] = observed
        self.draws = sampling_draws(self.variant)
        energy, unet = self.networks()
        extra = {"guided_weight": GUIDANCE} if guided else {}
        sample = sampler(N, unet, energy, device=torch.device("cpu"), **extra)
        assert next(self.draws, None) is None, "fewer draws than ours"
        return {f"x{LEVELS - 1 - step}": x for step, x in enumerate(path)} | {"sample": sample.clamp(-1.0, 1.0)}


class _Dropout(nn.Module):
    """PyTorch's at this rate, with given numbers."""

    def __init__(self, rate: float, drawn: Callable[[], Tensor]) -> None:
        super().__init__()
        self.rate, self.drawn = rate, drawn

    def forward(self, h: Tensor) -> Tensor:
        if not self.training:
            return h
        kept = self.drawn()[:, : h[0].numel()].reshape(h.shape) >= self.rate
        return h * kept / (1.0 - self.rate)


@contextmanager
def theirs(variant: str, weights: str = "live") -> Iterator[Theirs]:
    """Their module in float64, with stand-ins for what it imports and does not need here."""
    suffix = "_cond" if SIZES[variant]["classes"] else ""
    with checkout() as path, pytest.MonkeyPatch.context() as patch, float64():
        for name, content in (
            ("pytorch_fid_wrapper", {"get_stats": lambda *_, **__: (None, None)}),
            ("ImageNet_dataset", {"ImageNetKaggle": _nothing}),
            *([] if importlib.util.find_spec("torch_ema") else [("torch_ema", {"ExponentialMovingAverage": TorchEma})]),
        ):
            module = ModuleType(name)
            module.__dict__.update(content)
            patch.setitem(sys.modules, name, module)
        patch.setattr(torch.multiprocessing, "set_sharing_strategy", _nothing)
        embedding = importlib.import_module(f"models.ebm{suffix}").get_timestep_embedding
        patch.setattr(embedding, "__defaults__", (torch.float64, *embedding.__defaults__[1:]))
        patch.setattr(Tensor, "float", Tensor.double)  # of one-hot labels
        yield Theirs(path, variant, weights)


class TorchEma:
    """What torch-ema 0.3 does, where it is not installed."""

    def __init__(self, parameters: Iterable[Tensor], decay: float) -> None:
        self.parameters, self.decay, self.updates = list(parameters), decay, 0
        self.shadow_params = [p.detach().clone() for p in self.parameters]

    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for average, p in zip(self.shadow_params, self.parameters, strict=True):
            average.sub_((1.0 - decay) * (average - p.detach()))

    @contextmanager
    def average_parameters(self) -> Iterator[None]:
        yield  # around pictures alone, which are not drawn here


@contextmanager
def float64() -> Iterator[None]:
    """New tensors and networks are of float64 inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _nested(path: str, **names: Any) -> Any:
    found = SimpleNamespace(**names)
    for name in reversed(path.split(".")):
        found = SimpleNamespace(**{name: found})
    return found


def _schedule(optimizer: Any, lr_lambda: Any, last_epoch: int, verbose: bool) -> Any:
    """``verbose`` is gone from PyTorch."""
    return optim.lr_scheduler.LambdaLR(optimizer, lr_lambda, last_epoch)


# --- What it did ------------------------------------------------------------------------------------------------------


class _Book:
    """Reads `train()`'s own variables: at both clips of an iteration, and when the next one asks for its batch."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "state.pth.tar"
        self.records: list[Record] = []
        self._now: Record = {}
        self._gradients: dict[str, dict[str, Tensor]] = {}
        self._before: dict[str, Record] = {}

    def clip(self, parameters: Iterable[Tensor], max_norm: float) -> None:
        """In the place of PyTorch's; the energy network's comes first."""
        at = sys._getframe(1).f_locals
        network = "p" if self._gradients else "pi"
        if not self._gradients:
            if not self._before:
                self._before = self._state(at)
            scale = at["as_t_mul"].sqrt()[:, None, None, None]
            self._now = {
                "x_t": at["xt"],
                "positive": scale * at["xtminus1"],
                "proposal": at["xtminus1_neg0"].detach(),
                "refined": scale * at["xtminus1_negk"],
                "energies": torch.stack((at["pos_energy"], at["neg_energy"])).detach(),
                "energy loss": (at["pos_loss"] + at["neg_loss"]).detach(),
            }
        else:
            self._now["initializer loss"] = at["p_loss"].detach()
        self._gradients[network] = {name: p.grad.clone() for name, p in at[network].named_parameters()}
        self._at = at
        nn.utils.clip_grad_norm_(list(parameters), max_norm)

    def close(self) -> None:
        """The iteration is over: note gradients, and what it changed."""
        state = self._state(self._at)
        self.records.append(self._now | record_of(self._before, state, self._imported(self._at, self._gradients)))
        self._before, self._gradients = state, {}

    def _state(self, at: dict[str, Any]) -> dict[str, Record]:
        """Parameters, averages and spectral vectors."""
        live = self._imported(at, {})
        averages = {name: at[f"{name}_ema"].shadow_params for name in ("pi", "p")}
        return {"live": live, "average": self._imported(at, averages, "ema")}

    def _imported(self, at: dict[str, Any], values: dict[str, Any], weights: str = "live") -> Record:
        """Their networks, or ``values`` in the place of their parameters, under our names."""
        content: dict[str, Any] = {}
        for name in ("pi", "p"):
            state = at[name].state_dict()
            content[f"{name}_state_dict"] = state | values.get(name, {}) if weights == "live" else state
            if weights == "ema":
                content[f"{name}_ema_state_dict"] = {"shadow_params": values[name]}
        torch.save(content, self.file)
        return vectors(*released.load(self.file, weights))


def vectors(energy_net: nn.Module, initializer: nn.Module) -> Record:
    """All parameters of each network in one vector, and the spectral norms' u and v."""
    layers = list(spectral_layers(energy_net))
    return {
        "energy": torch.cat([p.detach().flatten() for p in energy_net.parameters()]),
        "initializer": torch.cat([p.detach().flatten() for p in initializer.parameters()]),
        "u, v": torch.cat([vector for layer in layers for vector in (layer.u, layer.v)]),
    }


def record_of(before: dict[str, Record], after: dict[str, Record], gradients: Record) -> Record:
    """Gradients before the clip, updates of parameters and averages, and the spectral vectors."""
    record = {"u, v": after["live"]["u, v"].clone()}
    for network in ("energy", "initializer"):
        record[f"{network} gradient"] = gradients[network]
        record[f"{network} update"] = after["live"][network] - before["live"][network]
        record[f"{network} average"] = after["average"][network] - before["average"][network]
    return record
