"""The energy network ``f_θ(y; λ)``: one scalar per image, a log-density up to a scale and a constant.

A stack of residual blocks without normalisation, told the log-SNR of the level by a bias in every block and by its
read-out vector (Gao et al. 2021, appendix; Zhu et al. 2024, appendix). Evaluation is split in three, because within one
training iteration or one chain only the last part changes:

    weights()            spectrally normalised kernels      once an iteration
    context(weights, λ)  time biases and read-out vector    once a chain
    energies(y, …)       the convolutions                   every Langevin step

All three are differentiable; a chain runs on their detached values (`EnergyNet.frozen`).

DRL's released network has the same convolutions and differs in what surrounds them; each difference is an argument of
`EnergyNet`, whose defaults are CDRL's.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cdrl.errors import UserError
from cdrl.networks.embedding import logsnr_embedding, number_embedding
from cdrl.networks.spectral import SpectralNorm, spectral_layers

T = TypeVar("T")

LARGEST_IMAGE = 4096
"""Height and width in pixels."""
MOST_BLOCKS = 100
"""At one resolution; the paper has 8."""
MOST_WEIGHTS = 10**9
"""Of one network, thirty times the paper's: 4 GB, and 16 GB in training."""

_SLOPE = 0.2
_NEARLY_CLOSED = 1e-5
"""Factor on the first weights of a closed convolution: variance scaling by 1e-10, as released."""


class BlockKernels(NamedTuple):
    """What one residual block computes with; ``second`` has the learned gain folded in."""

    first: Tensor
    second: Tensor
    second_bias: Tensor
    shortcut: Tensor | None
    shortcut_bias: Tensor | None
    time: Tensor
    pool: bool


class Weights(NamedTuple):
    """The effective weights of an energy network: normalised, gains folded in."""

    stem: Tensor
    stem_bias: Tensor
    blocks: tuple[BlockKernels, ...]
    embedding: tuple[Tensor, Tensor]
    label: Tensor | None
    frequencies: Tensor | None
    """``(F, C)``: the network also sees sines and cosines of its input."""


class Context(NamedTuple):
    """What the level and the label contribute: a bias ``(B, C, 1, 1)`` per block and the read-out vector ``(B, C)``.

    A context of one row is that of every image in a batch.
    """

    biases: tuple[Tensor, ...]
    readout: Tensor

    def repeat(self, times: int) -> Context:
        """The same context for ``times`` batches laid one after the other."""
        return Context(tuple(bias.repeat(times, 1, 1, 1) for bias in self.biases), self.readout.repeat(times, 1))

    def select(self, chosen: Tensor) -> Context:
        """Rows by a matrix of zeros and ones, ``(B, rows)``: its backward pass adds up in the same order every time."""
        return Context(
            tuple((chosen @ bias.flatten(1))[:, :, None, None] for bias in self.biases), chosen @ self.readout
        )


class ResidualBlock(nn.Module):
    """leaky ReLU → 3×3 conv → + time bias → leaky ReLU → 3×3 conv × gain → + shortcut, and 2×2 pooling where asked for.

    The parameters, and below them all that is computed with them.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        kernel: int,
        pool: bool,
        closed: bool = False,
        time_activation: bool = True,
    ) -> None:
        super().__init__()
        self.first = _conv(inputs, outputs, kernel)
        self.second = _conv(outputs, outputs, kernel, bounded=closed)
        self.time = SpectralNorm(nn.Linear(embedding, outputs))
        self.gain = nn.Parameter(torch.ones(outputs))
        self.shortcut = _conv(inputs, outputs, kernel) if inputs != outputs else None
        self.pool, self.closed, self.time_activation = pool, closed, time_activation

    @torch.no_grad()
    def close(self) -> None:
        """Nothing, or nearly, comes through the residual branch: the block is its shortcut."""
        self.second.weight.mul_(_NEARLY_CLOSED)
        self.second.bias.zero_()

    def kernels(self) -> BlockKernels:
        """Once an iteration."""
        return BlockKernels(
            first=_channels_last(self.first.normalized()),
            second=_channels_last(self.second.normalized() * self.gain[:, None, None, None]),
            second_bias=self.second.bias * self.gain,
            shortcut=_channels_last(self.shortcut.normalized()) if self.shortcut is not None else None,
            shortcut_bias=self.shortcut.bias if self.shortcut is not None else None,
            time=self.time.normalized(),
            pool=self.pool,
        )

    def bias(self, kernels: BlockKernels, embedding: Tensor) -> Tensor:
        """Once a chain: the time bias, and the first convolution's, ``(B, C, 1, 1)``; ``embedding`` is ``(B, E)``."""
        time = F.linear(embedding, kernels.time, self.time.bias)
        if self.time_activation:
            time = F.leaky_relu(time, _SLOPE)
        return (time + self.first.bias)[:, :, None, None]

    @staticmethod
    def evaluate(h: Tensor, kernels: BlockKernels, bias: Tensor) -> Tensor:
        """Every Langevin step: ``(B, inputs, H, W)`` → ``(B, outputs, H, W)``, or half the height and width."""
        # Residual branch.
        inner = convolve(F.leaky_relu(h, _SLOPE), kernels.first) + bias
        inner = convolve(F.leaky_relu(inner, _SLOPE), kernels.second, kernels.second_bias)

        # Shortcut.
        h = inner + (h if kernels.shortcut is None else convolve(h, kernels.shortcut, kernels.shortcut_bias))
        return F.avg_pool2d(h, 2) if kernels.pool else h


