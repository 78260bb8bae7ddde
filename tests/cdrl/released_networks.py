"""The authors' networks for tests: imported from a checkout, filled by a formula, written to a file in their format.

``CDRL_RELEASED_REPO`` names the checkout; what needs none works from layouts, which the golden files keep.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from cdrl import randomness

REPOSITORY = os.environ.get("CDRL_RELEASED_REPO")
WRITE = bool(os.environ.get("CDRL_RELEASED_WRITE"))
needs_repository = pytest.mark.skipif(REPOSITORY is None, reason="CDRL_RELEASED_REPO names no checkout")

SIZES: dict[str, dict[str, Any]] = {
    "unconditional": {"image_size": 32, "width": 8, "blocks": 2, "unet_blocks": 1, "classes": 0},
    "conditional": {"image_size": 16, "width": 4, "blocks": 1, "unet_blocks": 2, "classes": 5},
}
GAINS = {"temb_final": 16.0, "final_conv": 0.1}
"""Gradients that a chain can feel, and proposals that stay near x_t."""
Layout = list[tuple[str, list[int]]]
"""Names and shapes of a released state dict, in order."""


# --- Filled by a formula ----------------------------------------------------------------------------------------------


def numbers(count: int, stream: int) -> Tensor:
    """Numbers in [−1, 1) that look random, float64 ``(count,)``: the same bits on every processor."""
    return 2.0 * randomness.uniform(randomness.key(stream, "filled"), torch.arange(count), (), torch.float64) - 1.0


def filled(layout: Layout, stream: int) -> dict[str, Tensor]:
    """A state dict of this layout: no weight is zero or one, and spectral vectors fit their matrices."""
    state: dict[str, Tensor] = {}
    for number, (name, shape) in enumerate(layout):
        values = numbers(math.prod(shape), stream + number).reshape(shape)
        layer, _, kind = name.rpartition(".")
        if kind in ("weight_u", "weight_v"):
            state[name] = leading_vector(state[f"{layer}.weight_orig"].flatten(1), kind) + 0.02 * values
        elif kind == "bias":
            state[name] = 0.2 * values
        elif kind == "g" or "norm" in layer:
            state[name] = 1.0 + 0.2 * values
        else:
            state[name] = GAINS.get(layer, 1.0) * values * math.sqrt(3.0 / math.prod(shape[1:]))
    return state


def leading_vector(matrix: Tensor, kind: str) -> Tensor:
    """Nearly the first left ("weight_u") or right singular vector, by a fixed power iteration."""
    v = torch.ones(matrix.shape[1], dtype=matrix.dtype)
    for _ in range(20):
        u = torch.nn.functional.normalize(matrix @ v, dim=0)
        v = torch.nn.functional.normalize(matrix.T @ u, dim=0)
    return u if kind == "weight_u" else v


def averages(state: dict[str, Tensor], layout: Layout) -> list[Tensor]:
    """What stands for torch-ema's list: the parameters, a little moved."""
    parameters = [(name, shape) for name, shape in layout if not name.endswith(("weight_u", "weight_v"))]
    return [
        (state[name] + 0.02 * numbers(math.prod(shape), 1000 + number).reshape(shape)).to(torch.float32)
        for number, (name, shape) in enumerate(parameters)
    ]


def released_file(path: Path, layouts: dict[str, Layout]) -> Path:
    """A file in the authors' format, weights filled by the formula."""
    content: dict[str, Any] = {"p_lr_scheduler": {"last_epoch": 3, "lr_lambdas": [None]}}
    for name, layout in layouts.items():
        state = filled(layout, stream=len(name))
        content[f"{name}_state_dict"] = {f"module.{key}": value.to(torch.float32) for key, value in state.items()}
        content[f"{name}_ema_state_dict"] = {
            "decay": 0.9999,
            "num_updates": 3,
            "shadow_params": averages(state, layout),
            "collected_params": None,
        }
    torch.save(content, path)
    return path


# --- Imported from the checkout ---------------------------------------------------------------------------------------


@contextmanager
def checkout() -> Iterator[Path]:
    """The checkout, importable inside; what it imports but the networks do not need is replaced by stand-ins."""
    layouts = {
        "b c -> b c 1 1": lambda t: t[:, :, None, None],
        "b (h c) x y -> b h c (x y)": lambda t, h: t.flatten(2).unflatten(1, (h, -1)),
        "b h (x y) d -> b (h d) x y": lambda t, x, y: t.transpose(2, 3).flatten(1, 2).unflatten(2, (x, y)),
    }
    einops, torch_layers, tkinter = ModuleType("einops"), ModuleType("einops.layers.torch"), ModuleType("tkinter")

    def rearrange(tensor: Tensor, pattern: str, **axes: int) -> Tensor:
        return layouts[pattern](tensor, **axes)

    with pytest.MonkeyPatch.context() as patch:
        for module, values in (
            (einops, {"rearrange": rearrange, "reduce": None}),
            (torch_layers, {"Rearrange": None}),
            (tkinter, {"W": None}),
        ):
            for name, value in values.items():
                setattr(module, name, value)
            patch.setitem(sys.modules, module.__name__, module)
        patch.setitem(sys.modules, "einops.layers", ModuleType("einops.layers"))
        patch.syspath_prepend(str(REPOSITORY))
        yield Path(str(REPOSITORY))
    for name in [name for name in sys.modules if name == "models" or name.startswith("models.")]:
        del sys.modules[name]


def layout_of(network: Any) -> Layout:
    return [(name, list(value.shape)) for name, value in network.state_dict().items()]


def put(network: Any, layout: Layout, name: str, weights: str) -> None:
    """Fill one of their networks as `released_file` does, by their own parameter order."""
    state = filled(layout, stream=len(name))
    network.load_state_dict({key: value.to(torch.float32) for key, value in state.items()})
    if weights == "ema":
        for parameter, value in zip(network.parameters(), averages(state, layout), strict=True):
            parameter.data.copy_(value)
