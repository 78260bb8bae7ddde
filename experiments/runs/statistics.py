"""Reference statistics as a job: wanted by the plan, made once, before the runs that are compared with them.

<cache>/statistics/<extractor>-<data set>-<split>-<hash>/
    statistics.json   what is wanted
    done.json         names the file under <cache>/reference/ that holds it
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cdrl.errors import UserError
from experiments.configuration import digest
from experiments.data import DataSettings
from experiments.files import read_json, write_json
from experiments.metrics.extractors import build
from experiments.metrics.protocols import Protocol
from experiments.metrics.reference import needs_features, reference
from experiments.progress import OnProgress, listening
from experiments.runs.folder import WorkFolder


@dataclass(frozen=True)
class Statistics:
    """The reference statistics of one data set under one protocol.

    Attributes:
        protocol: which extractor looks at which images.
        data: where the images come from.
        cache: folder of weights and reference statistics.
    """

    protocol: Protocol
    data: DataSettings
    cache: Path

    @classmethod
    def open(cls, path: Path) -> Statistics:
        """What is wanted in a folder. Raises `UserError` where that is missing or damaged."""
        record = read_json(path / "statistics.json")
        try:
            return cls(Protocol.from_config(record["protocol"]), DataSettings(**record["data"]), path.parents[1])
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}/statistics.json is damaged ({error}); delete {path}, the plan makes it") from None

    @property
    def name(self) -> str:
        return f"statistics of {self.data.name} for {self.protocol.name}"

    @property
    def folder(self) -> WorkFolder:
        """Where the job is worked on; decided by everything that decides the statistics."""
        protocol = self.protocol
        settings = {
            "extractor": protocol.extractor,
            "weights": protocol.weights_sha256,
            "split": protocol.reference_split,
            "samples": protocol.reference_samples,
            "flips": protocol.flips,
            "features": needs_features(protocol.metrics),
            "data": self.data.identity(),
        }
        name = f"{protocol.extractor}-{self.data.name}-{protocol.reference_split}-{digest(settings)}"
        return WorkFolder(self.cache / "statistics" / name)

    def want(self) -> None:
        """Writes what is wanted. Raises `UserError` where the cache cannot be written."""
        path = self.folder.path / "statistics.json"
        record = json.loads(json.dumps({"protocol": asdict(self.protocol), "data": asdict(self.data)}))
        if not path.exists() or read_json(path) != record:
            write_json(path, record)

    @property
    def done(self) -> bool:
        """Whether they are there; nothing is loaded. A damaged file is found, and made again, when it is used."""
        try:
            return (self.cache / read_json(self.folder.path / "done.json")["file"]).exists()
        except (UserError, KeyError, TypeError):
            return False

    def make(self, device: torch.device | str = "cpu", on_progress: OnProgress | None = None) -> None:
        """Loads the images, builds the extractor and computes the statistics, continuing what was interrupted.

        Args:
            on_progress: is told of each of these; see `experiments.progress.listening`.

        Raises:
            UserError: as `DataSettings.load`, `build` and `reference`.
        """
        protocol, device = self.protocol, torch.device(device)
        with listening(on_progress):
            images = self.data.load(protocol.reference_split)
            protocol.check_fits(images.channels, images.image_size)
            extractor = build(protocol.extractor, self.cache, device, protocol.weights, protocol.weights_sha256)
            made = reference(protocol, extractor, images, self.cache, device)
        write_json(self.folder.path / "done.json", {"file": str(made.path.relative_to(self.cache))})
