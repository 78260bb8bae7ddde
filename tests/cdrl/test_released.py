"""The importer of the authors' checkpoints: against their own networks, and against numbers that those gave.

With ``CDRL_RELEASED_REPO`` naming a checkout of the authors' release, their networks are built, filled and run
here, and the numbers in ``released_golden.json`` must be theirs (``CDRL_RELEASED_WRITE=1`` writes the file anew).
Without a checkout our networks, read from a file in the authors' format, must give those numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cdrl
from cdrl import checkpoint, conditions, randomness, released
from cdrl.conditions import Condition
from cdrl.errors import UserError
from tests.cdrl.released_networks import (
    SIZES,
    WRITE,
    authors_networks,
    checkout,
    layout_of,
    needs_repository,
    numbers,
    put,
    released_file,
)

GOLDEN = Path(__file__).with_name("released_golden.json")
SEED, N, STEPS, GUIDANCE = 5, 2, 15, 0.7
LABELS = torch.tensor([3, 5])
STAGES = ("x5", "x4", "x3", "x2", "x1", "x0", "sample")
LIMITS = {"energy": 5e-5, "gradient": 1e-4, "proposal": 3e-6}
"""What the authors' float32 may make of a number, in units of the largest; 2e-5 on a trajectory. On every processor
the stored numbers lie at 1.2e-5, 3.1e-5, 0.9e-6 and 0.6e-5 from ours, which are computed in float64."""


# --- The authors' sampling, written down ------------------------------------------------------------------------------


@pytest.fixture
def authors() -> Iterator[Path]:
    with checkout() as path:
        yield path


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
    images = numbers(N * 3 * size * size, 500).float().reshape(N, 3, size, size)
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
        if WRITE:
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
