"""`ImageSet`: images in memory (or mapped from disk) with what is known about them; `PointSet`: points as such."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_CHUNK = 4096  # images hashed at a time, so that a mapped set never sits in memory as a whole


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split of a data set.

    Attributes:
        images: uint8 ``(n, height, width, channels)``, an array or a memory map; never written to.
        labels: int64 ``(n,)`` in 0 … C − 1, or None when the images have no classes.
        name: the data set's name as in the registry.
        split: "train" or "test".
        source: where the pixels came from, in words.
        class_names: C names, empty when there are no classes.
        attributes: bool ``(n, A)``, or None.
        attribute_names: A names.
        comparable: False for a stand-in, on which no number may be set beside a published one.
        known_checksum: the pixels' SHA-256 where it was computed before (see `checksum`).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    name: str
    split: str
    source: str
    class_names: tuple[str, ...] = ()
    attributes: NDArray[np.bool_] | None = None
    attribute_names: tuple[str, ...] = ()
    comparable: bool = True
    known_checksum: str | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(f"images must be uint8 NHWC, not {self.images.dtype} {self.images.shape}")
        for rows in (self.labels, self.attributes):
            if rows is not None and len(rows) != len(self.images):
                raise ValueError(f"{len(rows)} labels or attributes for {len(self.images)} images")
        if self.labels is not None and self.classes and not np.isin(self.labels, range(self.classes)).all():
            raise ValueError(f"labels run from {self.labels.min()} to {self.labels.max()}, of {self.classes} classes")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> int:
        """Height of an image; all sets here are square."""
        return int(self.images.shape[1])

    @property
    def channels(self) -> int:
        return int(self.images.shape[3])

    @property
    def classes(self) -> int:
        """The number of classes C, 0 without labels."""
        return len(self.class_names)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 (hex) of the uint8 pixels, NHWC, in order. Computed at most once."""
        return self.known_checksum or pixel_checksum(self.images)

    @cached_property
    def labels_checksum(self) -> str:
        """SHA-256 (hex) of labels and attributes, in order."""
        digest = hashlib.sha256()
        for rows in (self.labels, self.attributes):
            digest.update(b"none" if rows is None else np.ascontiguousarray(rows).data)
        return digest.hexdigest()

    def subset(self, indices: Sequence[int] | NDArray[np.int64] | slice) -> ImageSet:
        """The images at ``indices``, in that order; a slice of a mapped set stays mapped."""
        rows = indices if isinstance(indices, slice) else np.asarray(indices, dtype=np.int64)
        return dataclasses.replace(
            self,
            images=self.images[rows],
            labels=None if self.labels is None else self.labels[rows],
            attributes=None if self.attributes is None else self.attributes[rows],
            known_checksum=None,
        )

    def labels_from(self, attribute: str | None) -> NDArray[np.int64] | None:
        """The labels, or with an attribute's name 0/1 for that attribute absent/present.

        Raises `KeyError` if there is no such attribute.
        """
        if attribute is None:
            return self.labels
        if self.attributes is None or attribute not in self.attribute_names:
            raise KeyError(attribute)
        return self.attributes[:, self.attribute_names.index(attribute)].astype(np.int64)


@dataclass(frozen=True, eq=False)
class PointSet(ImageSet):
    """Points of the plane as images of one pixel with two channels, so that the networks take them with kernel 1.

    ``images`` are float32 ``(n, 1, 1, 2)``, already what the networks see; the rest as in `ImageSet`.
    """

    def __post_init__(self) -> None:
        if self.images.dtype != np.float32 or self.images.shape[1:] != (1, 1, 2):
            raise ValueError(f"points must be float32 (n, 1, 1, 2), not {self.images.dtype} {self.images.shape}")

    @property
    def points(self) -> NDArray[np.float32]:
        """``(n, 2)``."""
        return np.asarray(self.images, np.float32).reshape(-1, 2)


def box_average(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Smaller images: each pixel is the mean of a square of pixels, rounded to the nearest, halves to the even number.

    Args:
        images: uint8 ``(n, H, H, C)``.
        size: H over a whole number.

    Returns:
        uint8 ``(n, size, size, C)``.
    """
    count, height, _, channels = images.shape
    factor = height // size
    out = np.empty((count, size, size, channels), dtype=np.uint8)
    for start in range(0, count, _CHUNK):
        chunk = np.asarray(images[start : start + _CHUNK])
        corners = [chunk[:, row::factor, column::factor] for row in range(factor) for column in range(factor)]
        sums = np.zeros(corners[0].shape, dtype=np.uint32)
        for corner in corners:
            sums += corner
        out[start : start + len(chunk)] = np.rint(sums / factor**2)  # exact where a square has 4, 16, 64 … pixels
    return out


def pixel_checksum(images: NDArray[np.uint8]) -> str:
    """SHA-256 (hex) of uint8 pixels in C order."""
    digest = hashlib.sha256()
    for start in range(0, len(images), _CHUNK):
        digest.update(np.ascontiguousarray(images[start : start + _CHUNK]).data)
    return digest.hexdigest()
