"""The two networks: sizes of the published ones, spectral normalisation, labels, and sizes that cannot be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from baselines.drl import released_network
from cdrl.errors import UserError
from cdrl.model import energy_sizes
from cdrl.networks import EnergyNet, Initializer
from cdrl.networks.embedding import logsnr_embedding, number_embedding
from cdrl.networks.energy import ResidualBlock, energies, input_gradient
from cdrl.networks.initializer import Dropout
from cdrl.networks.spectral import SpectralNorm, iterate_all, spectral_layers
from cdrl.noise import linear_beta
from cdrl.randomness import Draws
from tests import reference
from tests.reference import EXACT

SMALL: dict[str, Any] = {"image_size": 8, "channels": 2, "width": 12, "multipliers": (1, 2), "blocks": 2}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.fixture
def _counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting needs shapes only: no memory, and no power iterations at the start."""
    monkeypatch.setattr(SpectralNorm, "iterate", lambda self: None)


@pytest.mark.usefixtures("_counting")
@pytest.mark.parametrize(
    ("kind", "arguments", "count"),
    [
        (EnergyNet, {}, 34_833_152),
        (EnergyNet, {"classes": 1000}, 35_346_176),
        (Initializer, {}, 3_769_795),
        (Initializer, {"blocks": 2, "classes": 1000}, 3_181_443),
    ],
)
def test_published_sizes(kind: type[nn.Module], arguments: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        assert parameters(kind(**arguments)) == count


@pytest.mark.parametrize(
    "shape", [(8, 1, (1, 2)), (28, 1, (1, 2, 2)), (32, 3, (1, 1)), (64, 3, (1, 1, 1, 1)), (1, 2, (1,))]
)
@pytest.mark.parametrize("classes", [0, 5])
def test_any_image_size(shape: tuple[int, int, tuple[int, ...]], classes: int) -> None:
    size, channels, multipliers = shape
    sizes: dict[str, Any] = {"image_size": size, "channels": channels, "multipliers": multipliers, "classes": classes}
    x, logsnr, label = torch.randn(2, channels, size, size), torch.zeros(2), torch.tensor([0, classes])
    kernel = 1 if size == 1 else 3
    assert EnergyNet(**sizes, width=4, blocks=1, kernel=kernel)(x, logsnr, label).shape == (2,)
    assert Initializer(**sizes, width=4, blocks=1, kernel=kernel)(x, logsnr, label).shape == x.shape


@pytest.mark.parametrize("classes", [0, 3])
def test_energy_is_the_plain_network(classes: int) -> None:
    net = EnergyNet(**SMALL, classes=classes).double()
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    y, logsnr = torch.randn(7, 2, 8, 8).double(), torch.linspace(-5, 9, 7).double()
    label = torch.arange(7) % 4 if classes else None
    expected = reference.energy(net, y, logsnr, label)
    torch.testing.assert_close(net(y, logsnr, label), expected, rtol=EXACT, atol=EXACT)
    frozen = net.frozen(net.weights(), logsnr, label)
    torch.testing.assert_close(frozen(y), expected, rtol=EXACT, atol=EXACT)
    gradient = input_gradient(lambda y: reference.energy(net, y, logsnr, label), y)
    torch.testing.assert_close(frozen.gradient(y), gradient, rtol=EXACT, atol=EXACT)


def test_frozen_energy_does_not_touch_parameters() -> None:
    net = EnergyNet(**SMALL)
    frozen = net.frozen(net.weights(), torch.zeros(3))
    frozen.gradient(torch.randn(3, 2, 8, 8))
    assert all(p.grad is None for p in net.parameters())
    before = frozen(torch.ones(3, 2, 8, 8))
    for p in net.parameters():
        p.data.mul_(1.5).add_(0.1)
    assert not torch.allclose(net(torch.ones(3, 2, 8, 8), torch.zeros(3)), before)


def test_energies_of_a_batch_are_independent() -> None:
    net = EnergyNet(**SMALL).double()
    y, logsnr = torch.randn(4, 2, 8, 8).double(), torch.linspace(-2, 2, 4).double()
    whole = net(y, logsnr)
    alone = torch.cat([net(y[i : i + 1], logsnr[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, whole, rtol=EXACT, atol=EXACT)
    assert len(net(y[:1].expand(4, -1, -1, -1), logsnr).unique()) == 4


@pytest.mark.parametrize("kind", [EnergyNet, Initializer])
def test_labels(kind: type[nn.Module]) -> None:
    """No label is label 0; an unconditional network ignores labels; a conditional one tells them apart."""
    x, logsnr = torch.randn(1, 2, 8, 8).repeat(3, 1, 1, 1).double(), torch.zeros(3).double()
    for classes in (0, 2):
        net = kind(**SMALL, classes=classes).double().eval()
        for p in net.parameters():
            p.data.add_(0.1 * torch.randn_like(p))
        labelled = net(x, logsnr, torch.tensor([0, 1, 2]))
        torch.testing.assert_close(net(x, logsnr)[0], labelled[0], rtol=EXACT, atol=EXACT)
        assert torch.allclose(labelled[1], labelled[2], rtol=0, atol=EXACT) == (classes == 0)


def test_initializer_starts_as_the_identity_up_to_a_colour() -> None:
    """The last kernel starts at zero, its bias does not (as released)."""
    x = torch.randn(2, 2, 8, 8)
    net = Initializer(**SMALL)
    assert torch.equal(net(x, torch.zeros(2)), x + net.conv_out.bias[:, None, None])


def test_initializer_attention_mixes_distant_pixels() -> None:
    net = Initializer(**{**SMALL, "multipliers": (1,), "blocks": 1}, attention_sizes=(8,), kernel=1).eval()
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    gradient = input_gradient(lambda x: net(x, torch.zeros(1))[..., 0, 0].sum(dim=1), torch.randn(1, 2, 8, 8))
    assert bool((gradient != 0).all())


def test_embedding_reads_an_angle_of_the_log_snr() -> None:
    logsnr = torch.tensor([-30.0, -20.0, 0.0, 9.8, 20.0, 50.0], dtype=torch.float64)
    features = logsnr_embedding(logsnr, 8)
    assert features.shape == (6, 8)
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[4], features[5])
    time = 1000 * math.atan(math.exp(-4.9)) / (math.pi / 2)
    frequencies = [10_000 ** (-k / 3) for k in range(4)]
    expected = [math.sin(time * w) for w in frequencies] + [math.cos(time * w) for w in frequencies]
    torch.testing.assert_close(features[3], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=EXACT)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 5, 3), nn.Linear(7, 4), nn.Linear(1, 6)])
