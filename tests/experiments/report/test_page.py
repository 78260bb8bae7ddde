from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cdrl.errors import UserError
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
