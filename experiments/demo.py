"""Sample images from the committed weights on this machine's CPU, without training.

    python -m experiments.demo [--model FOLDER] [--images 36] [--seed 0] [--out build/demo.png]

The weights are those in results/demo/: CIFAR-10 (mini) where there are such, else digits (nano).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cdrl
from cdrl import checkpoint
from cdrl.errors import UserError
from experiments.tool import sample, save

WEIGHTS = Path("results/demo")
SCALES = ("mini", "nano")
"""Most wanted first."""


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a saved model (default: the committed one)")
    parser.add_argument("--images", type=int, default=36, help="how many (default: 36)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("build/demo.png"), help="a picture (default: build/demo.png)")
    options = parser.parse_args(arguments)
    try:
        folder = options.model or committed_model(WEIGHTS)
        print(f"sampling {options.images} images from {folder} …", flush=True)
        begin = time.monotonic()
        picture = sample(cdrl.load(folder), options.images, options.seed)
        print(f"sampled in {time.monotonic() - begin:.1f} s")
        save(picture, options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def committed_model(weights: Path) -> Path:
    """The folder of the most wanted model below ``weights``. Raises `UserError` when there is none."""
    for scale in SCALES:
        if checkpoint.exists(weights / scale, "model"):
            return weights / scale
    raise UserError(
        f"there are no weights in {weights}; train (make reproduce-table1), then "
        f"python -m experiments.export runs/digits/cdrl/<hash>/seed0 {weights / 'nano'}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
