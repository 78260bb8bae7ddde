"""Cells to tables: one column per data set, metric and protocol; two protocols never share a column.

A row of an experiment is one row of the table, or several where its cells are about several numbers of steps, masks,
levels …: `experiments.measurement.ABOUT`. What a number is compared with has a column of its own.

A value is printed with its 95 % interval over seeds, both to the decimal place of the interval's second significant
digit, so that digits without meaning are not shown. Bold marks every row that a test over seeds does not tell from the
best, where it tells some row from it: never the luckiest mean alone. How far rows are apart, and how sure that is,
stands in a table of differences.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments import checksums
from experiments.files import one_line
from experiments.measurement import Difference
from experiments.metrics import metric
from experiments.report.study import REFERENCES, Study

_BLANK = "–"
_NAMED = 4
"""Changed settings that a caption names; provenance.json has all."""
_COLUMN = ["dataset", "against", "metric", "protocol"]
_ROW = ["row", "name"]
_TASK = ("at", "mask", "image_size")
"""Columns that rivals share: no mask is better than another."""
_WAY = ("steps", "weight", "variant", "trained")
"""Columns that tell apart the lines of a row with one task."""
_BASELINE = "cdrl"
"""The row that others are compared with; without it, the first of a table."""
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "↓": r"$\downarrow$",
    "↑": r"$\uparrow$", "–": "--", "−": "$-$", "λ": r"$\lambda$", "σ": r"$\sigma$", "∅": r"$\emptyset$", "²": "$^2$",
    "\u00a0": "~", "<": r"\textless{}", ">": r"\textgreater{}", "†": r"\dag{}", "‡": r"\ddag{}",
    "§": r"\S{}",
}  # fmt: skip
_MARKDOWN = re.compile(r"[\\`*~|$]|(?<![^\W_])_|_(?![^\W_])|(?<=\])[(\[:]|<(?![ =])|&(?=#?\w+;)|^[#>=]|^[+-](?![\d.])")
"""What Markdown, or a renderer that lets HTML through, reads as markup: our own "p < 0.001" and "[1, 2]" are none."""
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
_SURVIVORS = "§"
"""Behind a mean of the seeds that did not diverge, where others did."""


@dataclass(frozen=True)
class Table:
    """A table ready to be written in any form.

    Attributes:
        header, body: text, cell by cell, on one line each; the first column names the row.
        best: (row, column) of the values that are printed bold.
    """

    header: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    caption: str
    best: frozenset[tuple[int, int]] = frozenset()

    def __post_init__(self) -> None:  # names of rows and data sets are what users and folders bring
        object.__setattr__(self, "header", tuple(map(one_line, self.header)))
        object.__setattr__(self, "body", tuple(tuple(map(one_line, row)) for row in self.body))
        object.__setattr__(self, "caption", one_line(self.caption))

    def markdown(self) -> str:
        """A GitHub table with its caption above."""
        header, *body = self._escaped(markdown_escape, "**{}**")
        rows = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
        return f"{markdown_escape(self.caption)}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)

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
        """Header and body in a markup language, with ``best`` in ``bold``."""
        body = [[escape(text) for text in row] for row in self.body]
        for row, column in self.best:
            body[row][column] = bold.format(body[row][column])
        return [[escape(title) for title in self.header], *body]


@dataclass(frozen=True)
class _Line:
    """A line of a table.

    Attributes:
        name: for people.
        cells: of the columns; None where nothing was to be measured.
        group: the same cells, with the facts that the line tells beside them.
        task: lines with the same are rivals.
        reference: no rival of any: a floor or a ceiling.
    """

    name: str
    cells: tuple[pd.Series | None, ...]
    group: pd.DataFrame
    task: str
    reference: bool

    @property
    def first(self) -> pd.Series:
        """Any of the cells: what the line is about is the same in all."""
        return self.group.iloc[0]

    @property
    def way(self) -> tuple[str, ...]:
        """What tells it from other lines of its row."""
        return tuple(str(self.first[name]) for name in _WAY)


@dataclass(frozen=True)
class _Layout:
    """Cells in lines and columns, with each column's title and the direction of its metric."""

    cells: pd.DataFrame
    titles: tuple[str, ...]
    better: tuple[str, ...]
    lines: tuple[_Line, ...]


def write(study: Study) -> list[Table]:
    """Write table.md and table.tex beside the cells. Raises `UserError` where one cannot be: then both stay."""
    tables = build(study)
    checksums.write(study.folder, {"table.md": markdown(tables), "table.tex": latex(tables)})
    return tables


def markdown(tables: list[Table]) -> str:
    """table.md."""
    return "\n".join(table.markdown() for table in tables)


def latex(tables: list[Table]) -> str:
    """table.tex."""
    return "\n".join(table.latex() for table in tables)


