"""Cells to tables: one column per data set, metric and protocol; two protocols never share a column.

A row of an experiment is one row of the table, or several where its cells are about several numbers of steps, masks,
levels …: `experiments.measurement.ABOUT`. What a number is compared with has a column of its own.

A value is printed with its 95 % interval over seeds, both to the decimal place of the interval's second significant
digit, so that digits without meaning are not shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.files import write_text
from experiments.metrics import metric
from experiments.report.study import REFERENCES, Study

_BLANK = "–"
_NAMED = 4
"""Changed settings that a caption names; provenance.json has all."""
_COLUMN = ["dataset", "against", "metric", "protocol"]
_ROW = ["row", "name"]
_TASK = ("at", "mask", "image_size")
"""Columns that rivals share: no mask is better than another."""
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "↓": r"$\downarrow$",
    "↑": r"$\uparrow$", "–": "--", "−": "$-$", "λ": r"$\lambda$", "σ": r"$\sigma$", "∅": r"$\emptyset$", "²": "$^2$",
    "\u00a0": "~", "<": r"\textless{}", ">": r"\textgreater{}", "†": r"\dag{}", "‡": r"\ddag{}",
}  # fmt: skip
_LATEX_TABLE = r"""%% needs \usepackage{booktabs}
\begin{table}
  \centering
  \caption{%(caption)s}
  \begin{tabular}{%(columns)s}
    \toprule
%(header)s
    \midrule
%(body)s
    \bottomrule
  \end{tabular}
\end{table}
"""
_MARKED = {"unconfirmed": "† unconfirmed", "conflicting": "‡ sources disagree"}


@dataclass(frozen=True)
class Table:
    """A table ready to be written in any form.

    Attributes:
        header, body: text, cell by cell; the first column names the row.
        best: (row, column) of the best value in each column that has a direction.
    """

    header: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    caption: str
    best: frozenset[tuple[int, int]] = frozenset()

    def markdown(self) -> str:
        """A GitHub table with its caption above."""
        header, *body = self._escaped(lambda text: text.replace("|", r"\|"), "**{}**")
        rows = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
        return f"{self.caption}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)

    def latex(self) -> str:
        """A booktabs table."""
        rows = self._escaped(latex_escape, r"\textbf{{{}}}")
        header, *body = ("    " + " & ".join(row) + r" \\" for row in rows)
        columns = "l" + "r" * (len(self.header) - 1)
        parts = {"caption": latex_escape(self.caption), "columns": columns, "header": header, "body": "\n".join(body)}
        return _LATEX_TABLE % parts

    def plain(self) -> str:
        """Columns aligned with spaces, for a terminal."""
        rows = [self.header, *self.body]
        widths = [max(len(row[column]) for row in rows) for column in range(len(self.header))]
        rows.insert(1, tuple("-" * width for width in widths))
        sides = ["<", *[">"] * (len(widths) - 1)]
        lines = ["  ".join(map("{:{}{}}".format, row, sides, widths)).rstrip() for row in rows]
        return "\n".join([self.caption, "", *lines])

    def _escaped(self, escape: Callable[[str], str], bold: str) -> list[list[str]]:
        """Header and body in a markup language, the best values in ``bold``."""
        body = [[escape(text) for text in row] for row in self.body]
        for row, column in self.best:
            body[row][column] = bold.format(body[row][column])
        return [[escape(title) for title in self.header], *body]


def write(study: Study) -> list[Table]:
    """Write table.md and table.tex beside the cells."""
    tables = build(study)
    write_text(study.folder / "table.md", "\n".join(table.markdown() for table in tables))
    write_text(study.folder / "table.tex", "\n".join(table.latex() for table in tables))
    return tables


def build(study: Study) -> list[Table]:
    """A study's cells as tables: rows that share no column, however indirectly, stand in tables of their own."""
    cells = study.cells
    parts: list[tuple[set[Any], set[Any]]] = []
    for row, group in cells.groupby(_ROW, sort=False):
        rows, columns = {row}, set(group[_COLUMN].itertuples(index=False, name=None))
        joined = [part for part in parts if part[1] & columns]
        parts = [part for part in parts if part not in joined]
        parts.append((rows.union(*(part[0] for part in joined)), columns.union(*(part[1] for part in joined))))
    row_of_cell = pd.Series(list(cells[_ROW].itertuples(index=False, name=None)), index=cells.index)
    groups = [cells[row_of_cell.isin(rows)] for rows, _ in parts]
    return [_table(study, group) for group in sorted(groups, key=lambda group: int(group.index[0]))]


