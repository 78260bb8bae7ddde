"""The importer of the authors' checkpoints: against their own networks, and against numbers that those gave.

With ``CDRL_RELEASED_REPO`` naming a checkout of the authors' release, their networks are built, filled and run
here, and the numbers in ``released_golden.json`` must be theirs (``CDRL_RELEASED_WRITE=1`` writes the file anew).
Without a checkout our networks, read from a file in the authors' format, must give those numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cdrl
from cdrl import checkpoint, conditions, released
from cdrl.conditions import Condition
from cdrl.errors import UserError
from tests.cdrl.released_networks import SIZES, WRITE, layout_of, needs_repository, numbers, released_file
from tests.cdrl.released_training import GUIDANCE, LABELS, SEED, N, float64, theirs

GOLDEN = Path(__file__).with_name("released_golden.json")
EXACT, STORED = 1e-12, 1e-9
"""How far our numbers may be from the release's, both in float64; and from the stored ones, on another processor."""


# --- The same quantities from either side -----------------------------------------------------------------------------


def inputs(variant: str) -> tuple[Tensor, ...]:
    """Images, log-SNRs and, where there are any, labels: what both networks take."""
    size = SIZES[variant]["image_size"]
    images = numbers(N * 3 * size * size, 500).reshape(N, 3, size, size)
    logsnr = torch.tensor([9.8, -1.3], dtype=torch.float64)
    return (images, logsnr, LABELS) if SIZES[variant]["classes"] else (images, logsnr)


def gradient(energy: Any, y: Tensor, *others: Tensor) -> Tensor:
    y = y.detach().requires_grad_(True)
    return torch.autograd.grad(energy(y, *others).sum(), y)[0]


def network_numbers(energy: Any, proposer: Any, variant: str) -> dict[str, Tensor]:
    given = inputs(variant)
    return {
        "energy": energy(*given).detach(),
        "gradient": gradient(energy, *given),
        "proposal": proposer(*given).detach(),
    }


def authors_numbers(variant: str, weights: str) -> dict[str, Tensor]:
    """Energies, gradients, proposals and a trajectory of their sampler."""
    with theirs(variant, weights) as authors:
        return network_numbers(*authors.networks(), variant) | authors.sample()


def our_numbers(path: Path, variant: str, weights: str) -> dict[str, Tensor]:
    """The same from our networks, as read from a file in the authors' format."""
    with float64():
        model = released.model(path, weights)
    result = network_numbers(model.sampler.energy_net, model.sampler.initializer, variant)

    def observe(stage: str, level: int, images: Tensor) -> None:
        if stage in ("refined", "sample"):
            result["sample" if stage == "sample" else f"x{level}"] = images

    model.sampler(torch.arange(N), SEED, condition(variant), observe)
    return result


def condition(variant: str) -> Condition | None:
    return conditions.guided(LABELS, GUIDANCE) if SIZES[variant]["classes"] else None


def probes(values: Tensor) -> list[float]:
    """An image tensor in a few numbers: its root mean square, and values at even distances."""
    flat = values.flatten()
    return [float(f"{value:.12g}") for value in (flat.square().mean().sqrt(), *flat[:: max(1, len(flat) // 24)])]


def assert_close(mine: Mapping[str, Any], theirs: Mapping[str, Any], limit: float) -> None:
    """All quantities to a share of their largest value; the clamped sample to that of x_0, which it was made from."""
    assert mine.keys() == theirs.keys()
    for name in theirs:
        actual, expected, scale = map(torch.as_tensor, (mine[name], theirs[name], theirs[name.replace("sample", "x0")]))
        error = float((actual - expected).abs().max() / scale.abs().max())
        print(f"{name} {error:.0e}", end=" ")
        assert error < limit, f"{name} differs by {error:.1e}"


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
def test_equals_the_authors_networks(variant: str, weights: str, tmp_path: Path) -> None:
    with theirs(variant) as authors:
        layouts = {name: layout_of(network) for name, network in zip(("pi", "p"), authors.networks(), strict=True)}
    expected = authors_numbers(variant, weights)
    mine = our_numbers(released_file(tmp_path / "best.pth.tar", layouts), variant, weights)
    assert_close(mine, expected, EXACT)
    assert expected["gradient"].square().mean().sqrt() > 1e-3, "a gradient that is next to nothing compares nothing"
    assert (expected["sample"].abs() < 1.0).any(), "a sample that is clamped everywhere compares nothing"

    if weights == "ema":
        record = {"layout": layouts, "numbers": {name: probes(values) for name, values in expected.items()}}
        if WRITE:
            stored = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
            GOLDEN.write_text(json.dumps(stored | {variant: record}) + "\n")
        assert_close(json.loads(GOLDEN.read_text())[variant]["numbers"], record["numbers"], STORED)


@pytest.mark.parametrize("variant", SIZES)
def test_gives_the_numbers_of_the_authors_networks(
    variant: str, files: dict[str, Path], golden: dict[str, Any]
) -> None:
    mine = our_numbers(files[variant], variant, "ema")
    assert_close({name: probes(values) for name, values in mine.items()}, golden[variant]["numbers"], STORED)


@pytest.mark.parametrize("variant", SIZES)
def test_sizes_are_told_from_the_file(variant: str, files: dict[str, Path]) -> None:
    energy_net, initializer = released.load(files[variant])
    sizes = SIZES[variant]
    assert cdrl.model.energy_sizes(energy_net) == {
        **{"image_size": sizes["image_size"], "channels": 3, "width": sizes["width"], "multipliers": [1, 2, 2, 2]},
        **{"blocks": sizes["blocks"], "classes": sizes["classes"], "kernel": 3, "frequencies": 0},
        **{"levels": [], "closed": False, "time_activation": True, "readout_bias": False, "frequency": 3.0},
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
