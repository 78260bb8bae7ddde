"""The look of every figure: one colour and marker per method everywhere, light axes, reproducible files.

It begins with Matplotlib's own defaults, whatever a person's matplotlibrc says.

Colours are those of Okabe and Ito (2008), told apart with every common colour-vision deficiency; markers repeat what
colour says.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from experiments.files import write_bytes

matplotlib.rcdefaults()
matplotlib.use("Agg", force=True)

INK, SOFT, FAINT = "#1f2328", "#6a737d", "#d8dee4"
COLOURS: Mapping[str, str] = {
    "cdrl": "#0072B2", "drl": "#D55E00", "short_run": "#009E73", "ddpm": "#CC79A7", "real": "#3c4248",
    "noise": "#9aa1a9",
}  # fmt: skip
MARKERS: Mapping[str, str] = {"cdrl": "o", "drl": "s", "short_run": "^", "ddpm": "D", "real": "*", "noise": "X"}
SPARE = ("#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
SPARE_MARKERS = ("v", "P", "<", ">", "p", "h")
"""For methods or series without a look of their own."""

LOOK: Any = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9.0, "text.color": INK,
    "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.labelsize": 9.0, "axes.labelcolor": INK, "axes.edgecolor": SOFT, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": FAINT, "grid.linewidth": 0.6,
    "xtick.color": SOFT, "ytick.color": SOFT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "lines.linewidth": 1.6, "lines.markersize": 5.0, "legend.frameon": False, "legend.fontsize": 8.5,
    "figure.dpi": 100, "savefig.dpi": 200, "svg.hashsalt": "cdrl",
}  # fmt: skip
matplotlib.rcParams.update(LOOK)


def colour(method: str) -> str:
    """The method's colour; a spare one, always the same, for a method without."""
    return COLOURS.get(method) or SPARE[(zlib.crc32(method.encode()) >> 5) % len(SPARE)]


def marker(method: str) -> str:
    """The method's marker; a spare one, always the same, for a method without."""
    return MARKERS.get(method) or SPARE_MARKERS[(zlib.crc32(method.encode()) >> 9) % len(SPARE_MARKERS)]


def figure(
    columns: int = 1, rows: int = 1, *, width: float = 5.0, height: float = 3.0, **subplots: Any
) -> tuple[Figure, Any]:
    """A figure (inches) and its axes, as ``Figure.subplots`` gives them: one Axes, or an array for several."""
    canvas = Figure(figsize=(width, height), layout="constrained")
    return canvas, canvas.subplots(rows, columns, **subplots)


def logarithmic(axes: Axes, *directions: str) -> None:
    """Logarithmic axes ("x", "y") with plain numbers at 1, 2 and 5 of every decade, as many as there is room for."""
    for direction in directions:
        getattr(axes, f"set_{direction}scale")("log")
        axis = getattr(axes, f"{direction}axis")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def save(canvas: Figure, folder: Path, name: str) -> None:
    """Write ``name.svg`` and ``name.png``: equal figures give equal bytes, and an equal file is left alone."""
    drawn = {}
    for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        canvas.savefig(buffer, format=kind, metadata=metadata, facecolor="white")
        if kind == "png":  # with few colours a palette makes it a third of the size
            picture = Image.open(buffer).convert("RGB")
            if picture.getcolors(4096) is not None:
                picture = picture.quantize(256, dither=Image.Dither.NONE)
            buffer = io.BytesIO()
            picture.save(buffer, format="PNG", optimize=True, dpi=(LOOK["savefig.dpi"],) * 2)
        drawn[folder / f"{name}.{kind}"] = buffer.getvalue()
    for path, content in drawn.items():
        if not path.exists() or path.read_bytes() != content:
            write_bytes(path, content)