def test_spectral_norm_is_the_largest_singular_value(layer: nn.Conv2d | nn.Linear) -> None:
    layer = layer.double()
    normalised = SpectralNorm(layer).double()
    for _ in range(200):
        normalised.iterate()
    weight = normalised.normalized()
    exact = layer.weight / torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)
    torch.testing.assert_close(weight, exact, rtol=0, atol=EXACT)


def test_spectral_vectors_move_only_when_told() -> None:
    net = EnergyNet(**SMALL)
    before = [layer.u.clone() for layer in spectral_layers(net)]
    net.train()
    loss = net(torch.randn(2, 2, 8, 8), torch.zeros(2)).sum()
    assert all(torch.equal(u, layer.u) for u, layer in zip(before, spectral_layers(net), strict=True))
    iterate_all(net)
    assert not all(torch.equal(u, layer.u) for u, layer in zip(before, spectral_layers(net), strict=True))
    loss.backward()  # vectors that moved since must not disturb the backward pass


def test_every_kernel_but_the_readout_is_normalised() -> None:
    net = EnergyNet(**SMALL, classes=2)
    plain = {name for name, p in net.named_parameters() if p.ndim > 1} - {
        f"{name}.weight" for name, module in net.named_modules() if isinstance(module, SpectralNorm)
    }
    assert plain == {"readout.weight"}
    assert net.readout.bias is None


