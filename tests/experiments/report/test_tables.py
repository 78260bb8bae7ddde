from __future__ import annotations

import html
import math
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from cdrl.errors import UserError
from experiments.measurement import Difference
from experiments.report import tables
from experiments.report.study import Study
from tests.experiments.test_files import contents, in_a_child


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (4.3149, 4.18, 4.44, "4.31 [4.18, 4.44]"),
        (1234.4, 1200.0, 1268.0, "1234 [1200, 1268]"),
        (0.99951, 0.9991, 0.9999, "0.99951 [0.99910, 0.99990]"),
        (2.0, math.nan, math.nan, "2.000"),
        (0.1, 0.1, 0.1, "0.1000"),
        (12345.6, math.nan, math.nan, "12,350"),
        (math.nan, math.nan, math.nan, "–"),
        (0.0, math.nan, math.nan, "0"),
        (-1.5, -1.75, -1.25, "-1.50 [-1.75, -1.25]"),
    ],
)
def test_value_with_interval(value: float, low: float, high: float, text: str) -> None:
    assert tables.with_interval(value, low, high) == text


def test_table_of_cells(results: Path) -> None:
    table = tables.build(Study.load(results / "table1" / "nano"))[0]

    assert table.header[:5] == (
        "", "Fréchet distance (fd-digits)\u00a0↓", "Precision (fd-digits)\u00a0↑", "Published", "Verdict",
    )  # fmt: skip
    assert table.body[0] == (
        "CDRL", "1.100 [1.018, 1.182]", "0.512 [0.490, 0.530]", "4.31", "different-scale", "3", "0 of 3",
        "5 (sampling 15)", "1,000", "900", "500,000", "31", "123", "1.23",
    )  # fmt: skip
    assert [row[3] for row in table.body] == ["4.31", "9.58†", "44.5‡", "–", "–"]
    assert "† unconfirmed; ‡ sources disagree" in table.caption
    assert "Scale nano; data digits; protocol fd-digits; a CPU" in table.caption


def write_values(results: Path, **rows: str) -> Study:
    """The table with other values by seed of the first metric; their mean is the cell's value."""
    path = results / "table1" / "nano" / "cells.csv"
    cells = pd.read_csv(path, dtype={"values": str})
    for row, values in rows.items():
        chosen = (cells["row"] == row) & (cells["metric"] == "fd")
        cells.loc[chosen, "values"] = values
        cells.loc[chosen, "value"] = pd.Series(map(float, values.split())).mean()
    cells.to_csv(path, index=False)
    return Study.load(path.parent)


@pytest.mark.parametrize(
    ("values", "bold"),
    [
        ({}, {0}),
        ({"drl": "0.9 1.2 1.3"}, {0, 1}),  # as good as the luckiest mean, and told from the third row like it
        ({"drl": "0.9 1.2 1.3", "short_run": "0.5 1.1 2.3"}, set()),  # nothing is told from the best
        ({"cdrl": "1.0 nan nan"}, set()),  # a best of one seed is no best
        ({"drl": "2.0 nan nan", "short_run": "4.0 nan nan"}, set()),
    ],
)
def test_bold_is_what_no_test_tells_from_the_best(results: Path, values: dict[str, str], bold: set[int]) -> None:
    table = tables.build(write_values(results, **values))[0]

    assert {row for row, column in table.best if column == 1} == bold
    assert ("Bold" in table.caption) == bool(bold)


def test_a_mean_of_survivors_is_not_bold(results: Path) -> None:
    study = write_values(results, cdrl="0.9 nan 1.3")
    study.cells.loc[study.cells["row"] == "cdrl", "diverged"] = "1 of 3"

    assert {row for row, _ in tables.build(study)[0].best} == {1}


@pytest.mark.parametrize(
    ("diverged", "verdict"), [("1 of 3", "different-scale"), ("0 of 3", "diverged"), ("", "diverged")]
)
def test_a_mean_of_survivors_is_marked_and_explained(diverged: str, verdict: str, results: Path) -> None:
    study = write_values(results, cdrl="0.9 nan 1.3")
    rows = (study.cells["row"] == "cdrl") & (study.cells["metric"] == "fd")
    note = "seed 1 diverged at iteration 300; mean of the 2 that finished"
    study.cells.loc[rows, ["diverged", "verdict", "note"]] = [diverged, verdict, note]

    table = tables.build(study)[0]

    assert [row[1].endswith("§") for row in table.body] == [True, False, False, False, False]
    assert note in table.body[0]
    assert "§ Runs of this row diverged" in table.caption
    assert {row for row, column in table.best if column == 1} == {1}
    assert r"\S{}" in table.latex()
    assert "§" not in tables.build(Study.load(study.folder))[0].caption


