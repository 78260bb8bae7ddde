"""How exactly convolutions and matrix products are computed: unlike the engine's form, this changes numbers.

    fp32   float32 throughout
    tf32   a GPU may round factors to TF32, ten bits of mantissa, before it multiplies them; elsewhere as fp32
    bf16   chains in bfloat16: kernels, level biases and activations. Products are summed, the energy is read out and
           the chain's state moves in float32; what is outside chains is as under tf32

PyTorch itself lets convolutions, and not matrix products, use TF32 unless it is told otherwise: so it is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cdrl.errors import UserError
from cdrl.langevin import Chain, Refine, Refined

PRECISIONS = ("fp32", "tf32", "bf16")


def check(precision: str) -> None:
    """Raises `UserError` for a word that is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision '{precision}'; choose one of {', '.join(PRECISIONS)}")


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Convolutions and matrix products of a GPU in true float32 inside, or in TF32 where ``precision`` allows it.

    Raises:
        UserError: an unknown precision, or one was set in this process by other means.
    """
    check(precision)
    convolutions, matrices = torch.backends.cudnn, torch.backends.cuda.matmul
    try:
        before = convolutions.allow_tf32, matrices.allow_tf32
    except RuntimeError:
        raise UserError(
            "PyTorch's fp32_precision was set in this process; leave it alone, and choose precision="
        ) from None
    convolutions.allow_tf32 = matrices.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:
        convolutions.allow_tf32, matrices.allow_tf32 = before


def chains(refine: Refine, precision: str) -> Refine:
    """``refine`` for chains in that precision; kernels are rounded once a chain. Raises `UserError` as `products`."""
    check(precision)
    if precision != "bf16":
        return refine

    def rounded(chain: Chain) -> Refined:
        return refine(chain._replace(energy=chain.energy.bfloat16()))

    return rounded
