"""``experiment=all``: every experiment that makes sense at a scale."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.configuration import choices

ALL = "experiment=all"
_FIRST = ("table1", "frontier", "ablations", "speedup", "langevin_steps", "guidance")
_NOT_AT_NANO = ("imagenet32",)
_NEEDS_ARGUMENTS = ("released",)


def experiments(scale: str) -> list[str]:
    """Names of all manifests that need no further arguments at ``scale``, those that train shared models first."""
    names = [name for name in choices("experiment") if name not in _NEEDS_ARGUMENTS]
    if scale == "nano":
        names = [name for name in names if name not in _NOT_AT_NANO]
    first = [name for name in _FIRST if name in names]
    return first + [name for name in names if name not in first]


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each experiment that a command line asks for."""
    if ALL not in overrides:
        return [list(overrides)]
    scale = next((value.removeprefix("scale=") for value in overrides if value.startswith("scale=")), "nano")
    return [[f"experiment={name}" if value == ALL else value for value in overrides] for name in experiments(scale)]
