"""The importer of the authors' checkpoints: against their own networks, and against numbers that those gave.

With ``CDRL_RELEASED_REPO`` naming a checkout of the authors' release, their networks are built, filled and run
here, and the numbers in ``released_golden.json`` must be theirs (``CDRL_RELEASED_WRITE=1`` writes the file anew).
Without a checkout our networks, read from a file in the authors' format, must give those numbers.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import cdrl
from cdrl import checkpoint, conditions, randomness, released
from cdrl.conditions import Condition
from cdrl.errors import UserError

GOLDEN = Path(__file__).with_name("released_golden.json")
REPOSITORY = os.environ.get("CDRL_RELEASED_REPO")
needs_repository = pytest.mark.skipif(REPOSITORY is None, reason="CDRL_RELEASED_REPO names no checkout")

SEED, N, STEPS, GUIDANCE = 5, 2, 15, 0.7
SIZES: dict[str, dict[str, Any]] = {
    "unconditional": {"image_size": 32, "width": 8, "blocks": 2, "unet_blocks": 1, "classes": 0},
    "conditional": {"image_size": 16, "width": 4, "blocks": 1, "unet_blocks": 2, "classes": 5},
}
GAINS = {"temb_final": 4.0, "final_conv": 0.1}
"""Gradients that a chain can feel, and proposals that stay near x_t."""
LABELS = torch.tensor([3, 5])
STAGES = ("x5", "x4", "x3", "x2", "x1", "x0", "sample")
LIMITS = {"energy": 5e-5, "gradient": 1e-4, "proposal": 3e-6}
"""What the authors' float32 may make of a number, in units of the largest; 2e-5 on a trajectory. On every processor
the stored numbers lie at 1.2e-5, 3.1e-5, 0.9e-6 and 0.6e-5 from ours, which are computed in float64."""
Layout = list[tuple[str, list[int]]]
"""Names and shapes of a released state dict, in order."""


# --- Networks filled by a formula -------------------------------------------------------------------------------------


def numbers(count: int, stream: float) -> Tensor:
    """Numbers in (−1, 1) that look random, float64 ``(count,)``: the fractional part of a large sine."""
    noise = torch.sin(torch.arange(1, count + 1, dtype=torch.float64) * 12.9898 + 78.233 * stream) * 43758.5453
    return 2.0 * (noise - noise.floor()) - 1.0


def filled(layout: Layout, stream: float) -> dict[str, Tensor]:
    """A state dict of this layout: no weight is zero or one, and spectral vectors fit their matrices."""
    state: dict[str, Tensor] = {}
    for number, (name, shape) in enumerate(layout):
        values = numbers(math.prod(shape), stream + number).reshape(shape)
        layer, _, kind = name.rpartition(".")
        if kind in ("weight_u", "weight_v"):
            state[name] = leading_vector(state[f"{layer}.weight_orig"].flatten(1), kind) + 0.02 * values
        elif kind == "bias":
            state[name] = 0.2 * values
        elif kind == "g" or "norm" in layer:
            state[name] = 1.0 + 0.2 * values
        else:
            state[name] = GAINS.get(layer, 1.0) * values * math.sqrt(3.0 / math.prod(shape[1:]))
    return state


def leading_vector(matrix: Tensor, kind: str) -> Tensor:
    """Nearly the first left ("weight_u") or right singular vector, by a fixed power iteration."""
    v = torch.ones(matrix.shape[1], dtype=matrix.dtype)
    for _ in range(20):
        u = torch.nn.functional.normalize(matrix @ v, dim=0)
        v = torch.nn.functional.normalize(matrix.T @ u, dim=0)
    return u if kind == "weight_u" else v


def averages(state: dict[str, Tensor], layout: Layout) -> list[Tensor]:
    """What stands for torch-ema's list: the parameters, a little moved."""
    parameters = [(name, shape) for name, shape in layout if not name.endswith(("weight_u", "weight_v"))]
    return [
        (state[name] + 0.02 * numbers(math.prod(shape), 1000.0 + number).reshape(shape)).float()
        for number, (name, shape) in enumerate(parameters)
    ]


def released_file(path: Path, layouts: dict[str, Layout]) -> Path:
    """A file in the authors' format, weights filled by the formula."""
    content: dict[str, Any] = {"p_lr_scheduler": {"last_epoch": 3, "lr_lambdas": [None]}}
    for name, layout in layouts.items():
        state = filled(layout, stream=float(len(name)))
        content[f"{name}_state_dict"] = {f"module.{key}": value.float() for key, value in state.items()}
        content[f"{name}_ema_state_dict"] = {
            "decay": 0.9999,
            "num_updates": 3,
            "shadow_params": averages(state, layout),
            "collected_params": None,
        }
    torch.save(content, path)
    return path


