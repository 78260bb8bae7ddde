"""The data sets by name. Each is one file in `experiments.data.sets` that registers a function with `data_set`."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cdrl.errors import UserError
from experiments.data.images import ImageSet
from experiments.data.store import Recipe, materialise, verify

SPLITS = ("train", "test")
CACHE_VARIABLE = "CDRL_DATA_CACHE"
_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Place:
    """Where a data set is looked for.

    Attributes:
        root: the folder it should be in; it need not exist.
        named: whether the user named that folder (then nothing else is tried).
        cache: the folder for downloads and decoded arrays.
    """

    root: Path
    named: bool
    cache: Path


@dataclass(frozen=True)
class DataSet:
    """What the registry knows about a data set.

    Attributes:
        find: ``(place, split, **options)`` -> an `ImageSet`, or the `Recipe` to decode one. Raises `UserError` when
            files are missing or damaged.
        layout: what the folder must hold, in words (shown when it does not).
        needed_for: what cannot be computed without it.
        variable: the environment variable that may name the folder.
        checksums: split -> SHA-256 of the decoded pixels, where the one right value is known.
    """

    name: str
    find: Callable[..., ImageSet | Recipe]
    layout: str
    needed_for: str
    variable: str
    splits: tuple[str, ...] = SPLITS
    checksums: Mapping[str, str] = field(default_factory=dict)


_REGISTRY: dict[str, DataSet] = {}


def data_set(
    name: str,
    *,
    layout: str,
    needed_for: str,
    variable: str | None = None,
    splits: tuple[str, ...] = SPLITS,
    checksums: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., ImageSet | Recipe]], Callable[..., ImageSet | Recipe]]:
    """Register the decorated ``find`` function (see `DataSet`) under ``name``."""

    def register(find: Callable[..., ImageSet | Recipe]) -> Callable[..., ImageSet | Recipe]:
        where = variable or f"CDRL_DATA_{name.upper()}"
        _REGISTRY[name] = DataSet(name, find, layout, needed_for, where, splits, dict(checksums or {}))
        return find

    return register


@cache
def _discover() -> None:
    from experiments.data import sets

    for module in pkgutil.iter_modules(sets.__path__):
        importlib.import_module(f"{sets.__name__}.{module.name}")


def names() -> tuple[str, ...]:
    """All data sets, sorted."""
    _discover()
    return tuple(sorted(_REGISTRY))


def entry(name: str) -> DataSet:
    """The registered data set.

    Raises:
        UserError: if there is none of that name.
    """
    _discover()
    if name not in _REGISTRY:
        raise UserError(f"unknown data set {name!r}; choose one of {', '.join(names())}")
    return _REGISTRY[name]


def cache_folder(named: str | Path | None = None) -> Path:
    """Where downloads and decoded arrays go: as named, else $CDRL_DATA_CACHE, else ``data/`` of the repository."""
    return Path(named or os.environ.get(CACHE_VARIABLE) or _REPOSITORY / "data").expanduser()


def place(name: str, root: str | Path | None = None, data_cache: str | Path | None = None) -> Place:
    """Where to look for a data set: ``root``, else its environment variable, else ``<cache>/<name>``."""
    chosen = root or os.environ.get(entry(name).variable)
    folder = cache_folder(data_cache)
    return Place(Path(chosen).expanduser() if chosen else folder / name, bool(chosen), folder)


def load(
    name: str,
    split: str,
    root: str | Path | None = None,
    *,
    data_cache: str | Path | None = None,
    **options: Any,
) -> ImageSet:
    """One split of a data set, verified; decoded arrays are kept and mapped from disk the second time.

    Args:
        name: one of `names()`.
        split: "train" or "test".
        root: the folder that holds the files; None for the environment variable, then ``<data_cache>/<name>``.
        data_cache: where downloads and decoded arrays go; None for `cache_folder()`.
        options: the data set's own options (see ``conf/data/<name>.yaml``).

    Raises:
        UserError: naming the file or folder that is missing, damaged or different, and what to do.
    """
    known = entry(name)
    where = place(name, root, data_cache)
    _check_call(known, split, where, options)
    found = known.find(where, split, **options)
    if isinstance(found, ImageSet):
        verify(found.checksum, known.checksums.get(split), f"data set {name} ({split})")
        return found
    return materialise(found, where.cache, name, split, known.checksums.get(split))


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """A data set as configured in ``conf/data/<name>.yaml``, and where it lies.

    Attributes:
        name: one of `names()`.
        root: the folder that holds the files; None for the environment variable, then ``<data_cache>/<name>``.
        image_size: height and width in pixels.
        channels: of an image.
        classes: number of classes; None where they are counted.
        flip: whether training mirrors every other image.
        label_from: the attribute that labels come from.
        concepts: kinds of concepts to train on, see `experiments.data.attributes`.
        data_cache: where downloads and decoded arrays go; None for `cache_folder()`.
        options: the data set's own options.
    """

    name: str
    root: str | None = None
    image_size: int = 32
    channels: int = 3
    classes: int | None = 0
    flip: bool = False
    label_from: str | None = None
    concepts: Sequence[str] | None = None
    data_cache: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self, split: str) -> ImageSet:
        """`load`, checked to be what the networks will be built for.

        Raises:
            UserError: as `load`, or when size, channels or classes differ from the settings.
        """
        images = load(self.name, split, self.root, data_cache=self.data_cache, **self.options)
        actual = {"image_size": images.image_size, "channels": images.channels}
        if not self.label_from and self.classes:
            actual["classes"] = images.classes
        for key, value in actual.items():
            if getattr(self, key) != value:
                raise UserError(
                    f"data set {self.name} has {key} {value}, the configuration says {getattr(self, key)}; "
                    f"set data.{key}={value}"
                )
        return images

    def identity(self) -> dict[str, Any]:
        """What of this decides the images: any name but "folder" is one known data set, wherever it lies."""
        facts = {key: value for key, value in asdict(self).items() if key not in ("root", "data_cache")}
        if self.name == "folder":
            facts["root"] = str(place("folder", self.root).root.absolute())
        return facts


def _check_call(known: DataSet, split: str, where: Place, options: Mapping[str, Any]) -> None:
    if split not in known.splits:
        raise UserError(f"data set {known.name} has no split {split!r}; it has {', '.join(known.splits)}")
    accepted = tuple(inspect.signature(known.find).parameters)[2:]
    for option in options:
        if option not in accepted:
            raise UserError(
                f"data set {known.name} has no option {option!r}; its options: {', '.join(accepted) or 'none'}"
            )
    if where.named and not where.root.exists():
        raise UserError(f"data folder {where.root} does not exist; {known.name} needs {known.layout}")
