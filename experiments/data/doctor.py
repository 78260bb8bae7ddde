"""What ``make doctor`` says about data: every set, where it belongs, its hash, and what waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cdrl.errors import UserError
from experiments.data.images import ImageSet
from experiments.data.registry import DataSet, entry, names, place
from experiments.data.store import entry_folder, open_entry
from experiments.inventory import Item


def inventory(root: str | Path | None = None) -> list[Item]:
    """One item a data set and split; nothing is downloaded or decoded.

    Args:
        root: the folder of downloads and decoded arrays; None for `registry.cache_folder()`.
    """
    return [_record(entry(name), split, root) for name in names() for split in entry(name).splits]


def at_hand(chosen: Sequence[str], root: str | Path | None = None) -> list[str]:
    """Those of the data sets whose test images need no download; ``root`` as in `inventory`."""
    present = {record.name for record in inventory(root) if record.present}
    return [name for name in chosen if f"{name}/test" in present]


def _record(known: DataSet, split: str, root: str | Path | None) -> Item:
    where = place(known.name, None, root)
    state, sha256, remedy = "missing", known.checksums.get(split, ""), ""
    location = str(where.root)
    try:
        found = known.find(where, split)
        if isinstance(found, ImageSet):
            state, sha256, location = "ready", found.checksum, found.source
        else:
            folder = entry_folder(found, where.cache, known.name, split)
            kept = open_entry(folder, known.name, split)
            state = "found" if kept is None else "ready"
            sha256 = sha256 if kept is None else kept.checksum
            if not found.files and kept is None:
                state, remedy = "missing", "downloaded when first needed"
    except UserError as error:
        remedy = str(error)
    return Item(f"{known.name}/{split}", location, known.variable, sha256, state, known.needed_for, remedy)