def test_a_failed_evaluation_says_why_in_its_row(results: Path) -> None:
    study = Study.load(results / "table1" / "nano")
    rows = study.cells["row"] == "drl"
    study.cells.loc[rows, ["value", "low", "high"]] = math.nan
    study.cells.loc[rows, ["verdict", "note"]] = ["not-run", "evaluation failed: moments are not finite"]

    row = dict(zip(tables.build(study)[0].header, tables.build(study)[0].body[1], strict=True))

    assert (row["Verdict"], row["Note"]) == ("not-run", "evaluation failed: moments are not finite")
    assert "§" not in "".join(row.values())


def test_a_column_more_is_no_hindrance(results: Path) -> None:
    path = results / "table1" / "nano" / "cells.csv"
    cells = pd.read_csv(path)
    before = tables.markdown(tables.build(Study.load(path.parent)))
    cells.insert(list(cells).index("diverged") + 1, "of_a_later_version", "0 1 0")
    cells.to_csv(path, index=False)
    assert tables.markdown(tables.build(Study.load(path.parent))) == before


def test_tables_are_replaced_together(results: Path) -> None:
    study = Study.load(results / "table1" / "nano")
    tables.write(study)
    before = contents(study.folder)
    longest = max(len(before[name].encode()) for name in ("table.md", "table.tex"))
    changed = replace(study, title=study.title + " of much" * 100)
    assert "cannot write" in in_a_child(lambda: tables.write(changed), largest_file=longest)
    assert contents(study.folder) == before
    tables.write(changed)
    after = contents(study.folder)
    assert all("of much of much" in after[name] for name in ("table.md", "table.tex"))


def test_differences_from_cdrl_are_tested(results: Path) -> None:
    _, table = tables.build(Study.load(results / "table1" / "nano"))

    assert table.header == ("", "Fréchet distance (fd-digits)\u00a0↓", "Precision (fd-digits)\u00a0↑", "Test")
    assert [row[0] for row in table.body] == ["DRL − CDRL", "Short-run_EBM & co − CDRL"]
    test = stats.ttest_rel([2.0, 2.2, 2.4], [1.0, 1.1, 1.2])
    low, high = test.confidence_interval()
    assert table.body[0][1:] == (f"+1.10 [{low:.2f}, {high:.2f}], p = {test.pvalue:.2g}", "–", "paired, 3 seeds")
    assert "Differences from CDRL" in table.caption


def test_without_cdrl_the_first_row_is_what_others_differ_from(results: Path) -> None:
    path = results / "table1" / "nano" / "cells.csv"
    cells = pd.read_csv(path)
    cells[cells["row"] != "cdrl"].to_csv(path, index=False)

    _, table = tables.build(Study.load(path.parent))

    assert [row[0] for row in table.body] == ["Short-run_EBM & co − DRL"]


@pytest.mark.parametrize(("p", "text"), [(0.0004, "p < 0.001"), (0.0212, "p = 0.021"), (0.5, "p = 0.50")])
def test_a_difference_as_text(p: float, text: str) -> None:
    shared = {"p": p, "test": "paired, 3 seeds"}
    assert tables.difference_text(Difference(value=2.0, low=1.0, high=3.0, **shared)) == f"+2.0 [1.0, 3.0], {text}"
    assert tables.difference_text(Difference(value=-2.0, low=-3.0, high=-1.0, **shared)) == f"-2.0 [-3.0, -1.0], {text}"


def test_two_protocols_never_share_a_column(results: Path) -> None:
    path = results / "table1" / "nano" / "cells.csv"
    cells = pd.read_csv(path)
    cells.loc[(cells["row"] == "drl") & (cells["metric"] == "fd"), "protocol"] = "fid-clean"
    cells.to_csv(path, index=False)

    table = tables.build(Study.load(path.parent))[0]

    columns = [title for title in table.header if title.startswith("Fréchet")]
    assert columns == ["Fréchet distance (fd-digits)\u00a0↓", "Fréchet distance (fid-clean)\u00a0↓"]
    body = {row[0]: row for row in table.body}
    assert (body["DRL"][1], body["CDRL"][3]) == ("–", "–")


def test_rows_without_a_common_column_stand_in_tables_of_their_own(results: Path) -> None:
    path = results / "table1" / "nano" / "cells.csv"
    cells = pd.read_csv(path)
    cells.loc[cells["row"] == "drl", "protocol"] = "another"
    cells.to_csv(path, index=False)

    first, differences, second = tables.write(Study.load(path.parent))

    assert [row[0] for row in second.body] == ["DRL"]
    assert "DRL" not in [row[0] for row in first.body]
    assert all("(another)" in title for title in second.header[1:3])
    assert "protocol another;" in second.caption
    text = (path.parent / "table.md").read_text()
    assert text == f"{first.markdown()}\n{differences.markdown()}\n{second.markdown()}"


