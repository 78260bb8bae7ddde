"""DRL's energy network and noise levels against numbers that the authors' TensorFlow code gave (drl_golden.py).

With ``CDRL_DRL_REPO`` naming a checkout of it, and ``CDRL_DRL_PYTHON`` an interpreter that has TensorFlow, the authors'
code is run anew and must give the stored numbers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines import drl
from cdrl.networks import EnergyNet
from cdrl.networks.energy import input_gradient
from cdrl.networks.spectral import iterate_all
from cdrl.noise import linear_beta
from tests.baselines import drl_golden

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("drl_golden.json").read_text())
LIMIT = 4e-7
"""What the authors' float32 may make of a number, in units of the largest; ours are computed in float64."""


def filled_network() -> EnergyNet:
    """The released network in float64, filled by the formula."""
    net = EnergyNet(**drl_golden.SIZES, **drl.released_network(drl_golden.LEVELS)).double()
    state = net.state_dict()
    for name, array in drl_golden.filled().items():
        values = torch.tensor(array)
        if name.endswith(".weight"):  # outputs come last in TensorFlow, first in PyTorch
            values = values.movedim((-1, -2), (0, 1)) if values.ndim == 4 else values.T
        state[name] = values
    net.load_state_dict(state)
    return net


def relative(actual: Tensor, expected: list[Any]) -> float:
    """The largest difference in units of the largest number."""
    numbers = torch.tensor(expected, dtype=torch.float64)
    return float((actual - numbers).abs().max() / numbers.abs().max())


@pytest.mark.parametrize("passes", ["1", "3"])
def test_the_network_is_the_released_one(passes: str) -> None:
    """Energies and gradients at all levels; the release makes a power iteration in each pass."""
    net, logsnr = filled_network(), linear_beta(drl_golden.LEVELS).logsnr[:-1].double()
    y = torch.tensor(drl_golden.images()).movedim(-1, 1)
    iterate_all(net, int(passes))
    frozen = net.frozen(net.weights(), logsnr)
    assert relative(frozen(y), GOLDEN["passes"][passes]["energy"]) < LIMIT
    assert relative(input_gradient(frozen, y).movedim(1, -1), GOLDEN["passes"][passes]["gradient"]) < LIMIT


def test_second_convolutions_are_looked_at_below_their_bound_and_above_it() -> None:
    net = filled_network()
    iterate_all(net, 100)
    norms = [float(torch.linalg.matrix_norm(block.second.weight.detach().flatten(1), ord=2)) for block in net._blocks()]
    assert min(norms) < 0.9 < 1.1 < max(norms)


@pytest.mark.parametrize("setting", ["levels", "closed", "time_activation", "readout_bias"])
def test_every_difference_to_cdrls_network_counts(setting: str) -> None:
    """With any one of them as CDRL's the numbers are others."""
    net, logsnr = filled_network(), linear_beta(drl_golden.LEVELS).logsnr[:-1].double()
    if setting == "levels":
        net.levels = None
    elif setting == "readout_bias":
        net.readout.bias.data.zero_()
    for block in net._blocks():
        block.second.bounded = setting != "closed"
        block.time_activation = setting == "time_activation"
    iterate_all(net)
    y = torch.tensor(drl_golden.images()).movedim(-1, 1)
    assert relative(net(y, logsnr).detach(), GOLDEN["passes"]["1"]["energy"]) > 0.01


@pytest.mark.parametrize("levels", drl_golden.CUTS)
def test_the_noise_levels_are_the_released_ones(levels: int) -> None:
    """α_0 and a_1 … a_T."""
    schedule = linear_beta(levels).to("cpu", torch.float64)
    assert relative(torch.cat((schedule.alpha[:1], schedule.a[1:])), GOLDEN["scales"][str(levels)]) < 1e-12


@pytest.mark.skipif("CDRL_DRL_REPO" not in os.environ, reason="CDRL_DRL_REPO names no checkout")
def test_the_stored_numbers_are_the_authors(tmp_path: Path) -> None:
    file = tmp_path / "golden.json"
    python = os.environ.get("CDRL_DRL_PYTHON", sys.executable)
    subprocess.run([python, drl_golden.__file__, file], check=True)
    fresh = json.loads(file.read_text())
    for passes, values in GOLDEN["passes"].items():
        for name, numbers in values.items():
            again = torch.tensor(fresh["passes"][passes][name], dtype=torch.float64)
            assert relative(again, numbers) < 2 * LIMIT  # both are float32, and another processor's here
    assert fresh["scales"] == GOLDEN["scales"]
