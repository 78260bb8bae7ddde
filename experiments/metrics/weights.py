"""Weight files of the extractors: where they lie, what they must hash to, how to get them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cdrl.errors import UserError

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
        """Where the file belongs: ``given`` (a file, or a folder that holds it), else `VARIABLE`, else the cache."""
        if given:
            return Path(given) / self.name if Path(given).is_dir() else Path(given)
        return Path(os.environ.get(VARIABLE) or cache / "weights") / self.name

    def get(self, cache: Path, given: str | Path | None = None, sha256: str | None = None) -> Path:
        """The verified file; downloaded when nobody named a place and it is not in the cache.

        Args:
            sha256: the hash to demand instead of the pinned one.

        Raises:
            UserError: if it is missing and cannot be downloaded, or hashes to something else.
        """
        path = self.place(cache, given)
        if not path.is_file():
            if given or os.environ.get(VARIABLE):
                raise UserError(f"no weight file {path}; put {self.name} there (from {self.url})")
            self._download(path)
        wanted, found = sha256 or self.sha256, file_sha256(path)
        if found != wanted:
            raise UserError(f"{path} has SHA-256 {found}, not {wanted}; delete it and get {self.url} again")
        return path

    def _download(self, path: Path) -> None:
        from torch.hub import download_url_to_file

        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(self.url, str(path), hash_prefix=self.sha256)
        except (OSError, RuntimeError) as error:
            remedy = f"get {self.url} elsewhere, then set {VARIABLE} to its folder or metrics.weights to the file"
            raise UserError(f"cannot download {self.name} ({error}); {remedy}") from error


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
