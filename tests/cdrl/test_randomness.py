"""Random numbers: known answers, moments, and independence of everything they should not depend on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cdrl import randomness

INDEX = torch.arange(1000)
KEY = randomness.key(7, "test")
KNOWN: dict[str, Any] = {
    "key": -4810156646776685282,
    "normal": [[-2.095346, 1.046858, -1.445633], [-0.754195, 0.09717, 1.135796]],
    "uniform": 0.5679119825363159,
    "integers": [3, 2, 5, 0, 1, 3, 0, 4],
}


def unsigned(x: int) -> int:
    return x % 2**64


def splitmix64(state: int, n: int) -> int:
    """Output n ≥ 1 of SplitMix64 from a state, in Python's integers."""
    z = unsigned(state + n * 0x9E3779B97F4A7C15)
    z = unsigned((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9)
    z = unsigned((z ^ (z >> 27)) * 0x94D049BB133111EB)
    return z ^ (z >> 31)


def test_generator_is_splitmix64() -> None:
    """The published first outputs from the state 1234567, then rows and elements as two such generators in turn."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [splitmix64(1234567, n) for n in range(1, 5)] == published
    states = torch.arange(1, 5) * randomness._GAMMA + 1234567
    assert [unsigned(x) for x in randomness._mix(states).tolist()] == published
    bits = randomness._bits(99, torch.tensor([0, 3, 2**40]), 3)
    for row, index in zip(bits.tolist(), (0, 3, 2**40), strict=True):
        assert [unsigned(x) for x in row] == [splitmix64(splitmix64(99, index), n) for n in (1, 2, 3)]


def test_numbers_never_change() -> None:
    """A change of these numbers changes every published result."""
    assert randomness.key(0, "train/pair", 3) == KNOWN["key"]
    torch.testing.assert_close(
        randomness.normal(42, torch.tensor([0, 1]), (3,)), torch.tensor(KNOWN["normal"]), rtol=1e-5, atol=1e-6
    )
    assert randomness.uniform(42, torch.tensor([5])).item() == pytest.approx(KNOWN["uniform"], rel=1e-7)
    assert randomness.integers(42, torch.arange(8), 6).tolist() == KNOWN["integers"]


def test_normal_numbers_are_box_muller_of_the_generators_bits() -> None:
    """In float64, from the same outputs in Python's integers; row 3 has an odd size."""
    index, size = 3, 5
    bits = [splitmix64(splitmix64(99, index), n) for n in range(1, (size + 1) // 2 + 1)]
    radii = [math.sqrt(-2 * math.log(((b & 0xFFFFFFFF) + 0.5) / 2**32)) for b in bits]
    angles = [2 * math.pi * (b >> 32) / 2**32 for b in bits]
    pairs = [r * f(a) for f in (math.cos, math.sin) for r, a in zip(radii, angles, strict=True)]
    (row,) = randomness.normal(99, torch.tensor([index]), (size,), torch.float64).tolist()
    assert row == pytest.approx(pairs[:size], rel=1e-12, abs=1e-12)


def test_other_types_are_the_same_draw() -> None:
    """Uniform numbers are equal; a normal one's radius and angle are rounded, and so is 1 − u where u is nearly 1."""
    for dtype in (torch.float32, torch.float64):
        assert (
            randomness.normal(KEY, INDEX, (3,), dtype).dtype == randomness.uniform(KEY, INDEX, (), dtype).dtype == dtype
        )
    assert torch.equal(
        randomness.uniform(KEY, INDEX, (9,), torch.float64), randomness.uniform(KEY, INDEX, (9,)).double()
    )
    exact, rounded = randomness.normal(KEY, INDEX, (64,), torch.float64), randomness.normal(KEY, INDEX, (64,))
    error = (rounded.double() - exact).abs()
    assert float(error.max()) < 2**-12  # the square root of u's rounding, where the radius vanishes
    assert float(error.median()) < 2**-23
    assert float((rounded.double() - rounded.double().roll(1, dims=1)).abs().median()) > 0.1


def test_a_row_depends_on_its_index_alone() -> None:
    whole = randomness.normal(KEY, INDEX, (3, 5, 5))
    picked = torch.tensor([999, 0, 500])
    assert torch.equal(randomness.normal(KEY, picked, (3, 5, 5)), whole[picked])
    assert torch.equal(randomness.uniform(KEY, picked), randomness.uniform(KEY, INDEX)[picked])
    assert torch.equal(randomness.integers(KEY, picked, 9), randomness.integers(KEY, INDEX, 9)[picked])


def test_a_key_may_be_a_tensor() -> None:
    keys = randomness.keys(7, "chain", 2, count=4)
    assert keys.tolist() == [randomness.key(7, "chain", 2, step) for step in range(4)]
    assert torch.equal(randomness.normal(keys[1], INDEX, (2,)), randomness.normal(int(keys[1]), INDEX, (2,)))


def test_keys_are_distinct() -> None:
    made = {randomness.key(s, p, i, t) for s in (-1, 0, 1) for p in ("a", "b") for i in range(50) for t in range(50)}
    assert len(made) == 3 * 2 * 50 * 50
    assert randomness.key(1, "a", 23) != randomness.key(1, "a", 2, 3)
    assert randomness.key(1, "a") != randomness.key(1, "a", 0)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_normal_moments(size: int) -> None:
    z = randomness.normal(KEY, torch.arange(400_000 // size), (size,)).double().flatten()
    error = 5 / math.sqrt(len(z))
    assert abs(float(z.mean())) < error
    assert abs(float(z.square().mean()) - 1) < error * math.sqrt(2)
    assert abs(float((z**3).mean())) < error * math.sqrt(15)
    assert abs(float((z**4).mean()) - 3) < error * math.sqrt(96)
    assert abs(float((z.abs() > 2).double().mean()) - math.erfc(math.sqrt(2))) < error * 0.21


def chi_square(counts: torch.Tensor) -> float:
    """Deviation of counts from equal ones, in standard deviations of the χ² law."""
    expected = counts.double().mean()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = counts.numel() - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def test_uniform_is_uniform_alone_and_in_pairs() -> None:
    u = randomness.uniform(KEY, torch.arange(100_000), (2,))
    assert float(u.min()) >= 0.0
    assert float(u.max()) < 1.0
    assert abs(chi_square(torch.bincount((u.flatten() * 256).long(), minlength=256))) < 4
    cells = (u * 16).long()
    assert abs(chi_square(torch.bincount(cells[:, 0] * 16 + cells[:, 1], minlength=256))) < 4


@pytest.mark.parametrize("high", [1, 6, 1000])
def test_integers_are_uniform(high: int) -> None:
    values = randomness.integers(KEY, torch.arange(100_000), high)
    counts = torch.bincount(values, minlength=high)
    assert len(counts) == high
    assert high == 1 or abs(chi_square(counts)) < 4


def test_neighbouring_keys_and_indices_are_independent() -> None:
    """Streams whose keys or indices differ by one, and pixels next to each other, do not correlate."""
    n, size = 2000, 64
    index = torch.arange(n)
    base = randomness.normal(1000, index, (size,))
    others = {
        "next key": randomness.normal(1001, index, (size,)),
        "next index": randomness.normal(1000, index + 1, (size,)),
        "distant index": randomness.normal(1000, index + 2**32, (size,)),
        "next pixel": base.roll(1, dims=1),
        "sine and cosine": base.roll(size // 2, dims=1),
    }
    for name, other in others.items():
        for transform in (torch.Tensor.double, torch.square):
            correlation = torch.corrcoef(torch.stack((transform(base).flatten(), transform(other).flatten())))[0, 1]
            assert abs(float(correlation)) < 5 / math.sqrt(n * size), name


def test_permutations() -> None:
    order = randomness.permutation(KEY, 100)
    assert torch.equal(order.sort().values, torch.arange(100))
    assert torch.equal(order, randomness.permutation(KEY, 100))
    assert not torch.equal(order, randomness.permutation(KEY + 1, 100))


def test_global_generator_is_seeded_inside_and_restored_after() -> None:
    before = torch.random.get_rng_state()
    with randomness.global_generator(KEY, torch.device("cpu")):
        first = torch.rand(3)
    assert torch.equal(torch.random.get_rng_state(), before)
    with randomness.global_generator(KEY, torch.device("cpu")):
        assert torch.equal(torch.rand(3), first)
