"""Cells to tables: one column per data set, metric and protocol; two protocols never share a column.

A row of an experiment is one row of the table, or several where its cells are about several numbers of steps, masks,
levels …: `experiments.measurement.ABOUT`. What a number is compared with has a column of its own.

A value is printed with its 95 % interval over seeds, both to the decimal place of the interval's second significant
digit, so that digits without meaning are not shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
"""What rivals have in common: no mask is better than another."""
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "↓": r"$\downarrow$",
    "↑": r"$\uparrow$", "–": "--", "−": "$-$", "λ": r"$\lambda$", "σ": r"$\sigma$", "∅": r"$\emptyset$", "²": "$^2$",
    "\u00a0": "~", "<": r"\textless{}", ">": r"\textgreater{}", "†": r"\dag{}", "‡": r"\ddag{}",
}  # fmt: skip
_MARK = {"unconfirmed": "†", "conflicting": "‡"}
_MEANING = {"unconfirmed": "† unconfirmed", "conflicting": "‡ sources disagree"}


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
        lines = [_pipes(self.header), _pipes(["---"] + ["---:"] * (len(self.header) - 1))]
        for number, row in enumerate(self.body):
            lines.append(_pipes([f"**{text}**" if (number, c) in self.best else text for c, text in enumerate(row)]))
        return f"{self.caption}\n\n" + "\n".join(lines) + "\n"

    def latex(self) -> str:
        """A booktabs table."""

        def line(row: Sequence[str], number: int = -1) -> str:
            cells = [latex_escape(text) for text in row]
            bold = [rf"\textbf{{{text}}}" if (number, c) in self.best else text for c, text in enumerate(cells)]
            return "    " + " & ".join(bold) + r" \\"

        body = [line(row, number) for number, row in enumerate(self.body)]
        return "\n".join(
            [
                r"% needs \usepackage{booktabs}",
                r"\begin{table}",
                r"  \centering",
                rf"  \caption{{{latex_escape(self.caption)}}}",
                rf"  \begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}",
                r"    \toprule",
                line(self.header),
                r"    \midrule",
                *body,
                r"    \bottomrule",
                r"  \end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def plain(self) -> str:
        """Columns aligned with spaces, for a terminal."""
        rows = [self.header, *self.body]
        widths = [max(len(row[column]) for row in rows) for column in range(len(self.header))]
        first, *others = widths
        lines = [
            "  ".join([row[0].ljust(first), *(text.rjust(width) for text, width in zip(row[1:], others, strict=True))])
            for row in rows
        ]
        rule = "  ".join("-" * width for width in widths)
        return "\n".join([self.caption, "", lines[0].rstrip(), rule, *(line.rstrip() for line in lines[1:])])


def write(study: Study) -> list[Table]:
    """Write table.md and table.tex beside the cells."""
    tables = build(study)
    write_text(study.folder / "table.md", "\n".join(table.markdown() for table in tables))
    write_text(study.folder / "table.tex", "\n".join(table.latex() for table in tables))
    return tables


def build(study: Study) -> list[Table]:
    """A study's cells as tables: rows that share no column, however indirectly, stand in tables of their own."""
    cells = study.cells.fillna({"against": ""})
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

    # One line per row, with the facts that its cells share.
    columns = list(cells[column_keys].drop_duplicates().itertuples(index=False, name=None))
    facts = [name for name in _FACTS if any(_FACTS[name](cell) != _BLANK for _, cell in cells.iterrows())]
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
        body.append((str(first["name"]), *map(_measured, chosen), *(_joined(_FACTS[name], group) for name in facts)))

    several = cells["dataset"].nunique() > 1
    titles = [_title(dict(zip(column_keys, column, strict=True)), several) for column in columns]
    better = [metric(column[column_keys.index("metric")]).better for column in columns]
    return Table(("", *titles, *facts), tuple(body), _caption(study, cells), _best(better, values, rivals))


def _measured(cell: pd.Series | None) -> str:
    return _BLANK if cell is None else with_interval(cell["value"], cell["low"], cell["high"])


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


