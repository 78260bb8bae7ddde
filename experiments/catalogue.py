"""The experiments that ``make reproduce-all`` goes through, in an order that trains shared models first."""

from __future__ import annotations

import sys

from experiments.configuration import CONF, choices

_FIRST = ("table1", "frontier", "ablations", "speedup", "langevin_steps", "guidance")
_ONLY_AT_PAPER = ("imagenet32",)
_NEEDS_ARGUMENTS = ("released",)


def experiments(scale: str) -> list[str]:
    """Names of all manifests that make sense at ``scale`` without further arguments."""
    names = [name for name in choices("experiment") if name not in _NEEDS_ARGUMENTS]
    if scale == "nano":
        names = [name for name in names if name not in _ONLY_AT_PAPER]
    first = [name for name in _FIRST if name in names]
    return first + [name for name in names if name not in first]


if __name__ == "__main__":
    assert CONF.is_dir()
    print(" ".join(experiments(sys.argv[1])))
