"""The report: cells → tables, figures, and one HTML page. It knows nothing of how jobs are run."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

os.environ.pop("MPLBACKEND", None)  # a notebook's, say: Matplotlib is not imported where it does not know the name

from cdrl.errors import UserError
from cdrl.sampler import Sampler
from experiments import checksums
from experiments.report import animation, page, style, tables
from experiments.report.study import MissingArray, Study, studies
from experiments.runs.folder import RunFolder

__all__ = ["build_all", "build_experiment", "draw", "traceable_run"]


def build_experiment(folder: Path) -> str:
    """Tables and figures of ``results/<experiment>/<scale>``; returns the tables for a terminal.

    Raises `UserError` where there are no cells.
    """
    study = Study.load(folder)
    made, _ = _make(study)
    return "\n\n".join(table.plain() for table in made)


def build_all(results: Path, page_only: bool = False, trace: Sampler | None = None) -> list[str]:
    """Tables and figures of everything under ``results``, and the page; returns what was written, a line for each.

    Args:
        results: the results folder.
        page_only: leave tables and figures as they are.
        trace: a sampler to trace into ``results/demo/``.

    Raises:
        UserError: there is no such folder, or results of another format in it.
    """
    results = Path(results)
    if not results.is_dir():
        raise UserError(f"there is no folder {results}; run an experiment first, or name another with --results")
    lines = [] if trace is None else [f"demo: {', '.join(animation.write(trace, results / 'demo'))}"]
    for study in [] if page_only else studies(results):
        _, figures = _make(study)
        lines.append(f"{study.name} {study.scale}: {', '.join(['table', *figures])}")
    return [*lines, f"written: {page.build(results)}"]


def _make(study: Study) -> tuple[list[tables.Table], list[str]]:
    """Tables and figures with their checksums; the tables, and the figures' names."""
    made, figures = tables.write(study), draw(study)
    pictures = [f"{name}.{kind}" for name in figures for kind in ("png", "svg")]
    checksums.add(study.folder, ["table.md", "table.tex", *pictures])
    return made, figures


def traceable_run(results: Path) -> RunFolder | None:
    """Table 1's first finished run of CDRL, where it is on this machine: what the report shows the sampling of."""
    for study in studies(results):
        for row in study.rows if study.name == "table1" else []:
            for evaluation in row["evaluations"] if row["method"] == "cdrl" else []:
                run = RunFolder(study.located(evaluation["run"]))
                if run.state == "finished":
                    return run
    return None


def draw(study: Study) -> list[str]:
    """Write every figure that can be drawn as PNG and SVG; returns the names of those written.

    Where runs are on another machine, the committed files stay: cells alone draw less. Raises `UserError` when the
    manifest names a figure that has no module.
    """
    written = []
    for module_name in study.figures:
        module = f"experiments.report.figures.{module_name}"
        if importlib.util.find_spec(module) is None:
            raise UserError(f"experiment '{study.name}' names figure '{module_name}', but there is no {module}")
        try:
            figures = importlib.import_module(module).draw(study)
        except MissingArray:
            continue
        for name, figure in figures.items():
            if figure is not None and (study.at_hand or not (study.folder / f"{name}.png").exists()):
                style.save(figure, study.folder, name)
                written.append(name)
    return written
