"""64×64 images shrunk bilinearly to 32×32, as the authors make their ImageNet, from Parquet shards or class folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cdrl.errors import UserError
from experiments.data import decoding, parquet, tree
from experiments.data.decoding import Encoded
from experiments.data.store import Allocate, Decoded, Recipe

STORED, SIZE = 64, 32
LabelledFiles = Iterable[tuple[int, Path]]


@dataclass(frozen=True)
class Shrunk:
    """A data set whose images are shrunk from 64×64.

    Attributes:
        name: in the registry.
        classes: how many there must be.
        class_names: in label order, where known.
        comparable: see `ImageSet`.
    """

    name: str
    classes: int
    class_names: tuple[str, ...] = ()
    comparable: bool = True

    def from_parquet(self, shards: Sequence[Path]) -> Recipe:
        """Shards with 64×64 images and a column ``label``."""
        return Recipe(
            partial(self._decode_shards, shards), "64x64 Parquet shards, bilinear", shards, {}, self.comparable
        )

    def from_files(self, folder: Path, listed: Callable[[], LabelledFiles], names: tuple[str, ...]) -> Recipe:
        """Files of 64×64 that ``listed()`` names with their class, when decoding starts.

        A decoded copy is trusted while ``folder`` and its subfolders keep their times: a million files are not asked.
        """
        stamps = [folder, *tree.class_folders(folder)]
        decode = partial(self._decode_files, listed, names)
        return Recipe(decode, f"64x64 images in {folder.name}/, bilinear", stamps, {}, self.comparable)

    def from_class_folders(self, folder: Path) -> Recipe:
        """One subfolder per class, in the order of their names."""
        folders = tree.class_folders(folder)
        if len(folders) != self.classes:
            raise UserError(f"{folder}: {len(folders)} class folders, {self.name} has {self.classes}; get the rest")
        return self.from_files(folder, partial(tree.by_class, folders), tuple(path.name for path in folders))

    def _decode_shards(self, shards: Sequence[Path], allocate: Allocate) -> Decoded:
        labels = parquet.labels(shards, "label")
        out = allocate(parquet.count(shards), SIZE, 3)
        self._fill(out, parquet.images(shards))
        names = self.class_names or tuple(str(i) for i in range(self.classes))
        return Decoded(decoding.checked_labels(labels, len(out), self.classes, shards[0].parent), names)

    def _decode_files(self, listed: Callable[[], LabelledFiles], names: tuple[str, ...], allocate: Allocate) -> Decoded:
        pairs = list(listed())
        out = allocate(len(pairs), SIZE, 3)
        self._fill(out, tree.encoded([path for _, path in pairs]))
        return Decoded(np.array([label for label, _ in pairs], dtype=np.int64), names)

    def _fill(self, out: np.ndarray, encoded: Iterable[Encoded]) -> None:
        decoding.fill(out, encoded, decoding.bilinear(STORED, SIZE), f"decoding {self.name}")


def read_json(path: Path, needed_for: str) -> Any:
    """The content of a JSON file that labels depend on; `UserError` naming it when missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {needed_for}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); {needed_for}") from error
