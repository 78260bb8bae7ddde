"""3×3 convolutions with four times fewer multiplications, for chains on a CPU.

An output tile of 4×4 pixels needs 36 products of transformed pixels and transformed kernel instead of 144 (Lavin and
Gray 2016, "Fast algorithms for convolutional neural networks", F(4×4, 3×3)). Transforms are matrix products too:

    windows of 6×6 pixels → Bᵀ · B → a product over the channels for each of 36 numbers → Aᵀ · A → tiles of 4×4 pixels

A chain follows the gradient with respect to its images alone, so the kernels are transformed once a chain. The result
is the convolution's to rounding: its error in float32 is at most a few times the direct form's, thanks to the choice of
points (Barabasz et al. 2020, "Error analysis and improving the accuracy of Winograd convolution"). With every point the
set holds its reciprocal: the reversed kernel of the adjoint then has the same transform but for order and scale, and
one transformed kernel serves both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.polynomial import polynomial
from torch import Tensor

_TILE, _WINDOW = 4, 6
_POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2.0**0.5, -(2.0**0.5))
"""Where polynomials are evaluated; infinity is the sixth point."""
_RECIPROCALS = (5, 3, 4, 1, 2, 0)
"""The number of each point's reciprocal."""
_LEAST_CHANNELS = 128
_LEAST_TILES = 32
"""Below either, oneDNN's direct form was measured to be faster (docs/performance.md)."""


class Kernel(NamedTuple):
    """A 3×3 kernel as it is and transformed."""

    direct: Tensor
    """``(C_out, C_in, 3, 3)``."""
    transformed: Tensor
    """``(36, C_in, C_out)``."""


def prepare(kernel: Tensor) -> Tensor | Kernel:
    """``kernel`` with its transform where that pays: float32 on a CPU, 3×3, and many channels; else as it is."""
    pays = (
        kernel.device.type == "cpu"
        and kernel.dtype == torch.float32
        and kernel.shape[2:] == (3, 3)
        and min(kernel.shape[:2]) >= _LEAST_CHANNELS
    )
    return transform(kernel) if pays else kernel


def transform(kernel: Tensor) -> Kernel:
    """Any 3×3 kernel ``(C_out, C_in, 3, 3)`` with its transform; float32 or float64, on the CPU."""
    outputs, inputs = kernel.shape[:2]
    transformed = _TRANSFORMS[kernel.dtype].kernels @ kernel.permute(2, 3, 1, 0).reshape(9, -1)
    return Kernel(kernel, transformed.view(_WINDOW**2, inputs, outputs))


def applies(h: Tensor) -> bool:
    """Whether images ``(B, C, H, W)`` consist of whole tiles, and of enough of them."""
    batch, _, height, width = h.shape
    return height % _TILE == width % _TILE == 0 and batch * height * width >= _LEAST_TILES * _TILE**2


def convolve(h: Tensor, kernel: Kernel, bias: Tensor | None = None) -> Tensor:
    """The convolution of ``h`` ``(B, C_in, H, W)`` that keeps the size; differentiable in ``h`` alone."""
    result: Tensor = _Convolution.apply(h, kernel.transformed, bias)
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(h: Tensor, transformed: Tensor, bias: Tensor | None) -> Tensor:
        return _correlate(h, transformed, bias, _TRANSFORMS[h.dtype].forward)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        context.save_for_backward(inputs[1])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (transformed,) = context.saved_tensors
        way = _TRANSFORMS[gradient.dtype].adjoint
        return _correlate(gradient, transformed.transpose(1, 2), None, way), None, None


class _Way(NamedTuple):
    """The linear maps of one direction."""

    into: Tensor
    """Bᵀ ⊗ Bᵀ, ``(36, 36)``: pixels of a window to numbers."""
    back: Tensor
    """Aᵀ ⊗ Aᵀ, ``(16, 36)``: products to pixels of a tile."""


class _Transforms(NamedTuple):
    kernels: Tensor
    """G ⊗ G, ``(36, 9)``."""
    forward: _Way
    adjoint: _Way


def _correlate(h: Tensor, transformed: Tensor, bias: Tensor | None, way: _Way) -> Tensor:
    """The convolution a few images at a time, so that what lies between the products stays in the cache."""
    (batch, _, height, width), (_, inputs, outputs) = h.shape, transformed.shape
    padded = F.pad(h.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    result = h.new_empty(batch, height, width, outputs)
    # Kernels are read once for each part, and parts grow with their tiles: both in balance were measured to be fastest.
    images = max(1, inputs // 2 * _TILE**2 // (height * width))
    if torch.compiler.is_compiling():  # every part would be compiled by itself
        images = batch
    for part, destination in zip(padded.split(images), result.split(images), strict=True):
        _correlate_part(part, destination, transformed, bias, way)
    return result.permute(0, 3, 1, 2)


def _correlate_part(padded: Tensor, result: Tensor, transformed: Tensor, bias: Tensor | None, way: _Way) -> None:
    """Overlapping windows of ``padded``, transformed, multiplied and put together again; channels innermost."""
    (batch, height, width, outputs), inputs = result.shape, padded.shape[3]
    image, row, column, channel = padded.stride()
    rows, columns = height // _TILE, width // _TILE
    windows = padded.as_strided(
        (_WINDOW, _WINDOW, batch, rows, columns, inputs),
        (row, column, image, _TILE * row, _TILE * column, channel),
    )
    numbers = (way.into @ windows.reshape(_WINDOW**2, -1)).view(_WINDOW**2, -1, inputs)
    pixels = way.back @ torch.bmm(numbers, transformed).view(_WINDOW**2, -1)
    if bias is not None:
        pixels = pixels.view(-1, outputs).add_(bias)
    tiles = pixels.view(_TILE, _TILE, batch, rows, columns, outputs).permute(2, 3, 0, 4, 1, 5)
    result.view(batch, rows, _TILE, columns, _TILE, outputs).copy_(tiles)


def _transforms(dtype: torch.dtype) -> _Transforms:
    """The maps in two dimensions from those in one (Toom–Cook), rounded from float64."""
    points = np.array(_POINTS)
    into, kernels, back = np.zeros((6, 6)), np.zeros((6, 3)), np.zeros((4, 6))
    for number, point in enumerate(points):
        others = np.delete(points, number)
        into[number, :5] = polynomial.polyfromroots(others)
        kernels[number] = point ** np.arange(3) / np.prod(point - others)
        back[:, number] = point ** np.arange(4)
    into[5], kernels[5, 2], back[3, 5] = polynomial.polyfromroots(points), 1.0, 1.0

    partners = list(_RECIPROCALS)
    mirrored = kernels[partners, ::-1]  # the reversed kernel's: as the kernel's at the reciprocals, times scale
    scale = (mirrored * kernels).sum(axis=1) / (kernels * kernels).sum(axis=1)

    def plane(line: np.ndarray) -> Tensor:
        return torch.from_numpy(np.kron(line, line)).to(dtype)

    return _Transforms(
        plane(kernels),
        forward=_Way(plane(into), plane(back)),
        adjoint=_Way(plane(into[partners]), plane(back[:, partners] * scale)),
    )


_TRANSFORMS = {dtype: _transforms(dtype) for dtype in (torch.float32, torch.float64)}
