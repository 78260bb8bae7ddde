"""Data sets: where they come from, checksums, decoding, and batches on the training device.

``load(name, split)`` gives an `ImageSet`; `DeviceBatches` makes training batches of it. Importing this package is
light: nothing here loads torch before `DeviceBatches` or the pixel conversions are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from experiments.data.images import ImageSet
from experiments.data.registry import load, load_config, names

if TYPE_CHECKING:
    from experiments.data.batches import DeviceBatches
    from experiments.data.doctor import inventory
    from experiments.data.pixels import to_float, to_uint8

__all__ = ["DeviceBatches", "ImageSet", "inventory", "load", "load_config", "names", "to_float", "to_uint8"]

_LAZY = {
    "DeviceBatches": "batches",
    "inventory": "doctor",
    "to_float": "pixels",
    "to_uint8": "pixels",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
