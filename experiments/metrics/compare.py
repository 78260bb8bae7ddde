"""A folder of images against a data set or against another folder: what ``cdrl score`` prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cdrl.errors import UserError
from cdrl.pictures import photograph, picture, upright
from experiments import configuration
from experiments.data import DataSettings, decoding, store
from experiments.metrics import Scorer, protocols
from experiments.metrics.extractors import accepts
from experiments.progress import announce, progress
from experiments.runs.machine import resolve_device

_PROTOCOLS = ("fd-digits", "fd-efficientnet-lite0")
"""Those that need no download, in order of preference."""
_BATCH = 100


def compare(
    folder: Path,
    *,
    data: str | None,
    root: Path | None,
    against: Path | None,
    image_size: int | None,
    protocol: str | None,
    device: str,
    cache: Path,
) -> list[str]:
    """One line per metric; arguments are the options of ``cdrl score``.

    Raises:
        UserError: too few or too small images, or a protocol that cannot look at them.
    """
    # What is compared with what, and how; what does not fit is said before anything is decoded.
    files = _image_files(folder)
    if against is None:
        config = configuration.resolve([f"data={data or 'digits'}"])
        settings = DataSettings(**configuration.plain(config.data))
        size, channels = settings.image_size, settings.channels
    else:  # as large as its first image, and like it grey or in colour
        known = _image_files(against)
        size = image_size or min(_first_size(known))
        with Image.open(known[0]) as image:
            channels = 1 if image.mode in ("1", "L", "LA", "I", "I;16") else 3
        if size < 4:
            raise UserError(f"images of {size} pixels are too small to compare; give --image-size 4 or more")
    candidates = [protocols.load(name) for name in ([protocol] if protocol else _PROTOCOLS)]
    chosen = next((one for one in candidates if accepts(one.extractor, channels, size)), candidates[0])
    chosen.check_fits(channels, size)
    chosen = replace(chosen, metrics=tuple(name for name in chosen.metrics if name != "class_accuracy"))

    # The reference's images.
    def decode(allocate: store.Allocate) -> store.Decoded:
        out = allocate(len(known), size, channels)
        decoding.fill(out, decoding.encoded(known), photograph(size), f"reading {against}")
        return store.Decoded()

    if against is None:
        real = replace(settings, root=None if root is None else str(root)).load(chosen.reference_split)
    else:
        recipe = store.Recipe(decode, f"folder {against}", known, {"image_size": size, "channels": channels})
        real = store.materialise(recipe, cache, against.name, chosen.reference_split)
    width, height = _first_size(files)
    if (width, height) != (size, size):
        announce(f"note: images of {width}x{height} pixels are compared at {size}x{size}")
    if len(files) < chosen.samples:
        announce(
            f"warning: {chosen.name} asks for {chosen.samples:,} images and {folder} holds {len(files):,}; "
            "fewer images give larger distances, so compare only with numbers of as many"
        )

    # Its statistics, then the folder's images.
    scorer = Scorer(chosen, real, cache, resolve_device(device))
    mode = "RGB" if channels == 3 else "L"
    with progress(f"scoring {folder}", len(files)) as advance:
        for start in range(0, len(files), _BATCH):
            batch = files[start : start + _BATCH]
            images = [np.asarray(picture(str(path), path, mode, photograph(size))) for path in batch]
            pixels = torch.from_numpy(np.stack(images).reshape(-1, size, size, channels))
            scorer.update(pixels if chosen.rounding else pixels.float())
            advance(len(batch))
    source = f"{chosen.name}, {len(files):,} images against {scorer.reference_samples:,} of {against or real.name}"
    return [f"{metric:<12}{value:.6g}   ({source})" for metric, value in scorer.result().items()]


def _image_files(folder: Path) -> list[Path]:
    files = decoding.images_below(folder) if folder.is_dir() else []
    if len(files) < 2:
        raise UserError(f"{folder} holds {len(files)} images; name a folder of at least two image files")
    return files


def _first_size(files: list[Path]) -> tuple[int, int]:
    return picture(str(files[0]), files[0], "RGB", upright).size