# --- The authors' networks and their sampling -------------------------------------------------------------------------


@pytest.fixture
def authors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Makes the checkout importable; what it imports but the networks do not need is replaced by stand-ins."""
    layouts = {
        "b c -> b c 1 1": lambda t: t[:, :, None, None],
        "b (h c) x y -> b h c (x y)": lambda t, h: t.flatten(2).unflatten(1, (h, -1)),
        "b h (x y) d -> b (h d) x y": lambda t, x, y: t.transpose(2, 3).flatten(1, 2).unflatten(2, (x, y)),
    }
    einops, torch_layers, tkinter = ModuleType("einops"), ModuleType("einops.layers.torch"), ModuleType("tkinter")

    def rearrange(tensor: Tensor, pattern: str, **axes: int) -> Tensor:
        return layouts[pattern](tensor, **axes)

    for module, values in (
        (einops, {"rearrange": rearrange, "reduce": None}),
        (torch_layers, {"Rearrange": None}),
        (tkinter, {"W": None}),
    ):
        for name, value in values.items():
            setattr(module, name, value)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "einops.layers", ModuleType("einops.layers"))
    monkeypatch.syspath_prepend(str(REPOSITORY))
    yield Path(str(REPOSITORY))
    for name in [name for name in sys.modules if name == "models" or name.startswith("models.")]:
        del sys.modules[name]


def authors_networks(variant: str) -> tuple[Any, Any]:
    """Their energy network and U-Net, in evaluation mode."""
    sizes = SIZES[variant]
    suffix = "_cond" if sizes["classes"] else ""
    extra = {"n_class": sizes["classes"], "p_cond": 0.1} if sizes["classes"] else {}
    energy = importlib.import_module(f"models.ebm{suffix}").EBM(
        temb_dim=sizes["width"], n_blocks=sizes["blocks"], use_sn=True, act_fn="lrelu", **extra
    )
    unet = importlib.import_module(f"models.unet{suffix}").Unet(
        dim=32, im_sz=sizes["image_size"], num_res_blocks=sizes["unet_blocks"], tanh_out=False, **extra
    )
    return energy.eval(), unet.eval()


def layout_of(network: Any) -> Layout:
    return [(name, list(value.shape)) for name, value in network.state_dict().items()]


def put(network: Any, layout: Layout, name: str, weights: str) -> None:
    """Fill one of their networks as `released_file` does, by their own parameter order."""
    state = filled(layout, stream=float(len(name)))
    network.load_state_dict({key: value.float() for key, value in state.items()})
    if weights == "ema":
        for parameter, value in zip(network.parameters(), averages(state, layout), strict=True):
            parameter.data.copy_(value)


def authors_call(network: Any, x: Tensor, logsnr: Tensor, label: Tensor | None) -> Tensor:
    return network(x, logsnr) if label is None else network(x, logsnr, label)


def gradient(function: Any, y: Tensor) -> Tensor:
    y = y.detach().requires_grad_(True)
    return torch.autograd.grad(function(y).sum(), y)[0]


def authors_trajectory(energy: Any, unet: Any, variant: str) -> list[Tensor]:
    """x_{T−1}, …, x_0 and the sample, from the release's equations (with 2e-4 in the tether and the last denoise)."""
    size, labels = SIZES[variant]["image_size"], LABELS if SIZES[variant]["classes"] else None
    index, shape = torch.arange(N), (3, size, size)

    def noise(purpose: str, *counters: int) -> Tensor:
        return randomness.normal(randomness.key(SEED, f"sample/{purpose}", *counters), index, shape)

    def mixed(network: Any, x: Tensor, logsnr: float) -> Tensor:
        level = torch.full((N,), logsnr)
        if labels is None:
            return authors_call(network, x, level, None)
        null = authors_call(network, x, level, torch.zeros_like(labels))
        return (1 + GUIDANCE) * authors_call(network, x, level, labels) - GUIDANCE * null

    low, high = math.atan(math.exp(-4.9)), math.atan(math.exp(2.55))
    logsnr = [-2 * math.log(math.tan(low + t / 6 * (high - low))) for t in range(7)]
    signal = [1 / (1 + math.exp(-value)) for value in logsnr]
    x = noise("start")
    path = []
    for t in range(6, 0, -1):
        ratio, top = signal[t] / signal[t - 1], t == 6
        scale = 1.0 if top else math.sqrt(ratio)
        growth = math.sqrt((1 - signal[t - 1]) / (1 - signal[0]))
        step = math.sqrt(4e-4 * growth * (1 - ratio))
        spread = scale * math.sqrt((1 - signal[t - 1]) / (1 - signal[t]) * (1 - ratio))
        with torch.no_grad():
            y = mixed(unet, x, logsnr[t]) + spread * noise("proposal", t, 0)
        for k in range(STEPS):
            drift = gradient(lambda y, t=t: mixed(energy, y, logsnr[t - 1]), y)
            drift = drift - (0.0 if top else 2 * 2e-4 * growth) * (y - x)
            y = y + 0.5 * drift + step * noise("chain", t, 0, k)
        x = y / scale
        path.append(x)
    score = gradient(lambda x: mixed(energy, x * scale, logsnr[0]), x) / (2e-4 * (1 - ratio))
    return [*path, ((x + (1 - signal[0]) * score) / math.sqrt(signal[0])).clamp(-1, 1)]


