"""Rebuild tables, figures and the page from what is in results/ (and in runs/, where there is one).

    python -m experiments.report                        everything under results/, and results/report.html
    python -m experiments.report --results FOLDER       another results folder
    python -m experiments.report --page                 the page alone, from the tables and figures that are there
    python -m experiments.report --animate FOLDER       trace the sampling of this run or saved model into results/demo/

Figures whose arrays are not on this machine keep their files. Without --animate, the first CDRL run of table 1 is
traced where there is one and results/demo/ is not there yet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cdrl.errors import UserError
from experiments.report import animation, drawing, page, tables
from experiments.report.study import Study, studies


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="results folder (default: results)")
    parser.add_argument("--animate", type=Path, metavar="FOLDER", help="a run or a saved model to trace")
    parser.add_argument("--page", action="store_true", help="leave tables and figures as they are")
    options = parser.parse_args(arguments)
    try:
        return _build(options.results, options.animate, options.page)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _build(results: Path, model: Path | None, page_alone: bool) -> int:
    if not results.is_dir():
        raise UserError(f"there is no folder {results}; run an experiment first, or name another with --results")
    found = studies(results)
    if model is None and not (results / "demo" / "trajectory.png").exists():
        model = next(filter(None, map(_traceable, found)), None)
    if model is not None:
        animation.write(animation.trained_sampler(model), results / "demo")
    for study in [] if page_alone else found:
        drawn = drawing.write(study)
        tables.write(study)
        print(f"{study.name} {study.scale}: table" + "".join(f", {name}" for name in drawn))
    print(f"written: {page.build(results)}")
    return 0


def _traceable(study: Study) -> Path | None:
    """Table 1's first finished CDRL run, where it is on this machine."""
    runs = [study.located(e["run"]) for row in study.rows if row["method"] == "cdrl" for e in row["evaluations"]]
    return next((run for run in runs if study.name == "table1" and (run / "status.json").exists()), None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
