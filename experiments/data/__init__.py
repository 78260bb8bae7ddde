"""Data sets: where they come from, checksums, decoding, and batches on the training device.

``load(name, split)`` gives an `ImageSet`; `DeviceBatches` makes training batches of it. Importing this package loads no
decoder and no downloader: each data set brings its own when it is asked for.
"""

from cdrl.pictures import to_float, to_uint8
from experiments.data.batches import DeviceBatches, PointBatches
from experiments.data.images import ImageSet, PointSet, box_average
from experiments.data.registry import Availability, DataSettings, at_hand, load, names

__all__ = ["Availability", "DataSettings", "DeviceBatches", "ImageSet", "PointBatches", "PointSet"]
__all__ += ["at_hand", "box_average", "load", "names", "to_float", "to_uint8"]
