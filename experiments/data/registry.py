"""The data sets by name. Each is a function that a file in `experiments.data.sets` registers with `data_set`."""

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
from experiments import checks
from experiments.data.images import ImageSet, box_average
from experiments.data.store import Allocate, Decoded, Recipe, entry_folder, materialise, open_entry, verify

CACHE_VARIABLE = "CDRL_DATA_CACHE"
_REPOSITORY = Path(__file__).resolve().parents[2]
_REGISTRY: dict[str, DataSet] = {}


@dataclass(frozen=True)
class Place:
    """The folders of a data set.

    Attributes:
        root: the folder it should be in; it need not exist.
        named: whether the user named that folder (then nothing else is tried).
        cache: the folder for downloads and decoded arrays.
    """

    root: Path
    named: bool
    cache: Path


Find = Callable[..., ImageSet | Recipe]
"""``(place, split, **options)`` -> an `ImageSet`, or the `Recipe` to decode one. Raises `UserError` when files are
missing or damaged."""


@dataclass(frozen=True)
class DataSet:
    """A data set's entry in the registry.

    Attributes:
        find: see `Find`.
        layout: what the folder must hold, in words (shown when it does not).
        needed_for: what cannot be computed without it.
        variable: the environment variable that may name the folder; ``CDRL_DATA_<NAME>`` unless said.
        checksums: split -> SHA-256 of the decoded pixels, where the one right value is known; "train/16" -> of the
            same images at 16 pixels, see `load`.
    """

    name: str
    find: Find
    layout: str
    needed_for: str
    variable: str = ""
    splits: tuple[str, ...] = ("train", "test")
    checksums: Mapping[str, str] = field(default_factory=dict)

    def place(self, root: str | Path | None, data_cache: str | Path | None) -> Place:
        """The folders; the arguments as in `DataSettings`."""
        folder = Path(data_cache or os.environ.get(CACHE_VARIABLE) or _REPOSITORY / "data").expanduser()
        named = root or os.environ.get(self.variable)
        return Place(Path(named).expanduser() if named else folder / self.name, bool(named), folder)

    def look(self, place: Place, split: str, options: Mapping[str, Any]) -> ImageSet | Recipe:
        """What `find` finds in a folder that a user may have named. Raises `UserError` also where that is missing."""
        if place.named and not place.root.exists():
            raise UserError(f"data folder {place.root} does not exist; {self.name} needs {self.layout}")
        return self.find(place, split, **options)

    def check(self, split: str, options: Mapping[str, Any]) -> None:
        """Raises `UserError` unless there are such a split and such options, of the kind of their defaults."""
        if split not in self.splits:
            raise UserError(f"data set {self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        accepted = dict(list(inspect.signature(self.find).parameters.items())[2:])
        for option, value in options.items():
            if option not in accepted:
                its = ", ".join(accepted) or "none"
                raise UserError(f"data set {self.name} has no option {option!r}; its options: {its}")
            if value is None:
                raise UserError(f"data.options.{option} is null; give a value such as {accepted[option].default}")
            checks.like(f"data.options.{option}", value, accepted[option].default)


def data_set(name: str, **facts: Any) -> Callable[[Find], Find]:
    """Register the decorated function under ``name``, with the other fields of `DataSet`."""

    def register(find: Find) -> Find:
        _REGISTRY[name] = DataSet(name, find, **{"variable": f"CDRL_DATA_{name.upper()}", **facts})
        return find

    return register


@cache
def names() -> tuple[str, ...]:
    """All data sets, sorted."""
    from experiments.data import sets

    for module in pkgutil.iter_modules(sets.__path__):
        importlib.import_module(f"{sets.__name__}.{module.name}")
    return tuple(sorted(_REGISTRY))


def entry(name: str) -> DataSet:
    """The registered data set. Raises `UserError` if there is none of that name."""
    if name not in names():
        raise UserError(f"unknown data set {name!r}; choose one of {', '.join(names())}")
    return _REGISTRY[name]


@dataclass(frozen=True, kw_only=True)
class Availability:
    """The presence of something that a command needs: one split of a data set, or a file.

    Attributes:
        name: what it is; a data set with its split, as in "cifar10/train".
        state: "ready", "found" (not decoded yet), "download" (when first needed), "missing", or "wrong" (damaged, or
            not the pinned file).
        where: the file or folder it belongs in, or where it was found.
        variable: the environment variable that may name its folder, or empty.
        sha256: as pinned (of a data set: of its decoded pixels), else as found, else empty.
        needed_for: what cannot be computed without it.
        remedy: what to do when it is not there.
    """

    name: str
    state: str
    where: str
    variable: str = ""
    sha256: str = ""
    needed_for: str = ""
    remedy: str = ""

    @property
    def present(self) -> bool:
        return self.state in ("ready", "found")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """A data set as configured in ``conf/data/<name>.yaml``, and where it lies.

    Attributes:
        name: one of `names()`.
        root: the folder that holds the files; None for the environment variable, then ``<data_cache>/<name>``.
        image_size: height and width in pixels; see `load` for what is smaller than the data set's own.
        channels: of an image.
        classes: number of classes; None where they are counted.
        flip: whether training mirrors every other image.
        label_from: the attribute that labels come from.
        concepts: kinds of concepts to train on, see `experiments.data.attributes`.
        data_cache: where downloads and decoded arrays go; None for $CDRL_DATA_CACHE, then ``data/`` of the repository.
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

        Raises `UserError` as `load`, or when size, channels or classes differ from the settings.
        """
        images = load(self.name, split, self.root, data_cache=self.data_cache, size=self.image_size, **self.options)
        actual = {"image_size": images.image_size, "channels": images.channels}
        if not self.label_from and self.classes:
            actual["classes"] = images.classes
        for key, value in actual.items():
            if (configured := getattr(self, key)) != value:
                facts = f"data set {self.name} has {key} {value}, the configuration says {configured}"
                raise UserError(f"{facts}; set data.{key}={value}")
        return images

    def availability(self, split: str) -> Availability:
        """What `load` would find; nothing is downloaded or decoded.

        Raises `UserError` where there is no such data set, split or option.
        """
        known = entry(self.name)
        known.check(split, self.options)
        place = known.place(self.root, self.data_cache)
        state, where, sha256, remedy = "missing", str(place.root), known.checksums.get(split, ""), ""
        naming = f"name its folder with data.root=FOLDER or {known.variable}=FOLDER"
        try:
            recipe = known.look(place, split, self.options)
            if isinstance(recipe, ImageSet):
                state, where, sha256 = "ready", recipe.source, recipe.checksum
            elif (
                images := open_entry(entry_folder(recipe, place.cache, self.name, split), self.name, split)
            ) is not None:
                state, sha256 = "ready", images.checksum
            elif recipe.files:
                state = "found"
            else:
                state, remedy = "download", f"downloaded when first needed; or {naming}"
        except UserError as error:
            remedy = str(error) if place.named or "data.root" in str(error) else f"{error}; {naming}"
        facts = {"variable": known.variable, "sha256": sha256, "needed_for": known.needed_for, "remedy": remedy}
        return Availability(name=f"{self.name}/{split}", state=state, where=where, **facts)

    def identity(self) -> dict[str, Any]:
        """The settings that decide the images: any name but "folder" is one known data set, wherever it lies."""
        facts = {key: value for key, value in asdict(self).items() if key not in ("root", "data_cache")}
        if self.name == "folder":
            facts["root"] = str(entry("folder").place(self.root, None).root.absolute())
        return facts


def load(
    name: str, split: str, root: str | Path | None = None, *, data_cache: str | Path | None = None,
    size: int | None = None, **options: Any,
) -> ImageSet:  # fmt: skip
    """One split of a data set, verified; decoded arrays are kept and mapped from disk the second time.

    Smaller images are made of the verified ones, by `box_average`, and kept and verified like them.

    Args:
        name, root, data_cache: as in `DataSettings`.
        split: "train" or "test"; see `DataSet.splits`.
        size: side of the images in pixels, where it is the data set's own over a whole number; else as they are.
        options: the data set's own options (see ``conf/data/<name>.yaml``).

    Raises:
        UserError: naming the file or folder that is missing, damaged or different, and what to do.
    """
    known = entry(name)
    known.check(split, options)
    place, expected = known.place(root, data_cache), known.checksums.get(split)
    recipe = known.look(place, split, options)
    if isinstance(recipe, Recipe):
        images = materialise(recipe, place.cache, name, split, expected)
    else:
        images = recipe
        verify(images.checksum, expected, f"data set {name} ({split})")
    if size is None or not 0 < size < images.image_size or images.image_size % size:
        return images

    def shrink(allocate: Allocate) -> Decoded:
        allocate(len(images), size, images.channels)[:] = box_average(images.images, size)
        return Decoded(images.labels, images.class_names, images.attributes, images.attribute_names)

    made_of = {"images": images.checksum, "labels": images.labels_checksum, "size": size}
    smaller = Recipe(shrink, f"{images.source}, averaged", options=made_of, comparable=images.comparable)
    return materialise(smaller, place.cache, name, split, known.checksums.get(f"{split}/{size}"))


def at_hand(candidates: Sequence[str], data_cache: str | None = None) -> list[str]:
    """Those of the data sets whose test images need no download."""
    return [name for name in candidates if DataSettings(name=name, data_cache=data_cache).availability("test").present]