# --- The same quantities from either side -----------------------------------------------------------------------------


def inputs(variant: str) -> tuple[Tensor, Tensor, Tensor | None]:
    size = SIZES[variant]["image_size"]
    images = numbers(N * 3 * size * size, 0.5).float().reshape(N, 3, size, size)
    return images, torch.tensor([9.8, -1.3]), LABELS if SIZES[variant]["classes"] else None


def authors_numbers(variant: str, weights: str) -> dict[str, Tensor]:
    """Energies, gradients, proposals and (averaged weights) a trajectory of their networks."""
    networks = dict(zip(("pi", "p"), authors_networks(variant), strict=True))
    for name, network in networks.items():
        put(network, layout_of(network), name, weights)
    energy, unet = networks.values()
    y, logsnr, label = inputs(variant)
    result = {
        "energy": authors_call(energy, y, logsnr, label).detach(),
        "gradient": gradient(lambda y: authors_call(energy, y, logsnr, label), y),
        "proposal": authors_call(unet, y, logsnr, label).detach(),
    }
    if weights == "ema":
        result |= dict(zip(STAGES, authors_trajectory(energy, unet, variant), strict=True))
    return result


def our_numbers(path: Path, variant: str, weights: str) -> dict[str, Tensor]:
    """The same from our networks, as read from a file in the authors' format; in float64, alike on every processor."""
    model = released.model(path, weights)
    initializer = model.sampler.initializer
    assert initializer is not None
    for network in (model.sampler.energy_net, initializer):
        network.double()
    y, logsnr, label = inputs(variant)
    y, logsnr = y.double(), logsnr.double()
    result = {
        "energy": model.sampler.energy_net(y, logsnr, label).detach(),
        "gradient": gradient(lambda y: model.sampler.energy_net(y, logsnr, label), y),
        "proposal": initializer(y, logsnr, label).detach(),
    }
    if weights == "ema":

        def observe(stage: str, level: int, images: Tensor) -> None:
            if stage in ("refined", "sample"):
                result["sample" if stage == "sample" else f"x{level}"] = images

        model.sampler(torch.arange(N), SEED, condition(variant), observe)
    return result


def condition(variant: str) -> Condition | None:
    return conditions.guided(LABELS, GUIDANCE) if SIZES[variant]["classes"] else None