class EnergyNet(nn.Module):
    """The energy network; see the module's docstring.

    Args:
        image_size: height and width of the images in pixels; divisible by 2 to the number of resolutions − 1.
        channels: image channels.
        width: channels of the first resolution, and half-width of the log-SNR embedding; even, at least 4.
        multipliers: channels at each resolution in units of ``width``; resolutions are joined by 2×2 average pooling.
        blocks: residual blocks at each resolution.
        classes: number of classes C, or 0 for an unconditional network. Label 0 is the null label, classes are 1 … C.
        kernel: height and width of the convolutions, odd; 1 for points, which are images of one pixel.
        frequencies: number of random Fourier features of the input (Tancik et al. 2020) that stand beside it; 0 is the
            published network. Without them a network of the plane learns smooth densities alone.
        levels: log-SNRs of the levels 0 … T − 1, falling: the network is told a level's number (DRL). Without them it
            is told the log-SNR.
        closed: second convolutions start at almost nothing and have a spectral norm of at most 1 (DRL), so that the
            network starts as its shortcuts; or they start as all others do, with a spectral norm of 1.
        time_activation: time biases pass a leaky ReLU; without (DRL) they are linear.
        readout_bias: the read-out vector has a bias (DRL).
        glorot: start from Glorot's uniform weights and zero biases, TensorFlow's custom (DRL), not from PyTorch's.
        frequency: standard deviation of the Fourier features' frequencies, in radians per unit of the input.

    Raises:
        UserError: the sizes do not fit together or are those of no network that can be trained, or ``levels`` do not
            fall.
    """

    frequencies: Tensor | None
    levels: Tensor | None

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        width: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 8,
        classes: int = 0,
        kernel: int = 3,
        frequencies: int = 0,
        levels: tuple[float, ...] = (),
        closed: bool = False,
        time_activation: bool = True,
        readout_bias: bool = False,
        glorot: bool = False,
        frequency: float = 3.0,
    ) -> None:
        super().__init__()
        check_sizes(image_size, channels, width, multipliers, blocks, classes, kernel, frequencies)
        if not 0 < frequency <= 1e6:
            raise UserError(f"frequency must be positive and at most 1,000,000, not {frequency}")
        falling = all(after < before for before, after in itertools.pairwise(levels))
        if not falling or not all(math.isfinite(level) for level in levels):
            raise UserError("levels must be log-SNRs that fall from level to level")
        self.image_size, self.channels, self.width, self.classes = image_size, channels, width, classes
        self.frequency = frequency
        embedding = 4 * width
        self.embed_in = SpectralNorm(nn.Linear(width, embedding))
        self.embed_out = SpectralNorm(nn.Linear(embedding, embedding))
        self.embed_label = SpectralNorm(nn.Linear(classes + 1, embedding)) if classes else None
        random = frequency * torch.randn(frequencies, channels) if frequencies else None
        self.register_buffer("frequencies", random)
        self.register_buffer("levels", torch.tensor(levels) if levels else None, persistent=False)
        self.stem = _conv(channels + 2 * frequencies, width, kernel)
        outputs = [width * multiplier for multiplier in multipliers for _ in range(blocks)]
        self.blocks = nn.ModuleList(
            ResidualBlock(
                before,
                after,
                embedding,
                kernel,
                pool=(number % blocks == 0 and number < len(outputs)),
                closed=closed,
                time_activation=time_activation,
            )
            for number, (before, after) in enumerate(itertools.pairwise([width, *outputs]), start=1)
        )
        self.readout = nn.Linear(embedding, outputs[-1], bias=readout_bias)
        if glorot:
            for layer in spectral_layers(self):
                _start_as_glorot(layer)
                layer.settle()
            _start_as_glorot(self.readout)
        if closed:
            for block in self._blocks():
                block.close()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return (self.channels, self.image_size, self.image_size)

    def check_images(self, images: Tensor) -> None:
        """Raises `UserError` unless ``images`` are ``(B, *shape)``."""
        if images.shape[1:] != self.shape:
            raise UserError(f"images must be (B, {', '.join(map(str, self.shape))}), not {tuple(images.shape)}")

    @property
    def domain(self) -> tuple[int, int]:
        """(channels, classes): what another network of the same method must share."""
        return (self.channels, self.classes)

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        """``f(y; λ)``, ``(B,)``.

        Args:
            y: scaled images ``a_t x_{t−1}``, ``(B, C, H, W)``.
            logsnr: λ_{t−1}, the log-SNR of the *lower* level, ``(B,)``.
            label: int64 ``(B,)`` in 0 … C, or None for the null label; ignored by an unconditional network.
        """
        weights = self.weights()
        return energies(y, weights, self.context(weights, logsnr, label))

    def weights(self) -> Weights:
        """The effective weights at the present ``u`` and ``v`` (no power iteration), differentiable."""
        return Weights(
            stem=_channels_last(self._stem()),
            stem_bias=self.stem.bias,
            blocks=tuple(block.kernels() for block in self._blocks()),
            embedding=(self.embed_in.normalized(), self.embed_out.normalized()),
            label=self.embed_label.normalized() if self.embed_label is not None else None,
            frequencies=self.frequencies,
        )

    def context(self, weights: Weights, logsnr: Tensor, label: Tensor | None = None) -> Context:
        """What the level (``logsnr`` ``(B,)``) and the label (``(B,)`` or None) contribute; see `forward`."""
        into, out = weights.embedding
        h = F.leaky_relu(F.linear(self._level_embedding(logsnr), into, self.embed_in.bias), _SLOPE)
        h = F.linear(h, out, self.embed_out.bias)
        if self.embed_label is not None and weights.label is not None:
            label = torch.zeros_like(logsnr, dtype=torch.long) if label is None else label
            h = h + F.embedding(label, weights.label.T) + self.embed_label.bias
        h = F.leaky_relu(h, _SLOPE)
        biases = tuple(block.bias(kernels, h) for block, kernels in zip(self._blocks(), weights.blocks, strict=True))
        return Context(biases, self.readout(h))

    @torch.no_grad()
    def frozen(
        self, weights: Weights, logsnr: Tensor, label: Tensor | None = None, mix: Tensor | None = None
    ) -> FrozenEnergy:
        """The network as a chain sees it; with ``mix`` ``(J,)``, ``logsnr`` and ``label`` are ``(J · B,)``."""
        return freeze(weights, self.context(weights, logsnr, label), mix)

    def _level_embedding(self, logsnr: Tensor) -> Tensor:
        if self.levels is None:
            return logsnr_embedding(logsnr, self.width)
        return number_embedding(logsnr, self.levels, self.width)

    def _stem(self) -> Tensor:
        """The first kernel; sinusoids count over their frequency: their slopes are of the order of y's own."""
        kernel = self.stem.normalized()
        if self.frequencies is None:
            return kernel
        return torch.cat((kernel[:, : self.channels], kernel[:, self.channels :] / self.frequency), dim=1)

    def _blocks(self) -> list[ResidualBlock]:
        return [block for block in self.blocks if isinstance(block, ResidualBlock)]


