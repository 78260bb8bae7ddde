"""Data sets: where they come from, checksums, decoding, and batches on the training device.

``load(name, split)`` gives an `ImageSet`; `DeviceBatches` makes training batches of it. Importing this package loads no
decoder and no downloader: each data set brings its own when it is asked for.
"""

from __future__ import annotations

from cdrl.pictures import to_float, to_uint8
from experiments.data.batches import DeviceBatches
from experiments.data.images import ImageSet
from experiments.data.registry import Availability, DataSettings, at_hand, availability, load, names, place

__all__ = [
    "Availability",
    "DataSettings",
    "DeviceBatches",
    "ImageSet",
    "at_hand",
    "availability",
    "load",
    "names",
    "place",
    "to_float",
    "to_uint8",
]
