"""The initializer ``g_φ(x_t; λ_t)``: a small U-Net that proposes where a Langevin chain starts.

Built as in Zhu et al. 2024, appendix (after Ho et al. 2020): GroupNorm, SiLU, scale–shift conditioning, resampling
inside residual blocks, attention at chosen sizes, output = input + net(input).
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdrl import randomness
from cdrl.errors import UserError
from cdrl.networks.embedding import logsnr_embedding
from cdrl.networks.energy import check_sizes, convolve


class Dropout(NamedTuple):
    """What the masks of a forward pass in training depend on: the rate, a key for each block, and the images."""

    rate: float
    """Share of the values that are dropped."""

    streams: Tensor
    """int64 ``(blocks,)``."""
    image_index: Tensor
    """Global image indices, int64 ``(B,)``."""

    def mask(self, h: Tensor, block: int) -> Tensor:
        """``h`` ``(B, C, H, W)`` with some of its values dropped, the others scaled up."""
        kept = randomness.uniform(self.streams[block], self.image_index, tuple(h.shape[1:]), h.dtype) >= self.rate
        return h * kept / (1.0 - self.rate)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class Convolution(nn.Conv2d):
    """A convolution that keeps the size."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding="same")

    def forward(self, h: Tensor) -> Tensor:
        return convolve(h, self.weight, self.bias)


def _zeroed(convolution: Convolution) -> Convolution:
    nn.init.zeros_(convolution.weight)
    return convolution


