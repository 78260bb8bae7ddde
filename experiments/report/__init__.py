"""The report: cells → tables, figures, and one HTML page.

python -m experiments.report        rebuilds all of it from what is in results/ (and runs/, where there is one)
"""

from __future__ import annotations

from pathlib import Path


def build_experiment(folder: Path) -> str:
    """Tables and figures of ``results/<experiment>/<scale>``; returns the tables for a terminal.

    Raises:
        UserError: there are no cells.
    """
    from experiments.report import drawing, tables  # the engine imports this package for published numbers alone
    from experiments.report.study import Study

    study = Study.load(folder)
    drawing.write(study)
    return "\n\n".join(table.plain() for table in tables.write(study))
