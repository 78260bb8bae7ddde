"""The report as one HTML page that needs nothing else: pictures inside, no scripts, no addresses."""

from __future__ import annotations

import base64
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from experiments.files import NUMBER, WORDS, read_csv, write_text
from experiments.metrics import metric
from experiments.report import tables
from experiments.report.study import Study, studies

_LARGEST_SVG = 350_000
_WORDS = {"score": "Score", "budget": "Score against budget", "seconds": "Score against time", "samples": "Samples"}
VERDICTS = {
    "reproduced": "the published number, at its scale and protocol",
    "off": "measured at the published scale and protocol, and different",
    "different-scale": "measured at another scale, by another protocol or with changed settings",
    "other-model": "measured, and the published number beside it is of another model",
    "diverged": "every run diverged",
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
    experiments: dict[str, dict[str, Any]] = {}
    for study in every:
        heading = {"id": study.name, "title": study.title, "question": study.question, "scales": []}
        experiments.setdefault(study.name, heading)["scales"].append(_scale(study))
    counts = Counter(tables.verdict(cell) for study in every for _, cell in study.cells.iterrows())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    text = environment.get_template("page.html").render(
        experiments=list(experiments.values()),
        verdicts=[(verdict, counts[verdict]) for verdict in VERDICTS if counts[verdict]],
        meanings=VERDICTS,
        cells=sum(int(study.cells["value"].notna().sum()) for study in every),
        demo=_demonstration(results),
        speed=_speed(results / "bench"),
    )
    write_text(results / "report.html", text)
    return results / "report.html"


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


def _scale(study: Study) -> dict[str, Any]:
    """A study in the template's words: its tables and pictures, and where each number comes from."""
    # Pictures, the words that every experiment has first.
    pictures = []
    names = sorted({path.stem for path in study.folder.iterdir() if path.suffix in (".svg", ".png")} - {"trajectory"})
    for name in sorted(names, key=lambda name: list(_WORDS).index(name) if name in _WORDS else len(_WORDS)):
        words = _WORDS.get(name) or name.replace("_", " ").replace("-", " ").capitalize()
        alt = f"{words}: {study.title}, scale {study.scale}"
        pictures.append(inlined(study.folder / f"{name}.png", alt, words))

    # The origin of every number.
    numbers = [
        {
            "row": cell["name"] + ("" if pd.isna(cell["level"]) else f", level {cell['level']:g}"),
            "dataset": " vs ".join(filter(None, (cell["dataset"], cell["against"]))),
            "metric": metric(cell["metric"]).title,
            "value": tables.with_interval(cell["value"], cell["low"], cell["high"]),
            "verdict": tables.verdict(cell),
            **{name: cell[name] for name in ("protocol", "commit", "runs")},
        }
        for _, cell in study.cells.iterrows()
        if pd.notna(cell["value"])
    ]
    provenance, data = study.provenance, study.provenance.get("data", {})
    facts = {
        "Device": provenance.get("device", ""),
        "System": provenance.get("system", ""),
        "Packages": ", ".join(f"{name} {version}" for name, version in provenance.get("packages", {}).items()),
        "Data": " ".join(str(data[key]) for key in ("name", "source") if key in data),
        "Data checksum": str(data.get("sha256", "")),
    }
    return {
        "name": study.scale, "tables": tables.build(study), "pictures": pictures, "numbers": numbers,
        "command": provenance.get("command") or f"cdrl run experiment={study.name} scale={study.scale}",
        "commits": sorted(set(study.cells["commit"]) - {""}),
        "facts": [(name, text) for name, text in facts.items() if text],
    }  # fmt: skip


def _speed(folder: Path) -> dict[str, Any] | None:
    """The benchmarks' table of ratios and their figure."""
    if not (folder / "ratios.csv").exists():
        return None
    columns = ["case", "variant", "images", "ms_per_image", "fast_is"]
    patterns = {**dict.fromkeys(columns, NUMBER), "case": WORDS, "variant": WORDS}
    lines = pd.DataFrame(read_csv(folder / "ratios.csv", patterns, remedy="measure again: make bench"), columns=columns)
    lines[columns[2:]] = lines[columns[2:]].astype(float)
    body = [
        (str(case), str(variant), f"{images:,.0f}", *(tables.significant(number, 3) for number in numbers))
        for case, variant, images, *numbers in lines.itertuples(index=False)
    ]
    picture = folder / "bench.png"
    alt = "Milliseconds per image for the plain, the fast and the released form of each hot loop"
    return {"body": body, "picture": inlined(picture, alt, "Time per image") if picture.exists() else None}


def _demonstration(results: Path) -> dict[str, Picture] | None:
    """The animation of ``results/demo``, or of the first experiment that carries one."""
    stages = "The same images at rest: noise, each level's proposal and refined sample, and the result"
    energy = "The energy network's value along the chains of each level, above the proposal's"
    texts = {
        "trajectory": ("Animation: noise becomes images, level by level", ""),
        "stages": (stages, "Noise, proposal and refined sample of every level"),
        "energy": (energy, "The energy along the way"),
    }
    for folder in [results / "demo", *(path.parent for path in sorted(results.glob("*/*/trajectory.png")))]:
        if (folder / "trajectory.png").exists():
            files = {name: folder / f"{name}.png" for name in texts}
            return {name: inlined(file, *texts[name]) for name, file in files.items() if file.exists()}
    return None