def build(study: Study) -> list[Table]:
    """A study's cells as tables, each with its table of differences behind it where any can be tested.

    Rows that share no column, however indirectly, stand in tables of their own.
    """
    cells = study.cells
    parts: list[tuple[set[Any], set[Any]]] = []
    for row, group in cells.groupby(_ROW, sort=False):
        rows, columns = {row}, set(group[_COLUMN].itertuples(index=False, name=None))
        joined = [part for part in parts if part[1] & columns]
        parts = [part for part in parts if part not in joined]
        parts.append((rows.union(*(part[0] for part in joined)), columns.union(*(part[1] for part in joined))))
    row_of_cell = pd.Series(list(cells[_ROW].itertuples(index=False, name=None)), index=cells.index)
    groups = sorted((cells[row_of_cell.isin(rows)] for rows, _ in parts), key=lambda group: int(group.index[0]))
    layouts = [_layout(group) for group in groups]
    return [table for layout in layouts for table in (_table(study, layout), _differences(study, layout)) if table]


def _layout(cells: pd.DataFrame) -> _Layout:
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

    # One line per row.
    lines = []
    for _, group in cells.groupby(row_keys, sort=False, dropna=False):
        by_column = {tuple(cell[key] for key in column_keys): cell for _, cell in group.iterrows()}
        first = group.iloc[0]
        task = " ".join(str(first[key]) for key in _TASK if key not in column_keys)
        chosen = tuple(by_column.get(column) for column in columns)
        lines.append(_Line(str(first["name"]), chosen, group, task, first["method"] in REFERENCES))
    return _Layout(cells, tuple(titles), tuple(better), tuple(lines))


def _table(study: Study, layout: _Layout) -> Table:
    """Every number, with the facts that the cells of a line share; a fact has a column where a cell says something."""
    cells = layout.cells
    facts = pd.DataFrame([_facts(cell) for _, cell in cells.iterrows()], cells.index)
    for name in ("K", "b²"):  # settings are told where lines differ, or sampling from training
        if facts[name].nunique() == 1 and "(" not in facts[name].iloc[0]:
            facts[name] = ""
    shown = [str(name) for name in facts if facts[name].any()]
    body = []
    for line in layout.lines:
        numbers = (_BLANK if cell is None else _number(cell) for cell in line.cells)
        texts = (", ".join(filter(None, facts[name][line.group.index].unique())) for name in shown)
        body.append((line.name, *numbers, *(text or _BLANK for text in texts)))
    best = frozenset(_best(study, layout))
    return Table(("", *layout.titles, *shown), tuple(body), _caption(study, cells, bold=bool(best)), best)


def _best(study: Study, layout: _Layout) -> Iterator[tuple[int, int]]:
    """(line, column) of the cells that no test tells from the best of their task, where a test tells some cell from it.

    The best has the best mean. A single seed cannot be tested, and a mean of survivors is not the mean of what was
    started: neither is best, nor as good.
    """
    for column, better in enumerate(layout.better):
        measured = {
            number: cell
            for number, line in enumerate(layout.lines)
            if (cell := line.cells[column]) is not None and not line.reference and math.isfinite(cell["value"])
        }
        for task in dict.fromkeys(layout.lines[number].task for number in measured):
            whole = {
                number: cell
                for number, cell in measured.items()
                if layout.lines[number].task == task and not _of_survivors(cell)
            }
            if better and len(whole) > 1:
                record = (min if better == "lower" else max)(whole, key=lambda number: whole[number]["value"])
                tests = {number: study.difference(cell, whole[record]) for number, cell in whole.items()}
                alike = {number for number, test in tests.items() if test and not test.shown}
                if any(test and test.shown for test in tests.values()):
                    yield from ((number, column + 1) for number in alike)


def _differences(study: Study, layout: _Layout) -> Table | None:
    """Each line minus the baseline of its task, tested; None where nothing can be."""
    lines = [line for line in layout.lines if not line.reference]
    rows = [str(line.first["row"]) for line in lines]
    baseline = _BASELINE if _BASELINE in rows else next(iter(rows), "")
    columns = [number for number, better in enumerate(layout.better) if better]

    # Lines of the baseline's own row are compared with its first, others with the one that is about the same.
    body, names = [], []
    for line, row in zip(lines, rows, strict=True):
        candidates = [one for one, name in zip(lines, rows, strict=True) if (name, one.task) == (baseline, line.task)]
        if row != baseline and len(candidates) > 1:
            candidates = [one for one in candidates if one.way == line.way]
        if not candidates or candidates[0] is line:
            continue
        texts, tests = [], []
        for ours, theirs in ((line.cells[column], candidates[0].cells[column]) for column in columns):
            test = None if ours is None or theirs is None else study.difference(ours, theirs)
            texts.append(difference_text(test) if test else _BLANK)
            tests.append(test.test if test else "")
        if any(tests):
            body.append((f"{line.name} − {candidates[0].name}", *texts, ", ".join(filter(None, dict.fromkeys(tests)))))
            names.append(candidates[0].name)
    if not body:
        return None
    caption = (
        f"{_title(study)} Differences from {', '.join(dict.fromkeys(names))}: the mean with its 95 % interval, and p "
        "of a two-sided t-test over training seeds, paired where two rows share them, else Welch's; not corrected for "
        "how many there are. Of rows with runs that diverged, the others."
    )
    return Table(("", *(layout.titles[column] for column in columns), "Test"), tuple(body), caption)


