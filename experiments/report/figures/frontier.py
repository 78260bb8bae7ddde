"""The equal-cost frontier: quality against training budget, for every method and a plain DDPM."""

from __future__ import annotations

from matplotlib.figure import Figure

from experiments.report.figures.table1 import budget, samples
from experiments.report.study import MissingArray, Study


def draw(study: Study) -> dict[str, Figure]:
    """``budget`` and ``samples``, where at hand. Raises `MissingArray` when neither is."""
    drawn = {"budget": budget(study), "samples": samples(study)}
    if not any(drawn.values()):
        raise MissingArray(f"{study.name}: nothing is measured yet")
    return {name: figure for name, figure in drawn.items() if figure is not None}
