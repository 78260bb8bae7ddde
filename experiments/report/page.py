"""The report as one HTML page that needs nothing else: pictures inside, no scripts, no addresses."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from experiments.files import write_text
from experiments.metrics import metric
from experiments.report import tables
from experiments.report.study import Study, studies

_TEMPLATES = Path(__file__).parent
_LARGEST_SVG = 350_000
_WORDS = {"score": "Score", "budget": "Score against budget", "seconds": "Score against time", "samples": "Samples"}
VERDICTS = {
    "reproduced": "the published number, at its scale and protocol",
    "off": "measured at the published scale and protocol, and different",
    "different-scale": "measured, at another scale than the published number",
    "not-run": "ready to launch, not measured here",
}


@dataclass(frozen=True)
class Picture:
    """An inlined picture."""

    source: str
    alt: str
    caption: str
    drawing: bool
    """Lines on white, which a dark page may invert; pictures with pixels stay as they are."""
    width: int
    """Natural width in CSS pixels."""


def build(results: Path) -> Path:
    """Write ``report.html`` into the results folder, from what is in it; returns its path."""
    results = Path(results)
    every = studies(results)
    groups = [[study for study in every if study.name == name] for name in dict.fromkeys(s.name for s in every)]
    counts = Counter(tables.verdict(cell) for study in every for _, cell in study.cells.iterrows())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    text = environment.get_template("page.html").render(
        experiments=[_experiment(group) for group in groups],
        verdicts=[(verdict, counts[verdict]) for verdict in VERDICTS if counts[verdict]],
        meanings=VERDICTS,
        cells=sum(int(study.cells["value"].notna().sum()) for study in every),
        demo=_demonstration(results),
        speed=_speed(results / "bench"),
    )
    path = results / "report.html"
    write_text(path, text)
    return path


def inlined(path: Path, alt: str, caption: str = "") -> Picture:
    """A picture file as a data URI; the vector form where it is small enough."""
    vector = path.with_suffix(".svg")
    if vector.exists() and (not path.with_suffix(".png").exists() or vector.stat().st_size <= _LARGEST_SVG):
        path = vector
    content = path.read_bytes()
    kind = "svg+xml" if path.suffix == ".svg" else "png"
    drawing = kind == "svg+xml" and b"<image" not in content
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    width = 640  # natural, in CSS pixels; figures' PNGs have the resolution that `style` gives them
    if kind == "png":
        with Image.open(path) as picture:
            width = round(picture.width * 96 / picture.info.get("dpi", (96.0, 96.0))[0])
    elif points := re.search(rb'<svg[^>]*? width="([\d.]+)pt"', content):
        width = round(float(points.group(1)) * 96 / 72)
    return Picture(source, alt, caption, drawing, width)


def _experiment(group: Sequence[Study]) -> dict[str, Any]:
    first = group[0]
    return {
        "id": first.name,
        "title": first.title,
        "question": first.question,
        "scales": [_scale(study) for study in group],
    }


def _scale(study: Study) -> dict[str, Any]:
    names = sorted({path.stem for path in study.folder.iterdir() if path.suffix in (".svg", ".png")})
    names.sort(key=lambda name: list(_WORDS).index(name) if name in _WORDS else len(_WORDS))
    return {
        "name": study.scale,
        "tables": tables.build(study),
        "pictures": [_picture(study, name) for name in names if name != "trajectory"],
        "command": command(study),
        "commits": sorted(set(study.cells["commit"]) - {""}),
        "numbers": [_number(cell) for _, cell in study.cells.iterrows() if pd.notna(cell["value"])],
        "facts": _facts(study),
    }


def command(study: Study) -> str:
    """The command that made, and makes again, the study's numbers."""
    return study.provenance.get("command") or f"cdrl run experiment={study.name} scale={study.scale}"


def _picture(study: Study, name: str) -> Picture:
    words = _WORDS.get(name) or name.replace("_", " ").replace("-", " ").capitalize()
    return inlined(study.folder / f"{name}.png", f"{words}: {study.title}, scale {study.scale}", words)


def _number(cell: pd.Series) -> dict[str, str]:
    return {
        "row": cell["name"] + ("" if pd.isna(cell["level"]) else f", level {cell['level']:g}"),
        "dataset": " vs ".join(filter(None, (cell["dataset"], cell["against"]))),
        "metric": metric(cell["metric"]).title,
        "value": tables.with_interval(cell["value"], cell["low"], cell["high"]),
        "verdict": tables.verdict(cell),
        **{name: cell[name] for name in ("protocol", "commit", "runs")},
    }


def _facts(study: Study) -> list[tuple[str, str]]:
    provenance = study.provenance
    packages = ", ".join(f"{name} {version}" for name, version in provenance.get("packages", {}).items())
    data = provenance.get("data", {})
    facts = [
        ("Device", provenance.get("device", "")),
        ("System", provenance.get("system", "")),
        ("Packages", packages),
        ("Data", " ".join(str(data[key]) for key in ("name", "source") if key in data)),
        ("Data checksum", str(data.get("sha256", ""))),
    ]
    return [(name, text) for name, text in facts if text]


def _speed(folder: Path) -> dict[str, Any] | None:
    """The benchmarks' table of ratios and their figure."""
    path = folder / "ratios.csv"
    if not path.exists():
        return None
    lines = pd.read_csv(path)
    columns = ["case", "variant", "images", "ms_per_image", "fast_is"]
    body = [
        (str(case), str(variant), f"{images:,.0f}", *(tables.significant(number, 3) for number in numbers))
        for case, variant, images, *numbers in lines[columns].itertuples(index=False)
    ]
    picture = folder / "bench.png"
    alt = "Milliseconds per image for the plain, the fast and the released form of each hot loop"
    return {"body": body, "picture": inlined(picture, alt, "Time per image") if picture.exists() else None}


def _demonstration(results: Path) -> dict[str, Picture] | None:
    """The animation of ``results/demo``, or of the first experiment that carries one."""
    folders = [results / "demo", *(path.parent for path in sorted(results.glob("*/*/trajectory.png")))]
    folder = next((folder for folder in folders if (folder / "trajectory.png").exists()), None)
    if folder is None:
        return None
    texts = {
        "trajectory": ("Animation: noise becomes images, level by level", ""),
        "stages": (
            "The same images at rest: noise, each level's proposal and refined sample, and the result",
            "Noise, proposal and refined sample of every level",
        ),
        "energy": (
            "The energy network's value along the chains of each level, above the proposal's",
            "The energy along the way",
        ),
    }
    files = {name: folder / f"{name}.png" for name in texts}
    return {name: inlined(file, *texts[name]) for name, file in files.items() if file.exists()}