def probes(values: Tensor) -> list[float]:
    """An image tensor in a few numbers: its root mean square, and values at even distances."""
    flat = values.flatten().double()
    return [float(f"{value:.7g}") for value in (flat.square().mean().sqrt(), *flat[:: max(1, len(flat) // 24)])]


def assert_close(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """All quantities to a share of their largest value; the clamped sample to that of x_0, which it was made from."""
    assert mine.keys() == theirs.keys()
    for name in theirs:
        actual, expected, scale = map(torch.as_tensor, (mine[name], theirs[name], theirs[name.replace("sample", "x0")]))
        error = float((actual - expected).abs().max() / scale.abs().max())
        assert error < LIMITS.get(name, 2e-5), f"{name} differs by {error:.1e}"


@pytest.fixture
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


@pytest.fixture
def files(tmp_path: Path, golden: dict[str, Any]) -> dict[str, Path]:
    """A file in the authors' format for each variant, filled by the formula."""
    return {name: released_file(tmp_path / f"{name}.pth.tar", golden[name]["layout"]) for name in SIZES}


# --- Tests ------------------------------------------------------------------------------------------------------------


@needs_repository
@pytest.mark.parametrize("weights", released.WEIGHTS)
@pytest.mark.parametrize("variant", SIZES)
def test_equals_the_authors_networks(variant: str, weights: str, authors: Path, tmp_path: Path) -> None:
    layouts = {name: layout_of(net) for name, net in zip(("pi", "p"), authors_networks(variant), strict=True)}
    theirs = authors_numbers(variant, weights)
    mine = our_numbers(released_file(tmp_path / "best.pth.tar", layouts), variant, weights)
    assert_close(mine, theirs)
    assert theirs["gradient"].square().mean().sqrt() > 1e-3, "a gradient that is next to nothing compares nothing"

    if weights == "ema":
        record = {"layout": layouts, "numbers": {name: probes(values) for name, values in theirs.items()}}
        if os.environ.get("CDRL_RELEASED_WRITE"):
            stored = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
            GOLDEN.write_text(json.dumps(stored | {variant: record}) + "\n")
        assert_close(json.loads(GOLDEN.read_text())[variant]["numbers"], record["numbers"])


@pytest.mark.parametrize("variant", SIZES)
def test_gives_the_numbers_of_the_authors_networks(
    variant: str, files: dict[str, Path], golden: dict[str, Any]
) -> None:
    mine = our_numbers(files[variant], variant, "ema")
    assert_close({name: probes(values) for name, values in mine.items()}, golden[variant]["numbers"])


@pytest.mark.parametrize("variant", SIZES)
def test_sizes_are_told_from_the_file(variant: str, files: dict[str, Path]) -> None:
    energy_net, initializer = released.load(files[variant])
    sizes = SIZES[variant]
    assert cdrl.model.energy_sizes(energy_net) == {
        **{"image_size": sizes["image_size"], "channels": 3, "width": sizes["width"], "multipliers": [1, 2, 2, 2]},
        **{"blocks": sizes["blocks"], "classes": sizes["classes"], "kernel": 3, "frequencies": 0},
        **{"levels": [], "closed": False, "time_activation": True, "readout_bias": False},
    }
    told = cdrl.model.initializer_sizes(initializer, sizes["image_size"])
    assert (told["width"], told["multipliers"], told["blocks"]) == (32, [1, 1, 1], sizes["unet_blocks"])
    assert (told["attention_sizes"], told["classes"], told["dropout"]) == ([16, 8], sizes["classes"], 0.1)


def test_live_weights_are_not_the_averages(files: dict[str, Path]) -> None:
    average, live = (released.load(files["unconditional"], weights)[0] for weights in released.WEIGHTS)
    assert not torch.allclose(average.readout.weight, live.readout.weight)
    assert torch.equal(average.stem.u, live.stem.u)


def test_is_sampled_as_released_and_saved(files: dict[str, Path], tmp_path: Path) -> None:
    model = released.model(files["conditional"])
    assert (model.sampler.last_denoise, model.sampler.chain.steps) == ("official", 15)
    quick = replace(model.sampler, chain=replace(model.sampler.chain, steps=1))
    checkpoint.save_model(tmp_path / "saved", cdrl.Model(quick))
    again = cdrl.load(tmp_path / "saved")
    assert torch.equal(again.sample(3, seed=1), cdrl.Model(quick).sample(3, seed=1))


def test_bad_files_are_named(tmp_path: Path, files: dict[str, Path]) -> None:
    foreign, truncated, mixed = (tmp_path / name for name in ("foreign.pt", "truncated.pt", "mixed.pt"))
    torch.save({"model": {"weight": torch.zeros(3)}}, foreign)
    truncated.write_bytes(files["unconditional"].read_bytes()[:5000])
    content = torch.load(files["unconditional"], weights_only=True)
    content["p_ema_state_dict"]["shadow_params"].pop()
    torch.save(content, mixed)
    for path in (foreign, truncated, mixed, tmp_path / "missing.pt"):
        with pytest.raises(UserError, match=path.name):
            released.load(path)
    with pytest.raises(UserError, match="choose one of ema, live"):
        released.load(mixed, "best")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"pi_state_dict": Trap()}, tmp_path / "trap.pth.tar")
    with pytest.raises(UserError, match="trap"):
        released.load(tmp_path / "trap.pth.tar")
    assert not (tmp_path / "sprung").exists()