def test_gradient_through_the_frozen_parts_reaches_every_parameter() -> None:
    net = EnergyNet(**SMALL, classes=2)
    weights = net.weights()
    context = net.context(weights, torch.zeros(3), torch.tensor([0, 1, 2]))
    energies(torch.randn(3, 2, 8, 8), weights, context).sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in net.parameters())


@pytest.mark.parametrize("kind", [EnergyNet, Initializer])
@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 0},
        {"image_size": 9},
        {"channels": -1},
        {"width": 7},
        {"width": 2},
        {"multipliers": ()},
        {"multipliers": (1, 0)},
        {"blocks": 0},
        {"classes": -1},
        {"kernel": 2},
        {"image_size": 10**9},
        {"width": 8.0},
        {"width": 20_000},
        {"multipliers": (1, 10**40)},
        {"blocks": 10**7},
        {"classes": 10**9},
        {"channels": 10**9},
        {"kernel": 4095},
    ],
)
def test_impossible_sizes_are_refused(kind: type[nn.Module], wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))}|of these sizes has about"):
        kind(**{**SMALL, **wrong})


@pytest.mark.parametrize("wrong", [{"frequencies": -1}, {"frequencies": 10**12}, {"frequency": math.inf}])
def test_impossible_features_of_the_input_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        EnergyNet(**SMALL, **wrong)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, math.nan])
def test_a_rate_that_is_none_is_refused(dropout: float) -> None:
    with pytest.raises(UserError, match="dropout must be"):
        Initializer(**SMALL, dropout=dropout)


def test_points_go_through_matrix_products_with_the_numbers_of_convolutions() -> None:
    network = EnergyNet(1, 2, 12, (1,), 2, kernel=1).double()
    y, logsnr = torch.randn(5, 2, 1, 1).double(), torch.randn(5).double()
    torch.testing.assert_close(network(y, logsnr), reference.energy(network, y, logsnr), rtol=EXACT, atol=EXACT)


def test_fourier_features_are_further_channels_of_the_input() -> None:
    network = EnergyNet(1, 2, 12, (1,), 1, kernel=1, frequencies=3, frequency=5.0).double()
    plain = EnergyNet(1, 2 + 6, 12, (1,), 1, kernel=1).double()
    state, logsnr = network.state_dict(), torch.zeros(5).double()
    angles = torch.einsum("bchw,fc->bfhw", y := torch.randn(5, 2, 1, 1).double(), state.pop("frequencies"))
    plain.load_state_dict(state)
    seen = torch.cat((y, angles.sin() / 5, angles.cos() / 5), dim=1)
    torch.testing.assert_close(network(y, logsnr), plain(seen, logsnr), rtol=EXACT, atol=EXACT)
    rebuilt = EnergyNet(**energy_sizes(network)).double()
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt(y, logsnr), network(y, logsnr))


def test_dropout_is_a_function_of_the_image() -> None:
    """Its rate and scale are dropout's; an image's mask is the same in any shard, and no two blocks share one."""
    h = torch.ones(64, 4, 8, 8)
    whole = Dropout(0.25, torch.tensor([11, 12]), torch.arange(64))
    masked = whole.mask(h, 0)
    assert masked.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float((masked == 0).float().mean()) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / h.numel()) ** 0.5)
    assert torch.equal(whole._replace(image_index=torch.arange(16, 24)).mask(h[16:24], 0), masked[16:24])
    assert not torch.equal(whole.mask(h, 1), masked)
    assert not torch.equal(masked[0], masked[1])


def test_a_unet_drops_only_where_it_is_told() -> None:
    net = Initializer(8, 1, 8, (1,), 1, dropout=0.5, attention_sizes=())
    for parameter in net.parameters():
        parameter.data.normal_(std=0.3)
    x, logsnr = torch.randn(4, 1, 8, 8), torch.zeros(4)
    dropped = net.dropout_masks(Draws(0, "train", (3,), torch.arange(4)))
    assert torch.equal(net.train()(x, logsnr), net.eval()(x, logsnr))
    assert not torch.equal(net(x, logsnr, None, dropped), net(x, logsnr))
    assert torch.equal(net(x, logsnr, None, dropped), net(x, logsnr, None, dropped))


