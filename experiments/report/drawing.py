"""Draw a study's figures. Where its runs are on another machine, the committed files stay: cells alone draw less."""

from __future__ import annotations

import importlib
import importlib.util

from cdrl.errors import UserError
from experiments.report import style
from experiments.report.study import MissingArray, Study


def write(study: Study) -> list[str]:
    """Write every figure that can be drawn as PNG and SVG; returns the names of those written.

    Raises:
        UserError: the manifest names a figure that has no module.
    """
    written = []
    for module_name in study.figures:
        module = f"experiments.report.figures.{module_name}"
        if importlib.util.find_spec(module) is None:
            raise UserError(f"experiment '{study.name}' names figure '{module_name}', but there is no {module}")
        try:
            drawn = importlib.import_module(module).draw(study)
        except MissingArray:
            continue
        for name, figure in drawn.items():
            if (study.folder / f"{name}.png").exists() and not study.at_hand:
                continue
            style.save(figure, study.folder, name)
            written.append(name)
    return written