class FrozenEnergy(NamedTuple):
    """An energy network at fixed weights, levels and labels: a function of ``y`` alone.

    ``mix`` ``(J,)`` combines J concepts: the context then holds J·B rows, and f is ``Σ_j mix_j f(y, label_j)``.
    """

    weights: Weights
    context: Context
    mix: Tensor | None = None

    def __call__(self, y: Tensor) -> Tensor:
        """``f(y)``, ``(B,)``."""
        if self.mix is None:
            return energies(y, self.weights, self.context)
        concepts = len(self.mix)
        values = energies(y.repeat(concepts, 1, 1, 1), self.weights, self.context)
        return self.mix @ values.reshape(concepts, -1)

    def gradient(self, y: Tensor) -> Tensor:
        """``∇_y f(y)``, the shape of ``y``."""
        return input_gradient(self, y)

    def bfloat16(self) -> FrozenEnergy:
        """The same energy with kernels, biases and so activations in bfloat16; images and read-out stay float32."""
        weights, context = self.weights, self.context
        return self._replace(
            weights=weights._replace(
                stem=_rounded(weights.stem), stem_bias=_rounded(weights.stem_bias), blocks=_rounded(weights.blocks)
            ),
            context=context._replace(biases=_rounded(context.biases)),
        )


def input_gradient(energy: FrozenEnergy, y: Tensor) -> Tensor:
    """``∇_y Σ energy(y)``, the shape of ``y``, not tracked further."""
    with torch.enable_grad():
        y = y.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(energy(y).sum(), y)
    return gradient


