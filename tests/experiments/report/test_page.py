from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdrl.errors import UserError
from experiments import checksums, cli
from experiments.report import build_all, page, traceable_run
from experiments.runs.folder import RunFolder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--enable-logging=stderr",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


class _Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_every_picture_is_inside_and_described(built: Path) -> None:
    pictures = _Elements(built.read_text()).of("img")

    assert len(pictures) == 4
    for picture in pictures:
        assert (picture["src"] or "").startswith("data:image/")
        assert picture["alt"]


def test_nothing_outside_is_asked_for(built: Path) -> None:
    elements = _Elements(built.read_text())
    text = re.sub(r"data:image/[^\"]*", "", built.read_text())

    assert not elements.of("script")
    assert "http" not in text
    assert "url(" not in text
    assert all((link["href"] or "").startswith(("#", "data:")) for link in elements.of("a") + elements.of("link"))


def test_contents_lead_to_sections(built: Path) -> None:
    elements = _Elements(built.read_text())
    targets = {attributes["id"] for _, attributes in elements.found if "id" in attributes}

    assert {(link["href"] or "").lstrip("#") for link in elements.of("a")} <= targets
    assert "table1" in targets


def test_numbers_carry_command_commit_and_verdict(built: Path) -> None:
    text = built.read_text()

    assert text.count("python -m experiments experiment=table1 scale=nano") == 1 + 10
    assert "0123456789ab" in text
    assert "<b>1.100 [1.018, 1.182]</b>" in text
    assert "Short-run_EBM &amp; co" in text
    assert 'class="verdict different-scale"' in text


def test_page_of_an_empty_results_folder(tmp_path: Path) -> None:
    assert "How to read the numbers" in page.build(tmp_path).read_text()


def test_everything_is_built_and_named(results: Path) -> None:
    page_line = f"written: {results / 'report.html'}"
    assert build_all(results) == ["table1 nano: table, score, budget, seconds, samples", page_line]
    with pytest.raises(UserError, match="run an experiment first"):
        build_all(results / "missing")


def test_the_page_alone_leaves_tables_and_figures_as_they_are(results: Path) -> None:
    assert build_all(results, page_only=True) == [f"written: {results / 'report.html'}"]
    names = {path.name for path in (results / "table1" / "nano").iterdir()}
    assert names == {"cells.csv", "experiment.json", "provenance.json"}


def test_the_run_to_trace_is_the_first_finished_one_of_cdrl(results: Path) -> None:
    first, second = (results.parent / "runs" / "cdrl" / f"seed{seed}" for seed in (0, 1))
    assert traceable_run(results) == RunFolder(first)
    shutil.rmtree(first)
    assert traceable_run(results) == RunFolder(second)
    shutil.rmtree(results.parent / "runs")
    assert traceable_run(results) is None


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_at_phone_width(built: Path, tmp_path: Path) -> None:
    """No console message, every picture decoded, nothing wider than a phone: asked by a script in a frame around it."""
    text = built.read_text()
    probe = """<script>onload = () => {
      const d = document.documentElement, broken = [...document.images].filter(i => !i.complete || !i.naturalWidth);
      parent.postMessage([d.scrollWidth - d.clientWidth, innerWidth, broken.length].join(), "*"); }</script>"""
    (tmp_path / "probe.html").write_text(text.replace("</head>", probe + "</head>"))
    (tmp_path / "phone.html").write_text(
        "<!doctype html><title>phone</title><script>onmessage = e => { document.body.dataset.found = e.data }</script>"
        '<body><iframe src="probe.html" style="width:390px;height:844px;border:0"></iframe>'
    )
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000",
               "--dump-dom", (tmp_path / "phone.html").as_uri()]  # fmt: skip

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found is not None, done.stderr
    overflow, width, broken = map(int, found.group(1).split(","))
    assert (overflow, width, broken) == (0, 390, 0)
    assert "CONSOLE" not in done.stderr


def test_text_of_users_is_no_markup_of_the_page(results: Path) -> None:
    path = results / "table1" / "nano" / "cells.csv"
    path.write_text(path.read_text().replace("Short-run_EBM & co", "<script>alert(1)</script>"))
    text = page.build(results).read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 8]) + content[len(content) // 2 + 1 :]


DAMAGES = [truncated, flipped, lambda content: b"", lambda content: b"no picture"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_picture_is_left_out_and_said(
    damage: Callable[[bytes], bytes], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A PNG and an APNG; an SVG with a flipped bit may still be one, so that one is cut."""
    folder, demo = results / "table1" / "nano", results / "demo"
    demo.mkdir()
    build_all(results)
    frames = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64), np.uint8)) for i in range(3)]
    frames[0].save(demo / "trajectory.png", save_all=True, append_images=frames[1:])
    frames[0].save(demo / "stages.png")
    (folder / "samples.svg").unlink()
    for path in (folder / "samples.png", demo / "trajectory.png"):
        path.write_bytes(damage(path.read_bytes()))
    (folder / "score.svg").write_bytes(truncated((folder / "score.svg").read_bytes()))
    shutil.rmtree(results.parent / "runs")  # of which the animation would be made again

    assert cli.report(["--results", str(results), "--page"]) == 0

    said = capsys.readouterr().err
    text = (results / "report.html").read_text()
    alts = [picture["alt"] or "" for picture in _Elements(text).of("img")]
    assert [alt.split(":")[0] for alt in alts] == [
        "The same images at rest", "Score against budget", "Score against time"
    ]  # fmt: skip
    for path in (folder / "samples.png", folder / "score.svg", demo / "trajectory.png"):
        assert f"{path} is damaged, and left out of the page" in said
    left_out = re.findall("Left out, for the file is damaged or missing: ([^<]*)<", text)
    assert left_out == ["trajectory", "score, samples"]
    assert "Traceback" not in said


@pytest.mark.parametrize("left", ["trajectory.png", "stages.png", "energy.svg"])
def test_a_part_of_the_animation_is_enough(left: str, results: Path) -> None:
    demo = results / "demo"
    demo.mkdir()
    build_all(results)
    shutil.copy(results / "table1" / "nano" / f"score{Path(left).suffix}", demo / left)
    assert ('id="demo"' in page.build(results).read_text()) == (left == "trajectory.png")


def test_a_missing_picture_is_said(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = results / "table1" / "nano"
    checksums.begin(folder, [path.name for path in folder.iterdir()])
    build_all(results)
    for path in (*folder.glob("score.*"), folder / "budget.svg"):
        path.unlink()
    text = page.build(results).read_text()
    assert "damaged or missing: score<" in text
    assert f"{folder / 'score.png'} is missing" in capsys.readouterr().err
    assert "Score against budget: Table 1" in text, "its PNG is there"


def test_damaged_ratios_are_one_line(results: Path) -> None:
    (results / "bench").mkdir()
    for content in (
        b"",
        b"case,variant\n1,2\n",
        b"\xff\xfe\x00",
        b"case,variant,images,ms_per_image,fast_is\na,b,c,d,e\n",
    ):
        (results / "bench" / "ratios.csv").write_bytes(content)
        with pytest.raises(
            UserError, match=r"ratios\.csv (is damaged|lacks the columns) .*; measure again: make bench"
        ):
            page.build(results)
