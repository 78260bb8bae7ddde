"""What the tests of data share: random pixels, files made of them, and a cache of the test's own."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from experiments.data import registry

Pixels = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Decoded arrays go to a folder of the test's own, and no variable names a folder of data."""
    folder = tmp_path_factory.mktemp("cache")
    for name in registry.names():
        monkeypatch.delenv(registry.entry(name).variable, raising=False)
    monkeypatch.setenv(registry.CACHE_VARIABLE, str(folder))
    return folder


@pytest.fixture
def unpinned(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets random pixels pass for a data set whose hash is pinned."""

    def unpin(name: str) -> None:
        known = dataclasses.replace(registry.entry(name), checksums={})
        monkeypatch.setitem(registry._REGISTRY, name, known)

    return unpin


@pytest.fixture
def pixels() -> Callable[..., Pixels]:
    """``pixels(count, height, width=height, channels=3)``: random uint8 NHWC."""

    def make(count: int, height: int, width: int | None = None, channels: int = 3) -> Pixels:
        shape = (count, height, width or height, channels)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    return make


@pytest.fixture
def write_parquet() -> Callable[[Path, Pixels, Sequence[int]], None]:
    """Writes a shard with columns img{bytes, path} and label, images as PNG."""

    def write(path: Path, images: Pixels, labels: Sequence[int]) -> None:
        rows = [{"bytes": png(image), "path": f"{row}.png"} for row, image in enumerate(images)]
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"img": rows, "label": pa.array(labels, pa.int64())}), path)

    return write


@pytest.fixture
def write_images() -> Callable[[Path, Pixels, Sequence[str]], None]:
    """Writes images into a folder under the given names."""

    def write(folder: Path, images: Pixels, names: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for image, name in zip(images, names, strict=True):
            (folder / name).write_bytes(png(image))

    return write


def png(image: Pixels) -> bytes:
    """One NHWC row as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
