"""The report: cells → tables, figures, and one HTML page. It knows nothing of how jobs are run."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from cdrl.errors import UserError
from cdrl.sampler import Sampler
from experiments.report import animation, page, style, tables
from experiments.report.study import MissingArray, Study, studies
from experiments.runs.folder import RunFolder

__all__ = ["build_all", "build_experiment", "draw", "traceable_run"]


def build_experiment(folder: Path) -> str:
    """Tables and figures of ``results/<experiment>/<scale>``; returns the tables for a terminal.

    Raises `UserError` where there are no cells.
    """
    study = Study.load(folder)
    draw(study)
    return "\n\n".join(table.plain() for table in tables.write(study))


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
        lines.append(f"{study.name} {study.scale}: {', '.join(['table', *draw(study)])}")
        tables.write(study)
    return [*lines, f"written: {page.build(results)}"]


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