def difference_text(test: Difference) -> str:
    """A tested difference as text: ``"+14.9 [12.3, 17.6], p = 0.0021"``."""
    text = with_interval(test.value, test.low, test.high)
    p = "p < 0.001" if test.p < 0.001 else f"p = {significant(test.p, 2)}"
    return f"{'' if text.startswith(('-', '0 ')) else '+'}{text}, {p}"


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


def markdown_escape(text: str) -> str:
    """Text with everything that Markdown would read as markup escaped, HTML too."""
    entities = {"<": "&lt;", "&": "&amp;"}
    return _MARKDOWN.sub(lambda match: entities.get(match[0], f"\\{match[0]}"), text)


def latex_escape(text: str) -> str:
    """Text with everything that LaTeX would read as markup escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


def _title(study: Study) -> str:
    return study.title if study.title.endswith("?") else study.title.rstrip(".") + "."


def _caption(study: Study, cells: pd.DataFrame, bold: bool) -> str:
    data, protocols, devices = (", ".join(cells[name].unique()) for name in ("dataset", "protocol", "device"))
    changed = study.provenance.get("changed", [])
    named = ", ".join(changed) if len(changed) <= _NAMED else f"{len(changed)} settings changed"
    scale = f"{study.scale}, with {named}" if changed else study.scale
    text = (
        f"{_title(study)} Scale {scale}; data {data}; protocol {protocols}; {devices}. "
        "Mean and 95 % interval over training seeds."
    )
    if bold:
        text += " Bold: not distinguishable from the best (t-test over seeds at 5 %)."
    text += (
        " Updates are training iterations. Training cost (a run) and sampling cost (a sample) count input gradients of "
        "the energy network on one image, and the work of every other network in that unit."
    )
    if (cells["diverged"] != "").any():
        text += " Diverged: runs of those started; their numbers are in no mean."
    if any(math.isfinite(cell["value"]) and _of_survivors(cell) for _, cell in cells.iterrows()):
        text += f" {_SURVIVORS} Runs of this row diverged: the number is of the others alone, and never the best."
    used = [meaning for status, meaning in _MARKED.items() if (cells["published_status"] == status).any()]
    if (cells["published"] != "").any():
        text += " Published numbers are the papers' own, at their scale" + "".join(f"; {item}" for item in used) + "."
    return text


def _of_survivors(cell: pd.Series) -> bool:
    """Whether a run of those started diverged, in training or in sampling."""
    return cell["verdict"] == "diverged" or not (cell["diverged"] or "0 ").startswith("0 ")


def _number(cell: pd.Series) -> str:
    text = with_interval(*cell[["value", "low", "high"]])
    return text + _SURVIVORS if text != _BLANK and _of_survivors(cell) else text


def verdict(cell: pd.Series) -> str:
    """A cell's verdict; "–" where nothing was published that it could agree with."""
    return _BLANK if cell["verdict"] == "different-scale" and not cell["published"] else cell["verdict"] or _BLANK


def _facts(cell: pd.Series) -> dict[str, str]:
    """What a table says beside a cell's number, by title; empty where there is nothing to say."""
    steps, sampled = (f"{cell[name]:g}" if cell[name] > 0 else "" for name in ("chain_steps", "sampling_steps"))
    costs = {"Updates": "updates", "Training cost": "train_cost", "Sampling cost": "grad_evals"}
    seconds = {"Training (s)": "train_seconds", "Sampling (s)": "sample_seconds"}

    def counts(names: dict[str, str]) -> dict[str, str]:
        return {title: f"{round(cell[name]):,}" if cell[name] > 0 else "" for title, name in names.items()}

    return {
        "Published": cell["published"] and cell["published"] + _MARKED.get(cell["published_status"], "")[:1],
        "Verdict": verdict(cell).replace(_BLANK, ""),
        **counts({"Seeds": "seeds"}),
        "Diverged": cell["diverged"],
        "K": steps + (f" (sampling {sampled})" if steps and sampled not in ("", steps) else ""),
        "b²": f"{cell['step_variance']:g}" if cell["step_variance"] > 0 else "",
        **counts({"Samples": "samples", **costs}),
        **{title: significant(cell[name], 3) if cell[name] > 0 else "" for title, name in seconds.items()},
        "Note": cell["note"],
    }