RELEASED: dict[str, Any] = {**released_network(), "glorot": False}


def test_drls_network_is_the_plain_one_with_its_settings() -> None:
    net = EnergyNet(**SMALL, **RELEASED).double()
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    y, logsnr = torch.randn(6, 2, 8, 8).double(), linear_beta().logsnr[:-1].double()
    torch.testing.assert_close(net(y, logsnr), reference.energy(net, y, logsnr), rtol=EXACT, atol=EXACT)


def test_a_levels_number_is_found_in_any_type() -> None:
    """Also where a thousand levels lie close, and whatever type their log-SNRs went through."""
    for schedule in (linear_beta(1), linear_beta(), linear_beta(1000)):
        numbers = torch.arange(schedule.levels, dtype=torch.float64)
        exact = schedule.to("cpu", torch.float64).logsnr[:-1]
        features = number_embedding(exact, schedule.logsnr[:-1].double(), 8)
        frequencies = torch.tensor([10_000 ** (-k / 3) for k in range(4)], dtype=torch.float64)
        expected = torch.cat(((numbers[:, None] * frequencies).sin(), (numbers[:, None] * frequencies).cos()), 1)
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("levels", [(1.0, 2.0), (1.0, 1.0), (float("nan"), 0.0), (float("inf"),)])
def test_levels_fall(levels: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="levels must be log-SNRs that fall"):
        EnergyNet(**SMALL, levels=levels)


def test_closed_blocks_start_as_their_shortcuts() -> None:
    net, h = EnergyNet(**SMALL, closed=True), torch.randn(3, 12, 8, 8)
    weights = net.weights()
    bias = net.context(weights, torch.zeros(1)).biases[0]
    torch.testing.assert_close(ResidualBlock.evaluate(h, weights.blocks[0], bias), h, rtol=0, atol=1e-3)
    assert not torch.allclose(ResidualBlock.evaluate(h, EnergyNet(**SMALL).weights().blocks[0], bias), h, atol=0.1)
    net.blocks[0].second.weight.grad = None
    energies(torch.randn(3, 2, 8, 8), weights, net.context(weights, torch.zeros(1))).sum().backward()
    assert float(net.blocks[0].second.weight.grad.abs().max()) > 0  # closed, but not for ever


@pytest.mark.parametrize("scale", [1e-5, 0.5, 2.0, 30.0])
def test_a_bounded_weight_is_divided_only_where_it_is_too_large(scale: float) -> None:
    layer = nn.Linear(7, 4).double()
    layer.weight.data *= scale / torch.linalg.matrix_norm(layer.weight.data, ord=2)
    bounded = SpectralNorm(layer, bounded=True).double()
    for _ in range(200):
        bounded.iterate()
    torch.testing.assert_close(bounded.normalized(), layer.weight / max(scale, 1.0), rtol=2e-6, atol=0)
    (gradient,) = torch.autograd.grad(bounded.normalized().sum(), bounded.weight)
    assert torch.equal(gradient, torch.ones_like(gradient)) == (scale < 1)


def test_glorot_starts_have_the_range_of_their_fans_and_no_bias() -> None:
    net = EnergyNet(**SMALL, readout_bias=True, glorot=True)
    for layer in (net.stem, net.embed_in, net.blocks[2].second, net.readout):
        fans = sum(layer.weight.shape[:2]) * layer.weight[0, 0].numel()
        assert float(layer.weight.detach().abs().max()) == pytest.approx(math.sqrt(6 / fans), rel=0.1)
        assert not layer.bias.any()
    for layer in spectral_layers(net):
        assert float(torch.linalg.matrix_norm(layer.normalized().flatten(1), ord=2)) == pytest.approx(1.0, rel=0.1)
