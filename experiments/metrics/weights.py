"""Files of tensors: weights published elsewhere, and what is computed here and kept with a checksum."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch.hub
from torch import Tensor

from cdrl.errors import UserError
from experiments.files import sha256, write_whole
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
                        raise UserError(
                            f"cannot download {self.name} ({error}); get {self.url} elsewhere, then set {VARIABLE} to "
                            "its folder or metrics.weights to the file"
                        ) from error
        wanted, actual = expected or self.sha256, sha256(path)
        if actual != wanted:
            raise UserError(f"{path} has SHA-256 {actual}, not {wanted}; delete it and get {self.url} again")
        return path


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] = {}, durable: bool = True) -> None:
    """Keep tensors, and facts about them, in a file with a checksum. Raises `UserError` as `write_whole`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    record = json.dumps({**about, "sha256": _digest(tensors, about)}, sort_keys=True)
    metadata = {"record": record}  # one entry, because safetensors writes several in any order
    write_whole(path, lambda unfinished: safetensors.torch.save_file(tensors, unfinished, metadata), durable)


def load(path: Path, warn: bool = True) -> dict[str, Tensor] | None:
    """What `save` kept; None where nothing is, or where it is damaged, which is said unless ``warn`` is off."""
    with suppress(OSError, ValueError, KeyError, safetensors.SafetensorError):
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["record"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        if about.pop("sha256", None) == _digest(tensors, about):
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
            tensors = load(path, warn=False)  # another process may have made it meanwhile
            if tensors is None:
                tensors = make()
                save(path, tensors, about)
    return tensors


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """SHA-256 of names, types, shapes, bytes and facts."""
    shapes = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}
    digest = hashlib.sha256(json.dumps([shapes, dict(about)], sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
