"""Do results follow from what was recorded? Everything is derived again, and whatever differs is named.

Of each ``results/<experiment>/<scale>/``:

    SHA256SUMS        every file is what it was when it was written, and no file is of no command
    provenance.json   names command, commit, device and data, and has a hash for each file that numbers come from;
                      statuses and results on record have those hashes, and so have files of runs that are at hand
    cells.csv         is what `experiments.cells.derived` makes of the record: means, intervals (to ten digits, as
                      processors differ in the last), verdicts; each number has a commit, a device and runs
    verdicts          compare the same model, scale, protocol and settings only
    table.md, .tex    are what `experiments.report.tables` makes of the cells; a column has one protocol

and of a page of words, such as README.md: tables and numbers in it are those of the cells that they name in a comment,

    <!-- table: table1/nano -->                    the table below has rows and columns of that table.md
    6.3 [4.1, 8.5]<!-- = table1/nano cdrl fd -->   a number: folder, row, metric, and what else it is about (level=0);
                                                   ``column=train_seconds`` for another column of the cell,
                                                   ``milliseconds`` for those that a sample takes
    1.7 [0.2, 3.3], p = 0.04<!-- = table1/nano cdrl - short_run fd -->    a tested difference
    7 %<!-- = table1/nano cdrl / noise fd -->      a ratio
    1.6<!-- not measured -->                       a number that is no result

to the last digit printed. A number with decimals, or a percentage, that says nothing of the kind is a failure too, but
for code, pictures' descriptions, "95 % interval" and versions ("≥ 3.10").
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from cdrl.errors import UserError
from experiments import cells, checksums, published
from experiments.files import json_text, read_json, read_text, sha256
from experiments.report import tables
from experiments.report.study import Provenance, Recorded, Study

_AGAIN = "run the experiment again"
_SHOWN = 5
"""Differences of one file that are named; the others are counted."""
_NUMBER = r"[-−+]?\d[\d,]*(?:\.\d+)?"
_MARKED = re.compile(
    rf"(?P<value>{_NUMBER})(?: \[(?P<low>{_NUMBER}), (?P<high>{_NUMBER})\])?(?:, p (?P<sign>[=<]) (?P<p>\d\.\d+))?"
    r"[*_]{0,2}(?P<unit> ?%| ms| s| nats)?[*_]{0,2}<!-- = (?P<what>[^>]+?) -->"
)
_UNMARKED = re.compile(r"\d+\.\d+|\d+ ?%")
_NO_RESULT = re.compile(rf"{_NUMBER}(?: ?%)?[*_]{{0,2}}<!-- not measured -->")
_SKIPPED = re.compile(r"```.*?```|`[^`\n]*`|!\[[^\]]*\]|\]\([^)]*\)|95 % interval|≥ \d+\.\d+|<!--.*?-->", re.DOTALL)
_TABLE = re.compile(r"<!-- table: (?P<folder>[^ >]+) -->\n+(?P<lines>(?:\|.*\n)+)")


@dataclass
class Findings:
    """What was looked at.

    Attributes:
        failures: what does not follow, a line each.
        folders, numbers: of experiments, of cells with a value.
        inputs, at_hand: files that numbers and figures come from, and how many of them are on this machine.
    """

    failures: list[str] = field(default_factory=list)
    folders: int = 0
    numbers: int = 0
    inputs: int = 0
    at_hand: int = 0

    def __str__(self) -> str:
        """The same for people."""
        seen = (
            f"{self.folders} experiments, {self.numbers:,} numbers; of {self.inputs:,} files of runs that they come "
            f"from {self.at_hand:,} are on this machine"
        )
        if not self.failures:
            return f"everything follows from what was recorded: {seen}"
        return "\n".join([*self.failures, f"{len(self.failures)} failures ({seen})"])


def verify(results: Path, pages: tuple[Path, ...] = ()) -> Findings:
    """Derive everything under ``results`` again, and check pages that quote it.

    Raises `UserError` where there is no such folder, or nothing in it.
    """
    folders = sorted(path.parent for path in Path(results).glob("*/*/cells.csv"))
    if not folders:
        raise UserError(f"there are no results in {results}; run an experiment first, or name another with --results")
    findings = Findings(folders=len(folders))
    for folder in folders:
        try:
            findings.failures += _experiment(folder, findings)
        except UserError as error:
            findings.failures.append(f"{folder} cannot be read: {error}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # of an older format
            findings.failures.append(f"{folder} cannot be read: {type(error).__name__}: {error}; {_AGAIN}")
    for found in (_demonstration(Path(results) / "demo"), *(_page(page, Path(results)) for page in pages)):
        try:
            findings.failures += found
        except UserError as error:
            findings.failures.append(str(error))
    return findings


def _experiment(folder: Path, findings: Findings) -> Iterator[str]:
    """One results folder; counts what it looks at."""
    origin = read_json(folder / "provenance.json", Provenance, _AGAIN)
    if not (folder / checksums.NAME).exists() or "inputs" not in origin:
        yield f"{folder} was made before results kept what they come from; make it again: {origin.get('command')}"
        return
    record, study = read_json(folder / "experiment.json", Recorded, _AGAIN), Study.load(folder)
    yield from checksums.differences(folder)
    yield from _inputs(study, record, origin, findings)
    yield from _cells(folder, record, origin)
    yield from _origins(study, origin, findings)
    yield from _verdicts(study, record, origin)
    yield from _tables(study)


def _inputs(study: Study, record: Mapping[str, Any], origin: Mapping[str, Any], findings: Findings) -> Iterator[str]:
    """Statuses and results on record have the hashes of the files they were taken from; so have files at hand."""
    hashes = origin["inputs"]
    evaluations = [evaluation for row in record["rows"] for evaluation in row["evaluations"]]
    for evaluation in evaluations:
        sources = {f"{evaluation['run']}/status.json": evaluation["status"]}
        sources |= {f"{evaluation['folder']}/result.json": evaluation["result"]}
        for path, content in sources.items():
            if (path in hashes) != (content is not None):
                yield f"{study.folder / 'provenance.json'} and experiment.json disagree whether there was {path}"
            elif content is not None and hashlib.sha256(json_text(content).encode()).hexdigest() != hashes[path]:
                yield f"{study.folder / 'experiment.json'}: what it has of {path} is not what that file held"
    for path, digest in hashes.items():
        findings.inputs += 1
        if (place := study.located(path)).exists():
            findings.at_hand += 1
            if sha256(place) != digest:
                yield f"{place} is not the file that {study.folder} was made from"


def _cells(folder: Path, record: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[str]:
    """cells.csv is what the record gives."""
    path, text = folder / "cells.csv", cells.as_csv(cells.derived(record, origin))
    written = read_text(path)
    if written == text:
        return
    lines, expected = (list(csv.reader(io.StringIO(one))) for one in (written, text))
    if lines[0] != expected[0] or len(lines) != len(expected):
        yield f"{path} has other lines or columns than follow from the record"
        return
    pairs = list(zip(*(csv.DictReader(io.StringIO(one)) for one in (written, text)), strict=True))
    wrong = [
        f"{path}: {now['row']}, {now['metric']}: {name} is {was.get(name)}, and {now[name]} follows from the record"
        for was, now in pairs
        for name in now
        if not _same(was[name], now[name])
    ]
    yield from wrong[:_SHOWN]
    if len(wrong) > _SHOWN:
        yield f"{path}: {len(wrong) - _SHOWN} more that do not follow from the record"


def _same(was: str, now: str) -> bool:
    """Equal texts, or numbers but for rounding: NumPy's exponential differs between processors."""
    try:
        return was == now or math.isclose(float(was), float(now), rel_tol=1e-10)
    except ValueError:
        return False


