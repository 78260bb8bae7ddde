"""Stateless random numbers: what is drawn depends on *what it is for*, never on what was drawn before.

A stream is named by a 64-bit ``key`` (seed, purpose, counters such as the iteration, the level and the Langevin
step); inside a stream, row ``i`` belongs to the global image index ``index[i]``. So a resumed run continues bit for
bit, sample 12345 is the same image in any batch, and the number of processes does not change anybody's noise.

The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) in counter
mode: output n of a stream is ``mix(key + n * GAMMA)``. It is written in ordinary integer tensor operations, hence it
gives the same bits on every device, compiles into one kernel, and can be captured in a CUDA graph. Normal draws come
from the Box-Muller transform of the two 32-bit halves of one output.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

_GAMMA = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15, the golden ratio, as a signed 64-bit number
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
_LOW_32 = 0xFFFFFFFF


def key(seed: int, purpose: str, *counters: int) -> int:
    """The 64-bit name of a stream, as a signed integer.

    ``purpose`` keeps streams with equal counters apart ("train/pair", "sample/chain", …). Any integer is a valid seed.
    """
    text = "/".join([str(int(seed)), purpose, *(str(int(counter)) for counter in counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def keys(seed: int, purpose: str, *counters: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """``count`` keys with a last counter 0 … count − 1, as an int64 tensor (for the steps of a chain)."""
    return torch.tensor([key(seed, purpose, *counters, last) for last in range(count)], dtype=torch.int64).to(
        device, non_blocking=True
    )


def normal(stream: int | Tensor, index: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers; those of another ``dtype`` are made of the same bits, and equal to rounding.

    Args:
        stream: a key, or a zero-dimensional int64 tensor holding one.
        index: global image indices, int64 ``(B,)``; row ``i`` of the result depends on ``index[i]`` and the key alone.
        shape: the shape of one row.
        dtype: float32 or float64.

    Returns:
        ``(B, *shape)`` on the device of ``index``. No value exceeds 6.8 in magnitude (32 bits of radius).
    """
    size = math.prod(shape)
    bits = _bits(stream, index, (size + 1) // 2)
    radius = torch.sqrt(-2.0 * torch.log(((bits & _LOW_32).to(dtype) + 0.5) * 2.0**-32))
    angle = (_shift(bits, 32).to(dtype) * 2.0**-32) * (2.0 * math.pi)
    pairs = torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)
    return pairs[:, :size].reshape(index.shape[0], *shape)


def uniform(
    stream: int | Tensor, index: Tensor, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform numbers in [0, 1) with 24 random bits, ``(B, *shape)``; equal in every ``dtype``; see `normal`."""
    bits = _bits(stream, index, math.prod(shape))
    return (_shift(bits, 40).to(dtype) * 2.0**-24).reshape(index.shape[0], *shape)


def integers(stream: int | Tensor, index: Tensor, high: int) -> Tensor:
    """One integer in 0 … high − 1 per row, int64 ``(B,)``. The bias is below ``high`` · 2⁻³²."""
    return _shift(_shift(_bits(stream, index, 1), 32)[:, 0] * high, 32)


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch of images, asked for by what they are for.

        draws = Draws(seed, "train", (iteration,), index, shape)
        draws.normal("pair")                                        # = normal(key(seed, "train/pair", iteration), …)

    Attributes:
        seed: any integer.
        process: what goes on: "train", "sample", …
        counters: of the process: the iteration, or the level and its repetition.
        index: global image indices, int64 ``(B,)``.
        shape: of one image.
        dtype: of what is drawn.
    """

    seed: int
    process: str
    counters: tuple[int, ...]
    index: Tensor
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32

    def normal(self, purpose: str) -> Tensor:
        """Standard normal images, ``(B, *shape)``."""
        return normal(self._key(purpose), self.index, self.shape, self.dtype)

    def uniform(self, purpose: str, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform numbers in [0, 1), ``(B, *shape)``; by default one per image."""
        return uniform(self._key(purpose), self.index, shape, self.dtype)

    def integers(self, purpose: str, high: int) -> Tensor:
        """One integer in 0 … high − 1 per image, int64 ``(B,)``."""
        return integers(self._key(purpose), self.index, high)

    def streams(self, purpose: str, count: int) -> Tensor:
        """``count`` keys, int64 on the images' device: for the steps of a chain, or the layers of a network."""
        name, device = f"{self.process}/{purpose}", self.index.device
        return keys(self.seed, name, *self.counters, count=count, device=device)

    def _key(self, purpose: str) -> int:
        return key(self.seed, f"{self.process}/{purpose}", *self.counters)


def permutation(stream: int, n: int) -> Tensor:
    """A random order of 0 … n − 1, int64 on the CPU, a function of the key alone."""
    generator = torch.Generator().manual_seed(stream)
    return torch.randperm(n, generator=generator)


def _bits(stream: int | Tensor, index: Tensor, count: int) -> Tensor:
    """``(B, count)`` outputs of 64 bits: the row's own key by one mix, its elements by a second."""
    rows = _mix(index * _GAMMA + stream)
    elements = torch.arange(1, count + 1, device=index.device) * _GAMMA
    return _mix(rows[:, None] + elements[None, :])


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)


def _shift(z: Tensor, n: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (z >> n) & ((1 << (64 - n)) - 1)


@contextmanager
def global_generator(stream: int, device: torch.device) -> Iterator[None]:
    """Seeds PyTorch's own generator inside the block and restores it after (for initial weights)."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream)
        yield