class Block(nn.Module):
    """A residual block with scale–shift conditioning; ``resample`` is None, "up" or "down" (by 2); ``number`` tells its
    dropout from the other blocks'."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        kernel: int,
        number: int,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.number = number
        self.norm_in = _group_norm(inputs)
        self.conv_in = Convolution(inputs, outputs, kernel)
        self.norm_out = _group_norm(outputs)
        self.conv_out = _zeroed(Convolution(outputs, outputs, kernel))
        self.scale_shift = nn.Linear(embedding, 2 * outputs)
        self.shortcut = Convolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.resample = resample

    def forward(self, x: Tensor, embedding: Tensor, dropout: Dropout | None) -> Tensor:
        """``x`` ``(B, inputs, H, W)``, ``embedding`` ``(B, E)`` after its SiLU; ``dropout`` in training alone."""
        h = self._resampled(F.silu(self.norm_in(x)))
        scale, shift = self.scale_shift(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm_out(self.conv_in(h)) * (1.0 + scale) + shift)
        if dropout is not None:
            h = dropout.mask(h, self.number)
        return self.conv_out(h) + self.shortcut(self._resampled(x))

    def _resampled(self, h: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(h, scale_factor=2, mode="nearest")
        return F.avg_pool2d(h, 2) if self.resample == "down" else h


class Attention(nn.Module):
    """Residual self-attention over pixels, one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels)
        self.query_key_value = Convolution(channels, 3 * channels, 1)
        self.out = _zeroed(Convolution(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.query_key_value(self.norm(x)).flatten(2).transpose(1, 2)[:, None]
        mixed = F.scaled_dot_product_attention(*qkv.chunk(3, dim=3))
        return self.out(mixed[:, 0].transpose(1, 2).reshape(x.shape)) + x


class Stage(nn.Module):
    """One residual block, followed by attention or not."""

    def __init__(self, block: Block, attention: Attention | None) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, embedding: Tensor, dropout: Dropout | None) -> Tensor:
        h = self.block(x, embedding, dropout)
        return h if self.attention is None else self.attention(h)


class Initializer(nn.Module):
    """The initializer U-Net; see the module's docstring.

    Args:
        image_size: height and width of the images in pixels; divisible by 2 to the number of resolutions − 1.
        channels: image channels.
        width: channels of the first resolution, and half-width of the log-SNR embedding.
        multipliers: channels at each resolution in units of ``width``.
        blocks: residual blocks at each resolution on the way down (one more on the way up).
        classes: number of classes C, or 0. Label 0 is the null label, classes are 1 … C.
        dropout: rate inside the residual blocks, in training.
        attention_sizes: heights in pixels at which blocks are followed by attention.
        kernel: height and width of the convolutions, odd; 1 for points, which are images of one pixel.

    Raises:
        UserError: the sizes do not fit together, or are those of no network that can be trained.
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        width: int = 64,
        multipliers: tuple[int, ...] = (1, 1, 1),
        blocks: int = 3,
        classes: int = 0,
        dropout: float = 0.1,
        attention_sizes: tuple[int, ...] = (16, 8),
        kernel: int = 3,
    ) -> None:
        super().__init__()
        check_sizes(image_size, channels, width, multipliers, blocks, classes, kernel)
        if not 0 <= dropout < 1:
            raise UserError(f"dropout must be at least 0 and below 1, not {dropout}")
        self.width, self.classes, self.dropout = width, classes, dropout
        embedding, number = 4 * width, itertools.count()
        self.embed_in = nn.Linear(width, embedding)
        self.embed_out = nn.Linear(embedding, embedding)
        self.embed_label = nn.Linear(classes + 1, embedding) if classes else None

        def stage(inputs: int, outputs: int, size: int) -> Stage:
            attention = Attention(outputs) if size in attention_sizes else None
            return Stage(Block(inputs, outputs, embedding, kernel, next(number)), attention)

        def resampling(channels: int, direction: str) -> Stage:
            return Stage(Block(channels, channels, embedding, kernel, next(number), direction), None)

        self.stem = Convolution(channels, width, kernel)
        widths, size, skips = [width * m for m in multipliers], image_size, [width]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for resolution, outputs in enumerate(widths):
            for _ in range(blocks):
                self.down.append(stage(skips[-1], outputs, size))
                skips.append(outputs)
            if resolution < len(widths) - 1:
                self.down.append(resampling(outputs, "down"))
                skips.append(outputs)
                size //= 2
        self.middle = nn.ModuleList(
            [
                Stage(Block(widths[-1], widths[-1], embedding, kernel, next(number)), Attention(widths[-1])),
                Stage(Block(widths[-1], widths[-1], embedding, kernel, next(number)), None),
            ]
        )
        h = widths[-1]
        for resolution, outputs in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(stage(h + skips.pop(), outputs, size))
                h = outputs
            if resolution:
                self.up.append(resampling(outputs, "up"))
                size *= 2
        self.norm_out = _group_norm(h)
        self.conv_out = _zeroed(Convolution(h, channels, kernel))
        self.residual_blocks = next(number)

    @property
    def domain(self) -> tuple[int, int]:
        """As `cdrl.networks.EnergyNet.domain`."""
        return (self.stem.in_channels, self.classes)

    def dropout_masks(self, draws: randomness.Draws) -> Dropout | None:
        """What `forward` is told in training; None where nothing is dropped."""
        if not self.dropout:
            return None
        return Dropout(self.dropout, draws.streams("dropout", self.residual_blocks), draws.index)

    def forward(self, x: Tensor, logsnr: Tensor, label: Tensor | None = None, dropout: Dropout | None = None) -> Tensor:
        """The proposal's mean in ``y`` units, the shape of ``x``.

        Args:
            x: noisy images x_t ``(B, C, H, W)``.
            logsnr: λ_t, the log-SNR of the *higher* level, ``(B,)``.
            label: int64 ``(B,)`` in 0 … C, or None for the null label; ignored by an unconditional network.
            dropout: in training, see `dropout_masks`.
        """
        embedding = F.silu(self._embedding(logsnr, label))
        h = self.stem(x)
        skips = [h]
        for stage in self.down:
            h = stage(h, embedding, dropout)
            skips.append(h)
        for stage in self.middle:
            h = stage(h, embedding, dropout)
        for stage in self.up:
            assert isinstance(stage, Stage)
            joins = stage.block.resample is None
            h = stage(torch.cat((h, skips.pop()), dim=1) if joins else h, embedding, dropout)
        return x + self.conv_out(F.silu(self.norm_out(h)))

    def _embedding(self, logsnr: Tensor, label: Tensor | None) -> Tensor:
        h = self.embed_out(F.silu(self.embed_in(logsnr_embedding(logsnr, self.width))))
        if self.embed_label is not None:
            label = torch.zeros_like(logsnr, dtype=torch.long) if label is None else label
            h = h + F.embedding(label, self.embed_label.weight.T) + self.embed_label.bias
        return h