@pytest.mark.parametrize("metrics", [["fd", "precision"], ["fd"]])
def test_several_metrics_at_several_levels_have_a_row_for_each_level(results: Path, metrics: list[str]) -> None:
    path = results / "table1" / "nano" / "cells.csv"
    cells = pd.read_csv(path)
    cells = cells[cells["row"].isin(["cdrl", "drl"]) & cells["metric"].isin(metrics)]
    rise = cells["metric"] == "fd"  # precision is no more than 1
    levels = [cells.assign(protocol="chains", level=level, value=cells["value"] + rise * level) for level in (0, 1)]
    pd.concat(levels).to_csv(path, index=False)

    table = tables.build(Study.load(path.parent))[0]

    if len(metrics) == 1:
        assert [row[0] for row in table.body] == ["CDRL", "DRL"]
        titles = ["level 0: Fréchet distance (chains)\u00a0↓", "level 1: Fréchet distance (chains)\u00a0↓"]
        assert list(table.header[1:3]) == titles
        return
    assert [row[0] for row in table.body] == ["CDRL, level 0", "CDRL, level 1", "DRL, level 0", "DRL, level 1"]
    assert [title.split(" (")[1] for title in table.header[1:3]] == ["chains)\u00a0↓", "chains)\u00a0↑"]
    assert [row[1].split(".")[0] for row in table.body] == ["1", "2", "2", "3"]
    assert {place for place, column in table.best if column == 1} == {0, 1}, "the best at each level, not of all"


def test_what_is_compared_with_has_columns_and_levels_have_rows(results: Path) -> None:
    path = results / "table1" / "nano" / "cells.csv"
    cells = pd.read_csv(path)
    cells = cells[(cells["row"] == "cdrl") & (cells["metric"] == "fd")]
    parts = [
        cells.assign(metric="auroc", value=0.9, against=against, level=level, image_size=8)
        for against in ("a", "b")
        for level in (0, 1)
    ]
    pd.concat(parts).to_csv(path, index=False)

    table = tables.build(Study.load(path.parent))[0]

    assert [row[0] for row in table.body] == ["CDRL, level 0", "CDRL, level 1"]
    assert [title.split(" (")[0] for title in table.header[1:3]] == ["vs a: AUROC", "vs b: AUROC"]


@pytest.mark.parametrize(
    ("column", "values", "names"),
    [
        ("mask", ["half", "box"], ["CDRL, half", "CDRL, box"]),
        ("variant", ["shared noise", "independent noise"], ["CDRL, shared noise", "CDRL, independent noise"]),
        ("steps", [15, 50], ["CDRL, K = 15", "CDRL, K = 50"]),
        ("weight", [0.0, 0.5], ["CDRL, w = 0", "CDRL, w = 0.5"]),
        ("image_size", [8, 16], ["CDRL, 8 pixels", "CDRL, 16 pixels"]),
    ],
)
def test_what_differs_within_a_row_is_said_in_its_name(
    results: Path, column: str, values: list[object], names: list[str]
) -> None:
    path = results / "table1" / "nano" / "cells.csv"
    cells = pd.read_csv(path)
    several = [cells[cells["row"] == "cdrl"].assign(**{column: value}) for value in values]
    others = cells[cells["row"] == "drl"].assign(**{column: values[0]})
    pd.concat([*several, others]).to_csv(path, index=False)

    table = tables.build(Study.load(path.parent))[0]

    own = f"DRL, {values[0]}" if column in ("mask", "variant") else "DRL"
    assert [row[0] for row in table.body] == [*names, own]
    # What is another task, not another way, is no rival.
    first_alone = column in ("mask", "image_size")
    assert {place for place, number in table.best if number == 1} == ({0} if first_alone else {0, 1})


def test_a_diverged_run_is_named_in_its_row(results: Path) -> None:
    path = results / "table1" / "nano" / "cells.csv"
    cells = pd.read_csv(path)
    cells["note"] = ["seed 1 diverged at iteration 320" if row == "drl" else "" for row in cells["row"]]
    cells.to_csv(path, index=False)

    table = tables.build(Study.load(path.parent))[0]

    assert table.header[-1] == "Note"
    assert {row[0]: row[-1] for row in table.body}["DRL"] == "seed 1 diverged at iteration 320"


