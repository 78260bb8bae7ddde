"""Data sets: where they come from, checksums, decoding, and batches on the training device.

``load(name, split)`` gives an `ImageSet`; `DeviceBatches` makes training batches of it. Importing this package loads no
decoder and no downloader: each data set brings its own when it is asked for.
"""

from __future__ import annotations

from cdrl.pictures import to_float, to_uint8
from experiments.data.batches import DeviceBatches
from experiments.data.doctor import at_hand, inventory
from experiments.data.images import ImageSet
from experiments.data.registry import DataSettings, load, names, place

__all__ = [
    "DataSettings",
    "DeviceBatches",
    "ImageSet",
    "at_hand",
    "inventory",
    "load",
    "names",
    "place",
    "to_float",
    "to_uint8",
]
