"""The report as one HTML page that needs nothing else: pictures inside, no scripts, no addresses."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2
import pandas as pd
from PIL import Image

from cdrl.cli import note
from cdrl.errors import UserError
from experiments import checksums
from experiments.files import NUMBER, WORDS, one_line, read_csv, write_text
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
    "diverged": "runs diverged: every one, or the number beside it is the mean of the others",
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


class Damaged(Exception):
    """A picture's file is no picture, or is not there."""


def build(results: Path) -> Path:
    """Write ``report.html`` into the results folder, from what is in it; returns its path.

    A picture whose file is damaged is left out; the page says so, and so does a line on stderr.
    """
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
    """A picture file as a data URI; the vector form where it is small enough. Raises `Damaged`."""
    vector = path.with_suffix(".svg")
    if vector.exists() and (not path.with_suffix(".png").exists() or vector.stat().st_size <= _LARGEST_SVG):
        path = vector
    if not path.is_file():
        raise Damaged(f"{path} is missing")
    try:
        content = path.read_bytes()
        if path.suffix == ".svg":
            return _vector(content, alt, caption)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            picture.verify()  # every checksum in it, to its last byte; nothing is decoded
            # Natural, in CSS pixels: figures' PNGs have the resolution that `style` gives them.
            width = round(picture.width * 96 / picture.info.get("dpi", (96.0, 96.0))[0])
    except Exception as error:  # whatever Pillow, zlib or expat make of it
        raise Damaged(f"{path} is damaged") from error
    return Picture(_data_uri("png", content), alt, caption, drawing=False, width=width)


def _vector(content: bytes, alt: str, caption: str) -> Picture:
    """The same of an SVG file's content. Raises `ValueError` where it is none."""
    root = ElementTree.fromstring(content)
    if root.tag.rpartition("}")[2] != "svg":
        raise ValueError(f"a picture begins with svg, not with {root.tag}")
    points = re.fullmatch(r"([\d.]+)pt", root.get("width", ""))
    width = round(float(points[1]) * 96 / 72) if points else 640
    return Picture(_data_uri("svg+xml", content), alt, caption, drawing=b"<image" not in content, width=width)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _whole(pictures: Mapping[str, tuple[Path, str, str]]) -> tuple[dict[str, Picture], list[str]]:
    """Those that are pictures, and the file names of the others, which stderr names too."""
    shown, damaged = {}, []
    for name, (path, alt, caption) in pictures.items():
        try:
            shown[name] = inlined(path, alt, caption)
        except Damaged as error:
            note(one_line(f"{error}, and left out of the page; the command that made it makes it again"))
            damaged.append(path.stem)
    return shown, damaged


def _scale(study: Study) -> dict[str, Any]:
    """A study in the template's words: its tables and pictures, and where each number comes from."""
    # Pictures, the words that every experiment has first.
    pictures = {}
    files = {path.name for path in study.folder.iterdir()}
    with suppress(OSError, UserError):  # also those that were written once and are gone
        files |= checksums.read(study.folder).keys()
    names = {Path(file).stem for file in files if file.endswith((".svg", ".png"))} - {"trajectory"}
    for name in sorted(sorted(names), key=lambda name: list(_WORDS).index(name) if name in _WORDS else len(_WORDS)):
        words = _WORDS.get(name) or name.replace("_", " ").replace("-", " ").capitalize()
        alt = f"{words}: {study.title}, scale {study.scale}"
        pictures[name] = (study.folder / f"{name}.png", alt, words)
    shown, damaged = _whole(pictures)

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
        "name": study.scale, "tables": tables.build(study), "numbers": numbers,
        "pictures": list(shown.values()), "damaged": damaged,
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
    alt = "Milliseconds per image for the plain, the fast and the released form of each hot loop"
    at_hand = {"bench": (folder / "bench.png", alt, "Time per image")} if (folder / "bench.png").exists() else {}
    shown, damaged = _whole(at_hand)
    return {"body": body, "picture": shown.get("bench"), "damaged": damaged}


def _demonstration(results: Path) -> dict[str, Any] | None:
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
            shown, damaged = _whole({name: (file, *texts[name]) for name, file in files.items() if file.exists()})
            return {**shown, "damaged": damaged}
    return None