def _title(column: Mapping[str, Any], several: bool) -> str:
    """A column's title; its data set where there are several."""
    against = f"vs {column['against']}" if column["against"] else ""
    about = " ".join(filter(None, (column["dataset"] if several else "", against, column.get("at", ""))))
    title = metric(column["metric"]).axis(column["protocol"])
    return f"{about}: {title}" if about else title


def _best(
    better: Sequence[str], values: Sequence[Sequence[float]], rivals: Sequence[str | None]
) -> frozenset[tuple[int, int]]:
    """The best values of each column among rows that are rivals, ties included; none where one row is measured.

    Args:
        better: "lower", "higher" or "" for each column.
        values: by row and column.
        rivals: rows with the same task are compared; None for reference rows, which no row is compared with.
    """
    best = set()
    for number, direction in enumerate(better):
        for group in set(rivals) - {None}:
            measured = [
                (row[number], place)
                for place, (row, task) in enumerate(zip(values, rivals, strict=True))
                if task == group and math.isfinite(row[number])
            ]
            if direction and len(measured) > 1:
                record = (min if direction == "lower" else max)(value for value, _ in measured)
                best |= {(place, number + 1) for value, place in measured if value == record}
    return frozenset(best)


def _caption(study: Study, cells: pd.DataFrame) -> str:
    protocols = ", ".join(dict.fromkeys(cells["protocol"].astype(str)))
    devices = ", ".join(dict.fromkeys(cells["device"].dropna().astype(str)))
    data = ", ".join(dict.fromkeys(cells["dataset"].astype(str)))
    title = study.title if study.title.endswith("?") else study.title.rstrip(".") + "."
    text = (
        f"{title} Scale {study.scale}{_changes(study)}; data {data}; protocol {protocols}; {devices}. "
        "Mean and 95 % interval over training seeds. Budget (training, × images) and NFE (per sample) count "
        "energy-gradient evaluations, or as much work of another network."
    )
    used = [meaning for status, meaning in _MEANING.items() if (cells["published_status"] == status).any()]
    if cells["published"].notna().any():
        text += " Published numbers are the papers' own, at their scale" + "".join(f"; {item}" for item in used) + "."
    return text


def _changes(study: Study) -> str:
    """What makes this another experiment than the scale's own."""
    changed = study.provenance.get("changed", [])
    named = f"with {', '.join(changed)}" if len(changed) <= _NAMED else f"with {len(changed)} settings changed"
    return f", {named}" if changed else ""


def _count(column: str) -> Any:
    def text(cell: Mapping[str, Any]) -> str:
        value = cell.get(column)
        return f"{round(value):,}" if value is not None and not pd.isna(value) and value != 0 else _BLANK

    return text


def _seconds(column: str) -> Any:
    def text(cell: Mapping[str, Any]) -> str:
        value = cell.get(column)
        return significant(float(value), 3) if value is not None and not pd.isna(value) and value > 0 else _BLANK

    return text


def _published(cell: Mapping[str, Any]) -> str:
    value, status = cell.get("published"), cell.get("published_status")
    if value is None or pd.isna(value) or value == "":
        return _BLANK
    return f"{value}{_MARK.get(str(status), '')}"


def verdict(cell: Any) -> str:
    """A cell's verdict; "–" where nothing was published that it could agree with."""
    text = str(cell.get("verdict") or _BLANK)
    return _BLANK if text == "different-scale" and _published(cell) == _BLANK else text


def _note(cell: Mapping[str, Any]) -> str:
    """What went wrong, if anything did: which seeds diverged, and when."""
    text = cell.get("note")
    return _BLANK if text is None or pd.isna(text) or not text else str(text)


def _joined(fact: Any, group: pd.DataFrame) -> str:
    """A fact of a row's cells: one text where they agree."""
    texts = dict.fromkeys(fact(cell) for _, cell in group.iterrows())
    known = [text for text in texts if text != _BLANK]
    return ", ".join(known) or _BLANK


_FACTS: Mapping[str, Any] = {
    "Published": _published,
    "Verdict": verdict,
    "Seeds": _count("seeds"),
    "Samples": _count("samples"),
    "Budget": _count("budget"),
    "NFE": _count("grad_evals"),
    "Training (s)": _seconds("train_seconds"),
    "Sampling (s)": _seconds("sample_seconds"),
    "Note": _note,
}


def _pipes(row: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", r"\|") for text in row) + " |"
