"""The report: cells → tables, figures, and one HTML page. It knows nothing of how jobs are run."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

os.environ.pop("MPLBACKEND", None)  # a notebook's, say: Matplotlib is not imported where it does not know the name

from matplotlib.figure import Figure

from cdrl.cli import note
from cdrl.errors import UserError
from cdrl.sampler import Sampler
from experiments import checksums
from experiments.files import one_line
from experiments.report import animation, page, style, tables
from experiments.report.study import MissingArray, Study, studies
from experiments.runs.folder import RunFolder

__all__ = ["build_all", "build_experiment", "draw", "traceable_run"]


def build_experiment(folder: Path, say: Callable[[str], object] = note) -> str:
    """Tables, and then figures, of ``results/<experiment>/<scale>``; returns the tables for a terminal.

    Args:
        folder: with the cells.
        say: is called with a line for each figure that could not be drawn.

    Raises:
        UserError: there are no cells, or the tables cannot be written.
    """
    study = Study.load(folder)
    made, _ = _make(study, say)
    return "\n\n".join(table.plain() for table in made)


def build_all(
    results: Path, page_only: bool = False, trace: Sampler | None = None, say: Callable[[str], object] = note
) -> list[str]:
    """Tables and figures of everything under ``results``, and the page; returns what was written, a line for each.

    Args:
        results: the results folder.
        page_only: leave tables and figures as they are.
        trace: a sampler to trace into ``results/demo/``.
        say: is called with a line for each figure that could not be drawn.

    Raises:
        UserError: there is no such folder, or results of another format in it.
    """
    results = Path(results)
    if not results.is_dir():
        raise UserError(f"there is no folder {results}; run an experiment first, or name another with --results")
    lines = []
    for study in [] if page_only else studies(results):
        _, figures = _make(study, say)
        lines.append(f"{study.name} {study.scale}: {', '.join(['table', *figures])}")
    if trace is not None:
        with _said(results / "demo" / "trajectory", say):
            lines.insert(0, f"demo: {', '.join(animation.write(trace, results / 'demo'))}")
    return [*lines, f"written: {page.build(results)}"]


def _make(study: Study, say: Callable[[str], object]) -> tuple[list[tables.Table], list[str]]:
    """Tables and figures with their checksums; the tables, and the figures' names."""
    made = tables.write(study)
    figures = draw(study, say)
    checksums.add(study.folder, [f"{name}.{kind}" for name in figures for kind in ("png", "svg")])
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


def draw(study: Study, say: Callable[[str], object] = note) -> list[str]:
    """Write every figure that can be drawn as PNG and SVG; returns the names of those written.

    Where runs are on another machine, the committed files stay: cells alone draw less. A figure that cannot be drawn,
    whatever the reason, leaves the others: ``say`` is called with its name and the reason, in a line.
    """
    written = []
    for module in study.figures:
        figures: Mapping[str, Figure | None] = {}
        with _said(study.folder / module, say):
            path = f"experiments.report.figures.{module}"
            if importlib.util.find_spec(path) is None:
                raise UserError(f"the experiment names figure '{module}', but there is no {path}")
            figures = importlib.import_module(path).draw(study)
        for name in figures:
            with _said(study.folder / name, say):
                if study.at_hand or not (study.folder / f"{name}.png").exists():
                    figure = figures[name]
                    if figure is not None:
                        style.save(figure, study.folder, name)
                        written.append(name)
    return written


@contextmanager
def _said(path: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Whatever stops a figure is said in a line, but for runs on another machine: then its committed file stays."""
    try:
        yield
    except MissingArray:
        return
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        say(one_line(f"{path} could not be drawn: {reason}"))
