"""What rounding to fewer bits changes, and what it must not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cdrl import fast, langevin, precision, randomness
from cdrl.conditions import guided
from cdrl.cooperative import Cooperative
from cdrl.errors import UserError
from cdrl.langevin import Chain
from cdrl.method import Batch
from cdrl.networks import EnergyNet
from cdrl.networks.energy import constant
from tests import sensitivity

CPU = torch.device("cpu")


def a_chain(net: EnergyNet, steps: int = 3, batch: int = 4) -> Chain:
    index = torch.arange(batch)
    start = randomness.normal(1, index, (net.channels, net.image_size, net.image_size))
    zero = torch.zeros(batch, 1, 1, 1)
    return Chain(
        energy=net.frozen(constant(net.weights()), torch.linspace(-4.0, 4.0, batch)),
        start=start,
        anchor=start,
        constants=langevin.Coefficients(torch.tensor(0.5), zero + 1e-3, zero + 0.1),
        streams=randomness.keys(0, "chain", count=steps),
        image_index=index,
    )


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def test_fp32_and_tf32_leave_chains_as_they_are() -> None:
    assert precision.chains(langevin.refine, "fp32") is langevin.refine
    assert precision.chains(langevin.refine, "tf32") is langevin.refine
    assert fast.engine("eager", CPU, "tf32") == fast.EAGER


def test_a_convolution_in_bfloat16_is_the_rounded_product_of_rounded_factors() -> None:
    net = EnergyNet(image_size=8, channels=1, width=8, multipliers=(1,), blocks=1)
    energy = a_chain(net).energy
    low, y = energy.bfloat16(), torch.randn(4, 1, 8, 8)
    assert {x.dtype for x in (low.weights.stem, low.context.biases[0])} == {torch.bfloat16}
    assert low.context.readout.dtype == low(y).dtype == torch.float32

    weights, context = energy.weights, energy.context
    (block,) = weights.blocks
    assert isinstance(block.first, Tensor)
    assert isinstance(block.second, Tensor)

    def convolved(h: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        bias = None if bias is None else rounded(bias)
        return rounded(torch.nn.functional.conv2d(h, rounded(kernel), bias, padding=1))

    def leaky(h: Tensor) -> Tensor:
        return rounded(torch.nn.functional.leaky_relu(h, 0.2))

    h = convolved(rounded(y), weights.stem, weights.stem_bias)
    inner = rounded(convolved(leaky(h), block.first) + rounded(context.biases[0]))
    h = rounded(convolved(leaky(inner), block.second, block.second_bias) + h)
    expected = (h.relu().sum(dim=(2, 3)) * context.readout).sum(dim=1)
    # Sums in another order fall on the other side of a rounding to bfloat16 in a few of the thousands of activations.
    # One kind of rounding left out would be a fair share of what all of them together change.
    assert sensitivity.distance(low(y), expected) < 0.05 * sensitivity.distance(energy(y), expected)


def test_a_chain_in_bfloat16_is_near_and_its_state_is_float32() -> None:
    net = EnergyNet(image_size=8, channels=1, width=8, multipliers=(1, 2), blocks=1)
    chain = a_chain(net, batch=16)
    exact, low = langevin.refine(chain), precision.chains(langevin.refine, "bf16")(chain)
    assert low.y.dtype == low.gradient.dtype == torch.float32
    distance = (low.gradient - exact.gradient).norm() / exact.gradient.norm()
    assert 1e-3 < distance < 0.1  # eight bits of mantissa, and slopes that jump where a rounded activation changes sign
    assert torch.equal(low.y, rounded(low.y)) is False  # the update itself is not rounded


def test_float32_is_float64_to_rounding(cooperative: Callable[..., Cooperative]) -> None:
    """An iteration's energy gaps and gradients, and samples after it: no farther from float64 than roundings lead."""
    x0 = torch.rand(24, 1, 8, 8) * 2 - 1
    roundings = 300  # forwards and backwards in turn, each through some ten layers whose sums round ten times

    def results(dtype: torch.dtype, roundings: float = 0.0, seed: int = 0) -> dict[str, Tensor]:
        method = cooperative(dtype=dtype)
        for learner in method.learners.values():
            learner.network.load_state_dict(sensitivity.moved(learner.network.state_dict(), roundings, seed))
        method.train_step([Batch.whole(sensitivity.moved(x0, roundings, seed).to(dtype))], 0)
        made = {"gap": torch.tensor(method.meters.read()["energy_gap"][1:], dtype=torch.float64)}
        for name, learner in method.learners.items():
            made[f"{name} gradients"] = torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None])
        return {**made, "samples": method.sampler(live=True)(torch.arange(4), 0)}

    exact, rounded = results(torch.float64), results(torch.float32)
    moved = [results(torch.float64, roundings, seed) for seed in range(3)]
    assert rounded["samples"].dtype == torch.float32
    for name, value in exact.items():
        change = max(sensitivity.distance(other[name], value) for other in moved)
        assert 0 < sensitivity.distance(rounded[name], value) < change, name
        assert change < 1e-3 * float(value.square().mean().sqrt()), f"{name} is too sensitive to prove anything"