def _table(study: Study, cells: pd.DataFrame) -> Table:
    # Several columns at several levels would be very many columns: then every level is a row.
    row_keys, column_keys = list(_ROW), list(_COLUMN)
    cells = cells.assign(at=cells["level"].map(lambda level: "" if pd.isna(level) else f"level {level:g}"))
    if cells["at"].nunique() > 1 and len(cells[_COLUMN].drop_duplicates()) > 1:
        row_keys.append("at")
        rows = list(dict.fromkeys(cells["row"] + cells["name"]))
        position = (cells["row"] + cells["name"]).map(rows.index)
        cells = cells.iloc[np.lexsort((cells["level"], position))]
        cells = cells.assign(name=cells["name"] + cells["at"].map(lambda at: at and f", {at}"))
    elif cells["at"].nunique() > 1:
        column_keys.append("at")

    # A column's title: its data set where there are several, what is compared with, the level; the metric.
    columns = list(cells[column_keys].drop_duplicates().itertuples(index=False, name=None))
    titles, better = [], []
    for column in (dict(zip(column_keys, column, strict=True)) for column in columns):
        quantity = metric(column["metric"])
        dataset = column["dataset"] if cells["dataset"].nunique() > 1 else ""
        against = f"vs {column['against']}" if column["against"] else ""
        about = " ".join(filter(None, (dataset, against, column.get("at", ""))))
        titles.append((f"{about}: " if about else "") + quantity.axis(column["protocol"]))
        better.append(quantity.better)

    # One line per row, with the facts that its cells share; a fact has a column where a cell says something.
    facts = pd.DataFrame([_facts(cell) for _, cell in cells.iterrows()], cells.index)
    shown = [str(name) for name in facts if facts[name].any()]
    body: list[tuple[str, ...]] = []
    values: list[list[float]] = []
    rivals: list[str | None] = []
    for _, group in cells.groupby(row_keys, sort=False, dropna=False):
        by_column = {tuple(cell[key] for key in column_keys): cell for _, cell in group.iterrows()}
        chosen = [by_column.get(column) for column in columns]
        first = group.iloc[0]
        values.append([math.nan if cell is None else float(cell["value"]) for cell in chosen])
        task = " ".join(str(first[key]) for key in _TASK if key not in column_keys)
        rivals.append(None if first["method"] in REFERENCES else task)
        numbers = (_BLANK if cell is None else with_interval(*cell[["value", "low", "high"]]) for cell in chosen)
        texts = (", ".join(filter(None, facts[name][group.index].unique())) for name in shown)
        body.append((str(first["name"]), *numbers, *(text or _BLANK for text in texts)))
    return Table(("", *titles, *shown), tuple(body), _caption(study, cells), _best(better, values, rivals))


def with_interval(value: float, low: float, high: float) -> str:
    """A value as text: ``"4.31 [4.18, 4.44]"``; four significant digits without an interval; "–" for nothing."""
    if not math.isfinite(value):
        return _BLANK
    if not high - low > 1e-9 * abs(value):  # a single seed, or nothing random
        return significant(value, 4)
    places = min(6, max(0, 1 - math.floor(math.log10((high - low) / 2))))
    return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def significant(value: float, digits: int) -> str:
    """A number to ``digits`` significant digits, never in exponent notation between 1e-4 and 1e15."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else _BLANK
    places = digits - 1 - math.floor(math.log10(abs(value)))
    if places > digits + 3:
        return f"{value:.{digits - 1}e}"
    return f"{round(value, places):,.{max(places, 0)}f}"


def latex_escape(text: str) -> str:
    """Text with everything that LaTeX would read as markup escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


def _best(
    better: Sequence[str], values: Sequence[Sequence[float]], rivals: Sequence[str | None]
) -> frozenset[tuple[int, int]]:
    """The best values of each column among rows that are rivals, ties included; none where one row is measured.

    Args:
        better: "lower", "higher" or "" for each column.
        values: by row and column.
        rivals: rows with the same task are compared; None for reference rows, which no row is compared with.
    """
    best: set[tuple[int, int]] = set()
    table = pd.DataFrame(values).replace([math.inf, -math.inf], math.nan)
    tasks = np.array(rivals, dtype=object)
    for number, direction in enumerate(better):
        if direction:
            column = table[number].groupby(tasks)
            record = column.transform("min" if direction == "lower" else "max")
            winners = (column.transform("count") > 1) & (table[number] == record)
            best |= {(row, number + 1) for row in np.flatnonzero(winners).tolist()}
    return frozenset(best)


def _caption(study: Study, cells: pd.DataFrame) -> str:
    data, protocols, devices = (", ".join(cells[name].unique()) for name in ("dataset", "protocol", "device"))
    title = study.title if study.title.endswith("?") else study.title.rstrip(".") + "."
    changed = study.provenance.get("changed", [])
    named = ", ".join(changed) if len(changed) <= _NAMED else f"{len(changed)} settings changed"
    scale = f"{study.scale}, with {named}" if changed else study.scale
    text = (
        f"{title} Scale {scale}; data {data}; protocol {protocols}; {devices}. "
        "Mean and 95 % interval over training seeds. Budget (training, × images) and NFE (per sample) count "
        "energy-gradient evaluations, or as much work of another network."
    )
    used = [meaning for status, meaning in _MARKED.items() if (cells["published_status"] == status).any()]
    if (cells["published"] != "").any():
        text += " Published numbers are the papers' own, at their scale" + "".join(f"; {item}" for item in used) + "."
    return text


def verdict(cell: pd.Series) -> str:
    """A cell's verdict; "–" where nothing was published that it could agree with."""
    return _BLANK if cell["verdict"] == "different-scale" and not cell["published"] else cell["verdict"] or _BLANK


def _facts(cell: pd.Series) -> dict[str, str]:
    """What a table says beside a cell's number, by title; empty where there is nothing to say."""
    counts = {"Seeds": "seeds", "Samples": "samples", "Budget": "budget", "NFE": "grad_evals"}
    seconds = {"Training (s)": "train_seconds", "Sampling (s)": "sample_seconds"}
    return {
        "Published": cell["published"] and cell["published"] + _MARKED.get(cell["published_status"], "")[:1],
        "Verdict": verdict(cell).replace(_BLANK, ""),
        **{title: f"{round(cell[name]):,}" if cell[name] > 0 else "" for title, name in counts.items()},
        **{title: significant(cell[name], 3) if cell[name] > 0 else "" for title, name in seconds.items()},
        "Note": cell["note"],
    }