def _origins(study: Study, origin: Mapping[str, Any], findings: Findings) -> Iterator[str]:
    """Each number says where it comes from."""
    where = study.folder / "provenance.json"
    for name in ("command", "commit", "device", "packages"):
        if not origin.get(name):
            yield f"{where} does not say the {name}"
    if not origin["data"].get("sha256"):
        yield f"{where} has no checksum of the data"
    measured = study.cells[study.cells["value"].notna()]
    findings.numbers += len(measured)
    for row, numbers in measured.groupby("row", sort=False):
        what = f"{study.folder / 'cells.csv'}: {row}"
        for commit in sorted(set(" ".join(numbers["commit"]).split())):
            if commit == "unknown" or commit.endswith("-modified"):
                yield f"{what} is of code that no commit has: {commit}"
        for name in ("commit", "device", "runs"):
            if (numbers[name] == "").any():
                yield f"{what} has numbers that do not say their {name}"
        if lost := sorted(set(" ".join(numbers["runs"]).split()) - origin["configs"].keys()):
            yield f"{what} is of runs whose settings are not on record: {', '.join(lost)}"


def _verdicts(study: Study, record: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[str]:
    """A comparison is one of equals: said here once more, apart from `cells.verdict`, which made it."""
    if record["changed"] != origin["changed"]:
        yield f"{study.folder}: experiment.json and provenance.json disagree about what was changed"
    models = {row["row"]: (row["published"] or {}).get("reproduces") for row in record["rows"]}
    compared = study.cells[study.cells["verdict"].isin(["reproduced", "off"])]
    for _, cell in compared.iterrows():
        numbers = [number for number in published.load() if number.text == cell["published"]]
        same_model = any(number.identity == models.get(cell["row"]) for number in numbers if number.identity)
        same_protocol = any(cell["protocol"] in number.protocols for number in numbers)
        reasons = {
            "of another model": not same_model,
            "under another protocol": not same_protocol and pd.notna(cell["value"]),
            "at another scale": record["scale"] != "paper",
            "with changed settings": bool(record["changed"]),
        }
        for reason in (reason for reason, applies in reasons.items() if applies):
            yield f"{study.folder / 'cells.csv'}: {cell['row']}, {cell['metric']} is '{cell['verdict']}', but {reason}"


def _tables(study: Study) -> Iterator[str]:
    """The tables are what the cells give, and no column has two protocols."""
    made = tables.build(study)
    for name, text in (("table.md", tables.markdown(made)), ("table.tex", tables.latex(made))):
        path = study.folder / name
        if not path.exists():
            yield f"{path} is missing; make it with cdrl report"
        elif (written := read_text(path)) != text:
            pairs = zip(written.splitlines(), text.splitlines(), strict=False)
            line = next((number for number, (was, now) in enumerate(pairs, 1) if was != now), len(text.splitlines()))
            yield f"{path}, line {line}, does not follow from cells.csv"
    for table in made:
        for title, times in Counter(table.header).items():
            if times > 1:
                yield f"{study.folder / 'table.md'}: two protocols or more under '{title}'"


def _demonstration(folder: Path) -> Iterator[str]:
    """The trace of a sample, and the weights that come with the repository."""
    if folder.exists() and not (folder / checksums.NAME).exists():
        yield f"{folder} was made before it had checksums; make it again: cdrl report --animate MODEL"
    elif folder.exists():
        yield from checksums.differences(folder)
    for path in sorted(folder.glob("*/model.json")):
        if (path.parent / checksums.NAME).exists():
            yield from checksums.differences(path.parent)
        else:
            yield f"{path.parent} was made before it had checksums; make it again: cdrl export RUN {path.parent}"


def _page(page: Path, results: Path) -> Iterator[str]:
    """The tables and numbers of a page."""

    def without(pattern: re.Pattern[str], text: str) -> str:
        """All else, in the same lines."""
        return pattern.sub(lambda match: "\n" * match[0].count("\n"), text)

    load = cache(Study.load)  # a page has many numbers of one
    text = read_text(page, "bring it back: git checkout")
    for match in _TABLE.finditer(text):
        yield from _quoted_table(page, match["lines"].splitlines(), results / match["folder"] / "table.md")
    text = without(_TABLE, text)
    for match in _MARKED.finditer(text):
        try:
            yield from _quoted_number(page, match, results, load)
        except (UserError, KeyError, ValueError) as error:
            yield f"{page}: '{match[0]}' names no cell: {error}"
    for pattern in (_MARKED, _NO_RESULT, _SKIPPED):
        text = without(pattern, text)
    for number, line in enumerate(text.splitlines(), 1):
        if numbers := _UNMARKED.findall(line):
            yield f"{page}, line {number}: {', '.join(numbers)}: no comment says of which cell"


def _quoted_table(page: Path, lines: list[str], source: Path) -> Iterator[str]:
    """Every cell of a page's table is the one of that row and column in a table of the results."""
    if not source.exists():
        yield f"{page}: there is no {source}"
        return
    known: dict[tuple[str, str], str] = {}
    header: list[str] = []
    for line in read_text(source).splitlines():
        texts = _columns(line)
        if not line.startswith("|"):
            header = []
        elif not header:
            header = texts
        else:
            known |= {(texts[0], title): text for title, text in zip(header, texts, strict=False)}
    titles, *body = map(_columns, lines[:1] + lines[2:])
    for row in body:
        if len(row) != len(titles):
            yield f"{page}: {row[0]} has {len(row)} columns of {len(titles)}"
            continue
        for title, text in zip(titles[1:], row[1:], strict=True):
            if (expected := known.get((row[0], title))) != text:
                yield f"{page}: {row[0]}, {title}: '{text}' is '{expected}' in {source}"


def _columns(line: str) -> list[str]:
    return [text.strip() for text in line.strip().strip("|").split("|")]


def _quoted_number(page: Path, match: re.Match[str], results: Path, load: Callable[[Path], Study]) -> Iterator[str]:
    """A number of a page is the cell's, to its last digit. Raises `ValueError` where it names none, or several."""
    folder, *words = match["what"].split()
    facts = dict(word.split("=", 1) for word in words if "=" in word)
    names = [word for word in words if "=" not in word]
    column = facts.pop("column", "value")
    study = load(results / folder)

    def cell(row: str) -> pd.Series:
        chosen = study.cells[(study.cells["row"] == row) & (study.cells["metric"] == names[-1])]
        for name, value in facts.items():
            texts = chosen[name].map(lambda value: f"{value:g}" if isinstance(value, float) else str(value))
            chosen = chosen[texts == value]
        if len(chosen) != 1:
            raise ValueError(f"{len(chosen)} cells are {row} {names[-1]} {facts or ''}")
        return chosen.iloc[0]

    actual: dict[str, float]
    if len(names) == 4 and names[1] == "-":
        if (test := study.difference(cell(names[0]), cell(names[2]))) is None:
            raise ValueError("a single seed has no tested difference")
        actual = {name: getattr(test, name) for name in ("value", "low", "high", "p")}
    elif len(names) == 4 and names[1] == "/":
        actual = {"value": float(cell(names[0])[column]) / float(cell(names[2])[column])}
    elif column == "milliseconds":
        actual = {"value": 1000 * float(cell(names[0])["sample_seconds"]) / float(cell(names[0])["samples"])}
    elif len(names) == 2:
        chosen = cell(names[0])
        actual = {"value": float(chosen[column]), "low": float(chosen["low"]), "high": float(chosen["high"])}
    else:
        raise ValueError("write folder row metric, or folder row - row metric, or folder row / row metric")

    scale = 100.0 if (match["unit"] or "").strip() == "%" else 1.0
    for name in (name for name in ("value", "low", "high", "p") if match[name]):
        printed = match[name].replace(",", "").replace("−", "-")
        step = 10.0 ** -len(printed.partition(".")[2])
        true = actual.get(name, math.nan) * (1.0 if name == "p" else scale)
        below = name == "p" and match["sign"] == "<"
        if not (true < float(printed) if below else abs(float(printed) - true) <= 0.5001 * step):
            yield f"{page}: '{match[0]}': {name} {printed} is {true:.6g}"
