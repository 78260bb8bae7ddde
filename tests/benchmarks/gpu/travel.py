"""What goes to a machine without a network, and what comes back, in small files."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from cdrl.errors import UserError
from experiments import export
from experiments.files import write_json
from tests.benchmarks.gpu import suite
from tests.benchmarks.gpu.session import Session, planned

VARIABLE = "CDRL_DATA_CIFAR10"


def pack(folder: Path, limit: int) -> None:
    """Copy CIFAR-10's files into ``folder/1``, ``folder/2``, …, each at most ``limit`` bytes, in their layout.

    Raises:
        UserError: `VARIABLE` names no folder, or one file alone is larger.
    """
    root = Path(os.environ.get(VARIABLE, ""))
    if not os.environ.get(VARIABLE) or not root.is_dir():
        raise UserError(f"{VARIABLE} must name the folder that holds CIFAR-10 (Parquet shards are the smallest)")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for number, part in enumerate(parts([(path.stat().st_size, path) for path in files], limit), start=1):
        for path in part:
            target = folder / str(number) / "cifar10" / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        print(f"{folder / str(number)}: {', '.join(path.name for path in part)}")


def parts(files: list[tuple[int, Path]], limit: int) -> list[list[Path]]:
    """Files ``(bytes, path)`` in groups of at most ``limit`` bytes, first fit in the given order."""
    groups: list[tuple[int, list[Path]]] = []
    for size, path in files:
        if size > limit:
            raise UserError(
                f"{path} has {size:,} bytes, more than a part of --part-mb may have; use smaller files (Parquet shards)"
            )
        place = next((i for i, (used, _) in enumerate(groups) if used + size <= limit), len(groups))
        if place == len(groups):
            groups.append((0, []))
        used, members = groups[place]
        groups[place] = (used + size, [*members, path])
    return [members for _, members in groups]


def bundle(session: Session, seconds: float) -> None:
    """``results.tar.gz``: results, search, budgets and times; ``model.tar.gz``: CDRL's averaged weights, to be shared.

    Runs, checkpoints and caches stay behind.
    """
    bundled = session.out / "bundle"
    bundled.mkdir(parents=True, exist_ok=True)
    facts = [*session.out.glob("*.csv"), *session.out.glob("*.json"), *session.out.glob("*/*.json")]
    with tarfile.open(bundled / "results.tar.gz", "w:gz") as archive:
        archive.add(session.results, "results")
        for path in facts:
            archive.add(path, Path("gpu") / path.relative_to(session.out))
    run = next(row.evaluations[0].run for row in planned(suite.command(session, "table1", seconds)).rows)
    model = session.out / "model"
    export.export(run.folder, model)
    with tarfile.open(bundled / "model.tar.gz", "w:gz") as archive:
        archive.add(model, "model")
    sizes = {path.name: path.stat().st_size for path in sorted(bundled.glob("*.gz"))}
    write_json(bundled / "sizes.json", sizes)
    print(f"{bundled}: " + ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sizes.items()))
