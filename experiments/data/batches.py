"""Training batches made on the device: a pure function of (seed, iteration), almost free in the hot loop.

The images form one endless stream: position p shows image ``order(p // n)[p % n]``, where ``order(e)`` is a permutation
drawn from (seed, e). Iteration i takes positions i·B … (i + 1)·B − 1, so that a batch runs over an epoch's border, no
image is left out, and the stream does not depend on the batch size. The flip of position p depends on (seed, p).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from cdrl import randomness
from cdrl.errors import UserError
from cdrl.method import Batch
from cdrl.pictures import scale
from experiments.data.images import ImageSet, PointSet

_SHARE_OF_FREE_MEMORY = 0.5  # the rest is for networks, activations and the chain
_EPOCHS_KEPT = 2
_CHUNK = 8192  # images


class DeviceBatches:
    """Batches of one image set on one device.

    On CUDA the pixels live on the device when they fit, else rows are read from the (mapped) array, staged in pinned
    memory and copied asynchronously. Either way the batch is the same, and no call waits for the device.

    Args:
        image_set: what to train on.
        batch_size: images in one batch; may exceed the size of the set.
        seed: decides order and flips.
        device: where batches are made.
        flip: mirror each image horizontally with probability 1/2.
        label_from: an attribute's name to use as a two-class label (1 absent, 2 present); None for the set's labels.
        resident: keep all pixels on the device; None decides by free memory.

    Raises:
        UserError: for an empty set, a batch size below one or an unknown attribute.
    """

    def __init__(
        self, image_set: ImageSet, batch_size: int, seed: int, device: torch.device | str = "cpu", *,
        flip: bool = False, label_from: str | None = None, resident: bool | None = None,
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise UserError(f"batch size {batch_size} is not positive; give at least 1")
        if len(image_set) == 0:
            raise UserError(f"data set {image_set.name} ({image_set.split}) holds no image; check its folder")
        if label_from is not None and label_from not in image_set.attribute_names:
            known = ", ".join(image_set.attribute_names) or "it has none"
            raise UserError(f"data set {image_set.name} has no attribute {label_from!r}; attributes: {known}")
        self.image_set, self.batch_size, self.seed, self.flip = image_set, batch_size, seed, flip
        self.device = torch.device(device)
        self.resident = fits(image_set, self.device) if resident is None else resident

        # As a tensor that shares the array's memory: torch demands a writable one, though nothing here writes.
        pixels = image_set.images
        self._images = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
        if self.resident:
            # uint8 NCHW on the device, moved in pieces so that only one piece is held twice.
            rows, (count, height, width, channels) = self._images, pixels.shape
            self._images = torch.empty((count, channels, height, width), dtype=torch.uint8, device=self.device)
            for start in range(0, count, _CHUNK):
                chunk = slice(start, start + _CHUNK)
                self._images[chunk] = rows[chunk].to(self.device).permute(0, 3, 1, 2)
        labels = image_set.labels_from(label_from)
        self._labels = None if labels is None else torch.from_numpy(labels + 1).to(self._images.device)
        self._orders: OrderedDict[int, Tensor] = OrderedDict()

    def batch(self, iteration: int, first: int = 0, count: int | None = None) -> Batch:
        """The batch of one iteration, or the shard of ``count`` rows from row ``first`` on; images are float32."""
        start = iteration * self.batch_size + first
        count = self.batch_size - first if count is None else count
        rows = self.indices(start, count)
        labels = None if self._labels is None else self._move(self._labels[rows])
        stored = self._images[rows] if self.resident else self._move(self._images[rows]).permute(0, 3, 1, 2)
        images = scale(stored).contiguous()
        if self.flip:
            positions = torch.arange(start, start + count, device=images.device)
            chance = randomness.uniform(randomness.key(self.seed, "data/flip"), positions, ())
            images = torch.where(chance[:, None, None, None] < 0.5, images.flip(-1), images)
        return _batch(images, labels, first, self.batch_size)

    def indices(self, start: int, count: int) -> Tensor:
        """Indices of the images at stream positions ``start`` … ``start + count − 1``; int64, beside the pixels."""
        pieces, size = [], len(self.image_set)
        while count > 0:
            epoch, offset = divmod(start, size)
            if epoch not in self._orders:  # the latest few are kept, so that a batch only slices
                order = randomness.permutation(randomness.key(self.seed, "data/order", epoch), size)
                self._orders[epoch] = order.to(self._images.device)
                while len(self._orders) > _EPOCHS_KEPT:
                    self._orders.popitem(last=False)
            pieces.append(self._orders[epoch][offset : offset + count])
            start, count = start + len(pieces[-1]), count - len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _move(self, rows: Tensor) -> Tensor:
        """To the training device without waiting; torch's pinned allocator guards the buffer until the copy is done."""
        if rows.device.type == self.device.type:
            return rows
        if self.device.type != "cuda":
            return rows.to(self.device)
        return rows.pin_memory().to(self.device, non_blocking=True)


class PointBatches:
    """Training batches of points: a pure function of (seed, iteration), drawn with replacement.

    Args:
        points: what to train on.
        batch_size: points in one batch.
        seed: decides which points.
        device: where batches are made.
    """

    def __init__(self, points: PointSet, batch_size: int, seed: int, device: torch.device | str = "cpu") -> None:
        if batch_size < 1:
            raise UserError(f"batch size {batch_size} is not positive; give at least 1")
        self.batch_size, self.seed = batch_size, seed
        self._points = torch.from_numpy(points.points.copy())[:, :, None, None].to(device)

    def batch(self, iteration: int, first: int = 0, count: int | None = None) -> Batch:
        """Points float32 ``(B, 2, 1, 1)`` of one iteration, or the shard of ``count`` from row ``first`` on."""
        start = iteration * self.batch_size + first
        count = self.batch_size - first if count is None else count
        positions = torch.arange(start, start + count, device=self._points.device)
        rows = randomness.integers(randomness.key(self.seed, "data/points"), positions, len(self._points))
        return _batch(self._points[rows], None, first, self.batch_size)


def _batch(images: Tensor, labels: Tensor | None, first: int, batch_size: int) -> Batch:
    index = torch.arange(first, first + len(images), device=images.device)
    return Batch(images, labels, index, share=len(images) / batch_size)


def fits(image_set: ImageSet, device: torch.device) -> bool:
    """True where the pixels may live on ``device``: only CUDA has memory of its own, others read in place."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return image_set.images.nbytes < _SHARE_OF_FREE_MEMORY * free