def test_latex_is_escaped_and_balanced(results: Path) -> None:
    made = tables.write(Study.load(results / "table1" / "nano"))
    latex = made[0].latex()

    assert (results / "table1" / "nano" / "table.tex").read_text() == f"{latex}\n{made[1].latex()}"
    assert r"Short-run\_EBM \& co" in latex
    assert r"95 \% interval" in latex
    rows = latex.split(r"\toprule")[1].split(r"\bottomrule")[0].replace(r"\&", "")
    assert {line.count("&") for line in rows.splitlines() if "&" in line} == {13}
    assert not set(latex) & set("↓↑†‡×–\u00a0")


HOSTILE = (
    "<script>alert(1)</script>", "a|b", "two\nlines", "`code`", "**bold** _x_ ~~gone~~ $x$", "[here](javascript:1)",
    "![x](file:///etc)", "&lt;b&gt; &copy;", "# title", "a\\|b", "=1", "\x1b[31mred", "\udcff",
    "R&D, p < 0.1, a_b [1, 2]",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_users_is_text_in_every_form(text: str, results: Path) -> None:
    """In Markdown as its readers see it: escapes undone, it is the same text, with no markup left in between."""
    table = tables.Table(("", text), ((text, "1.0"),), text, best=frozenset({(0, 0)}))
    lines = table.markdown().splitlines()
    assert len(lines) == 5
    bare = [re.sub(r"\\[!-/:-@\[-`{-~]", "", line) for line in lines]
    assert [line.count("|") for line in bare] == [0, 0, 3, 3, 3]
    assert not re.search(
        r"<[^ ]|`|\]\(|(?<!\*)\*(?!\*)|~|\$|\b__?\b|&\w+;", bare[0].replace("&lt;", "").replace("&amp;", "")
    )
    read = html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", lines[0]))
    expected = text.replace("\n", " ").replace("\x1b", " ").replace("\udcff", "?")
    assert read == expected
    assert len(table.plain().splitlines()) == 5
    assert "\x1b" not in table.plain()
    table.latex().encode()
    assert len(table.latex().splitlines()) == len(tables.Table(("", "a"), (("a", "b"),), "c").latex().splitlines())


def test_our_own_texts_need_no_escape() -> None:
    for text in ("+14.9 [12.3, 17.6], p < 0.001", "-4.5 [-6.5, -2.4]", "Fréchet distance (fd-digits)\u00a0↓", "9.58†"):
        assert tables.markdown_escape(text) == text


def test_markdown_has_a_cell_in_every_column(results: Path) -> None:
    table = tables.build(Study.load(results / "table1" / "nano"))[0]
    lines = table.markdown().splitlines()[2:]

    assert {line.count("|") for line in lines} == {15}
    assert lines[2].startswith("| CDRL | **1.100 [1.018, 1.182]** |")


def test_a_row_that_was_not_run(results: Path) -> None:
    path = results / "table1" / "nano" / "cells.csv"
    cells = pd.read_csv(path)
    cells = cells[~((cells["row"] == "drl") & (cells["metric"] == "precision"))]
    cells.loc[cells["row"] == "drl", ["value", "low", "high", "seeds", "samples", "published", "verdict"]] = [
        math.nan, math.nan, math.nan, 0, math.nan, None, "not-run",
    ]  # fmt: skip
    cells.to_csv(path, index=False)

    table = tables.build(Study.load(path.parent))[0]
    row = table.body[1]

    assert row[:5] == ("DRL", "–", "–", "–", "not-run")


def test_cells_without_the_fixed_columns_are_refused(results: Path) -> None:
    path = results / "table1" / "nano" / "cells.csv"
    pd.read_csv(path).drop(columns=["verdict"]).to_csv(path, index=False)

    with pytest.raises(UserError, match="verdict"):
        Study.load(path.parent)
    with pytest.raises(UserError, match="run the experiment first"):
        Study.load(results)


def test_results_of_an_older_format_are_refused(results: Path) -> None:
    folder = results / "table1" / "nano"
    (folder / "experiment.json").unlink()
    with pytest.raises(UserError, match=r"lacks experiment\.json; run the experiment again"):
        Study.load(folder)


def test_a_changed_experiment_says_so(results: Path) -> None:
    study = Study.load(results / "table1" / "nano")
    few = replace(study, provenance={"changed": ["scale.samples=7"]})
    many = replace(study, provenance={"changed": [f"scale.seeds=[{number}]" for number in range(9)]})
    assert "Scale nano, with scale.samples=7; data" in tables.build(few)[0].caption
    assert "Scale nano, with 9 settings changed; data" in tables.build(many)[0].caption