def test_double_networks_are_float64_from_end_to_end(cooperative: Callable[..., Cooperative]) -> None:
    """All types say so; that nothing on the way is rounded, the references do (see test_cooperative)."""
    method = cooperative(classes=2, dtype=torch.float64)
    method.train_step(
        [Batch.whole(torch.rand(4, 1, 8, 8), torch.tensor([1, 2, 1, 2]))], 0
    )  # images may be float32, as data are
    types = {name: value.dtype for name, value in method.state().items() if not name.endswith(".step")}
    assert set(types.values()) == {torch.float64}
    assert method.meters.sums.dtype == method.dtype == torch.float64
    (sample,) = method.sample(3, seed=0, condition=guided([1, 2, 1], 0.5))
    assert sample.dtype == torch.float64
    assert not torch.equal(sample, sample.float().double())


def test_without_an_energy_a_chain_is_the_same_in_both() -> None:
    """Tether and noise, the whole of the update but the gradient, are computed in float32 whatever the precision."""
    net = EnergyNet(image_size=8, channels=1, width=8, multipliers=(1,), blocks=1)
    torch.nn.init.zeros_(net.readout.weight)
    chain = a_chain(net)
    assert torch.equal(precision.chains(langevin.refine, "bf16")(chain).y, langevin.refine(chain).y)


def test_captured_chains_in_bfloat16_are_the_eager_ones() -> None:
    def record(chain: Callable[[], langevin.Refined]) -> tuple[Callable[[], None], langevin.Refined]:
        result = chain()
        return (lambda: None), result

    chain = a_chain(EnergyNet(image_size=8, channels=1, width=8, multipliers=(1, 2), blocks=1))
    captured = precision.chains(fast.Captured(langevin.refine, record), "bf16")
    assert torch.equal(captured(chain).y, precision.chains(langevin.refine, "bf16")(chain).y)


def test_training_and_sampling_go_through_it(cooperative: Callable[..., Cooperative]) -> None:
    x0 = torch.rand(4, 1, 8, 8) * 2 - 1
    parameters = {}
    for name in ("fp32", "bf16"):
        method = cooperative()
        method.engine = fast.engine("eager", CPU, name)
        method.train_step([Batch.whole(x0)], 0)
        parameters[name] = torch.cat([p.detach().flatten() for p in method.energy_net.parameters()])
        assert next(iter(method.sample(2, seed=0))).dtype == torch.float32
    distance = (parameters["bf16"] - parameters["fp32"]).norm() / parameters["fp32"].norm()
    assert 0.0 < distance < 1e-2


@pytest.mark.parametrize(("name", "allowed"), [("fp32", False), ("tf32", True), ("bf16", True)])
def test_products_use_tf32_where_it_is_allowed_and_only_there(name: str, allowed: bool) -> None:
    def flags() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = flags()
    with precision.products(name):
        assert flags() == (allowed, allowed)
        with precision.products("fp32"):
            assert flags() == (False, False)
        assert flags() == (allowed, allowed)
    assert flags() == before


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UserError, match="choose one of fp32, tf32, bf16"):
        fast.engine("eager", CPU, "fp8")
    with pytest.raises(UserError, match="choose one of fp32, tf32, bf16"), precision.products("fp8"):
        pass