def energies(y: Tensor, weights: Weights, context: Context) -> Tensor:
    """``f(y)``, ``(B,)``, from effective weights and a context; ``y`` is ``(B, C, H, W)``."""
    inputs = y if weights.frequencies is None else _with_sinusoids(y, weights.frequencies)
    h = convolve(inputs.to(weights.stem.dtype), weights.stem, weights.stem_bias)
    for kernels, bias in zip(weights.blocks, context.biases, strict=True):
        h = ResidualBlock.evaluate(h, kernels, bias)
    pooled = F.relu(h).sum(dim=(2, 3), dtype=context.readout.dtype)
    return (pooled * context.readout).sum(dim=1)


def _with_sinusoids(y: Tensor, frequencies: Tensor) -> Tensor:
    """``y`` and its Fourier features, ``(B, C + 2F, H, W)``."""
    angles = torch.einsum("bchw,fc->bfhw", y, frequencies)
    return torch.cat((y, angles.sin(), angles.cos()), dim=1)


def convolve(h: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution that keeps the size, in the form that is fastest for its shape."""
    if h.dtype == torch.bfloat16 and h.device.type == "cpu":  # as a GPU does; the library's own can crash here
        return convolve(h.float(), kernel.float(), None if bias is None else bias.float()).bfloat16()
    if h.shape[2:] == kernel.shape[2:] == (1, 1):  # points: a matrix product is much faster
        return F.linear(h.flatten(1), kernel.flatten(1), bias)[:, :, None, None]
    return F.conv2d(h, kernel, bias, padding="same")


def _channels_last(kernel: Tensor) -> Tensor:
    """The kernel's layout decides that of everything after it; channels innermost suits the convolutions best."""
    return kernel.contiguous(memory_format=torch.channels_last)


def freeze(weights: Weights, context: Context, mix: Tensor | None = None) -> FrozenEnergy:
    """An energy of constants: computed once a chain, parameters not tracked."""
    return FrozenEnergy(constant(weights), constant(context), mix)


def constant(tree: T) -> T:
    """The same weights or context without their history."""
    return pytree.tree_map_only(Tensor, Tensor.detach, tree)


def _rounded(tree: T) -> T:
    return pytree.tree_map_only(Tensor, Tensor.bfloat16, tree)


def check_sizes(
    image_size: int,
    channels: int,
    width: int,
    multipliers: tuple[int, ...],
    blocks: int,
    classes: int,
    kernel: int,
    frequencies: int = 0,
) -> None:
    """Raises `UserError` unless a network of these sizes can be built, in the memory of a computer."""
    # Each size by itself.
    ranges = [
        ("image_size", image_size, 1, LARGEST_IMAGE),
        ("channels", channels, 1, MOST_WEIGHTS),
        ("width", width, 4, MOST_WEIGHTS),
        *(("multipliers", multiplier, 1, MOST_WEIGHTS) for multiplier in multipliers),
        ("blocks", blocks, 1, MOST_BLOCKS),
        ("classes", classes, 0, MOST_WEIGHTS),
        ("kernel", kernel, 1, LARGEST_IMAGE),
        ("frequencies", frequencies, 0, MOST_WEIGHTS),
    ]
    for name, value, least, most in ranges:
        if not (isinstance(value, int) and least <= value <= most):
            raise UserError(f"{name} must be a whole number in {least} … {most:,}, not {value}")
    if not kernel % 2:
        raise UserError(f"kernel must be odd, not {kernel}")
    if width % 2:
        raise UserError(f"width must be even, not {width}")

    # How they fit together.
    if not multipliers:
        raise UserError("multipliers must name at least one resolution")
    if image_size % 2 ** (len(multipliers) - 1):
        raise UserError(f"image_size {image_size} cannot be halved {len(multipliers) - 1} times; use fewer multipliers")
    weights = 4 * width * (5 * width + classes) + kernel**2 * width * (channels + 2 * frequencies)
    weights += 2 * blocks * sum((kernel * width * multiplier) ** 2 for multiplier in multipliers)
    if weights > MOST_WEIGHTS:
        raise UserError(f"a network of these sizes has about {weights:,} weights; use a smaller width or fewer blocks")


def _start_as_glorot(layer: SpectralNorm | nn.Linear) -> None:
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _conv(inputs: int, outputs: int, kernel: int, bounded: bool = False) -> SpectralNorm:
    return SpectralNorm(nn.Conv2d(inputs, outputs, kernel), bounded)
