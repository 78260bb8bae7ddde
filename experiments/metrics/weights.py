"""Files of tensors: weights published elsewhere, and what is computed here and kept with a checksum."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch.hub
from torch import Tensor

from cdrl import files
from cdrl.errors import STORAGE, UserError
from experiments.files import clear_drafts, sha256
from experiments.progress import announce, exclusive

VARIABLE = "CDRL_WEIGHTS"
"""Environment variable that may name a folder of weight files, for machines without a network."""


@dataclass(frozen=True)
class WeightFile:
    """A file of weights published elsewhere.

    Attributes:
        name: the file's name.
        url: where the library that defines the network downloads it from.
        sha256: of the file.
        needed_for: what cannot be computed without it.
    """

    name: str
    url: str
    sha256: str
    needed_for: str

    def place(self, cache: Path, given: str | Path | None = None) -> Path:
        """The file's path: ``given`` (a file, or a folder that holds it), else `VARIABLE`, else the cache."""
        if given:
            return Path(given) / self.name if Path(given).is_dir() else Path(given)
        return Path(os.environ.get(VARIABLE) or cache / "weights") / self.name

    def get(self, cache: Path, given: str | Path | None = None, expected: str | None = None) -> Path:
        """The verified file; downloaded when nobody named a place and it is not in the cache.

        Args:
            expected: the SHA-256 to demand instead of the pinned one.

        Raises:
            UserError: if it is missing and cannot be downloaded, or hashes to something else.
        """
        path = self.place(cache, given)
        if not path.is_file():
            if given or os.environ.get(VARIABLE):
                raise UserError(f"no weight file {path}; put {self.name} there (from {self.url})")
            with exclusive(path.with_name(f"{self.name}.lock"), self.name):
                if not path.is_file():
                    announce(f"fetching {self.url}")
                    try:
                        torch.hub.download_url_to_file(self.url, str(path), hash_prefix=self.sha256)
                    except (OSError, RuntimeError) as error:
                        if isinstance(error, OSError) and error.errno in STORAGE:
                            with cache_errors(path):
                                raise
                        raise UserError(
                            f"cannot download {self.name} ({error}); get {self.url} elsewhere, then set {VARIABLE} to "
                            "its folder or metrics.weights to the file"
                        ) from error
        wanted, actual = expected or self.sha256, sha256(path)
        if actual != wanted:
            raise UserError(f"{path} has SHA-256 {actual}, not {wanted}; delete it and get {self.url} again")
        return path


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] = {}, durable: bool = True) -> None:
    """Keep tensors, and facts about them, in a file with a checksum. Raises `UserError` if it cannot be written."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {**about, "file": path.name}  # so that one file does not pass for another
    record = json.dumps({**about, "sha256": digest(tensors, about)}, sort_keys=True)
    # One entry, because safetensors writes several in any order; bytes, because its own writing leaves files behind.
    content = safetensors.torch.save(tensors, {"record": record})
    with cache_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, lambda unfinished: unfinished.write_bytes(content), durable)


def load(path: Path, warn: bool = True) -> dict[str, Tensor] | None:
    """What `save` kept under this name; None where nothing is, or something else, which is said unless ``warn`` is off.

    Nothing is believed: names, types, shapes, bytes and facts must have the checksum that was written with them.
    """
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, safetensors.SafetensorError):
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["record"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        if about.pop("sha256") == digest(tensors, about) and about["file"] == path.name:
            return tensors
    if warn and path.exists():
        announce(f"{path} is damaged; it is made again")
    return None


def load_or_make(
    path: Path, title: str, make: Callable[[], Mapping[str, Tensor]], about: Mapping[str, str] = {}
) -> Mapping[str, Tensor]:
    """What `save` kept, or else what one process makes and keeps while others that want it wait.

    Raises `UserError` where it cannot be kept.
    """
    tensors: Mapping[str, Tensor] | None = load(path)
    if tensors is None:
        with exclusive(path.with_suffix(".lock"), title):
            clear_drafts(path.parent)
            tensors = load(path, warn=False)  # another process may have made it meanwhile
            if tensors is None:
                tensors = make()
                save(path, tensors, about)
    return tensors


@contextmanager
def cache_errors(path: Path) -> Iterator[None]:
    """What keeps a file of the cache from being written becomes a `UserError` that says what to do."""
    try:
        yield
    except (OSError, UserError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        remedy = "make room there, or choose another folder with cache=FOLDER"
        raise UserError(f"cannot write {path} ({cause.strerror}); {remedy}") from cause


def digest(tensors: Mapping[str, Tensor], about: Mapping[str, str] = {}) -> str:
    """SHA-256 of names, types, shapes, bytes and facts."""
    shapes = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}
    found = hashlib.sha256(json.dumps([shapes, dict(about)], sort_keys=True).encode())
    for name in sorted(tensors):
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
