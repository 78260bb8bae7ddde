"""A trained run's averaged weights as a small model to be shared, and loaded with `cdrl.load`.

    python -m experiments.export RUN FOLDER          (e.g. runs/digits/cdrl/<hash>/seed0 results/demo/nano)
    python -m experiments.export RUN FOLDER --full   without rounding to half precision

The folder gets ``model.json`` and one safetensors file, and ``origin.json``: which run of which commit this is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import cdrl
from cdrl import checkpoint
from cdrl.errors import UserError
from experiments.files import write_json
from experiments.report.animation import finished, trained_sampler


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a finished run of CDRL or DRL")
    parser.add_argument("folder", type=Path, help="where the model goes")
    parser.add_argument("--full", action="store_true", help="keep 32 bits")
    options = parser.parse_args(arguments)
    try:
        size = export(options.run, options.folder, half=not options.full)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"written to {options.folder}: {size / 1e6:.1f} MB")
    return 0


def export(run: Path, folder: Path, half: bool = True) -> int:
    """Write the model of a finished run to ``folder``; returns the weights' size in bytes.

    Args:
        run: a run folder of CDRL or DRL; its data set must be at hand where labels are counted on it.
        folder: made if need be; a model already there is replaced.
        half: round the weights to 16 bits.

    Raises:
        UserError: the run is not finished, diverged, or is of another method; or the folder cannot be written.
    """
    status = finished(run)
    config = json.loads((run / "config.json").read_text())
    checkpoint.save_model(folder, cdrl.Model(trained_sampler(run)), half=half)
    origin = {"run": "/".join(run.parts[-4:]), "data": config["data"]["name"], "budget": config["budget"]}
    write_json(folder / "origin.json", {**origin, **status, "half_precision": half})
    return int(json.loads((folder / "model.json").read_text())["bytes"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
