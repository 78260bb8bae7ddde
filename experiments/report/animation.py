"""From noise to image, step by step: a trace of the sampler, an animated PNG of it, and the energy along the way.

A trace has one frame for the noise, one for every proposal, one for every Langevin step, and one for the last denoise.
Energies of different levels differ by unknown constants, so what is shown is the rise of f above the level's proposal.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cdrl import langevin
from cdrl.errors import UserError
from cdrl.langevin import Coefficients, Refined
from cdrl.networks import FrozenEnergy
from cdrl.pictures import tile
from cdrl.sampler import Sampler
from experiments import checksums, data
from experiments.files import read_arrays, sha256, write_bytes
from experiments.report import style
from experiments.report.figures.common import show

_FILES = (
    "trajectory.npz", "trajectory.png", *(f"{name}.{kind}" for name in ("stages", "energy") for kind in ("png", "svg"))
)  # fmt: skip
_MILLISECONDS = {"noise": 900, "proposal": 350, "step": 110, "refined": 260, "sample": 2600}


@dataclass(frozen=True)
class Trace:
    """A few images on their way.

    Attributes:
        frames: uint8 ``(n, images, H, W, C)``.
        stages: ``(n,)`` of "noise", "proposal", "step", "refined" (a chain's last step), "sample".
        levels: ``(n,)`` the level that each frame belongs to.
        rise: ``(n, images)``, f above its value at the level's proposal; NaN where there is no chain.
    """

    frames: NDArray[np.uint8]
    stages: NDArray[np.str_]
    levels: NDArray[np.int64]
    rise: NDArray[np.float64]

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Raises `UserError` where the file is damaged."""
        layouts = {"frames": "u1 t n h w 1,3", "stages": "U t", "levels": "i t", "rise": "f t n"}
        arrays = read_arrays(path, layouts, remedy := "make it again: cdrl report --animate MODEL")
        if unknown := sorted(set(arrays["stages"].tolist()) - _MILLISECONDS.keys()):
            raise UserError(f"{path} is damaged (there is no stage {unknown[0]!r}); {remedy}")
        return cls(**{name: arrays[name] for name in layouts})

    def save(self, path: Path) -> None:  # compressed: pixels repeat from step to step
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **vars(self))
        write_bytes(path, buffer.getvalue())


def record(sampler: Sampler, images: int = 12, seed: int = 0) -> Trace:
    """Sample ``images`` images and keep everything on the way."""
    scale, level_below, start = 1.0, 0, torch.empty(0)
    recorded: list[tuple[str, int, NDArray[np.uint8], NDArray[np.float64]]] = []

    def keep(stage: str, level: int, images: Tensor, rise: NDArray[np.float64]) -> None:
        recorded.append((stage, level, data.to_uint8(images).cpu().numpy(), rise))

    # Stages come from the sampler's observer, steps from its stepper.
    def observe(stage: str, level: int, images: Tensor) -> None:
        nonlocal scale, level_below, start
        if stage == "proposal":
            scale, level_below, start = float(sampler.schedule.scale[level + 1]), level, torch.empty(0)
            keep(stage, level, images, np.zeros(len(images)))
        elif stage != "refined":
            keep(stage, level, images, np.full(len(images), np.nan))
        elif recorded[-1][0] == "step":  # the chain's last step is already there; DRL without steps has none
            recorded[-1] = (stage, level, *recorded[-1][2:])

    def step(
        energy: FrozenEnergy, y: Tensor, anchor: Tensor, constants: Coefficients, stream: Tensor, index: Tensor
    ) -> Refined:
        nonlocal start
        start = start if len(start) else energy(y)
        state = langevin.step(energy, y, anchor, constants, stream, index)
        keep("step", level_below, state.y / scale, (energy(state.y) - start).double().cpu().numpy())
        return state

    engine = replace(sampler.engine, refine=partial(langevin.refine, stepper=step))
    replace(sampler, engine=engine)(torch.arange(images), seed, observe=observe)
    names, levels, frames, rise = zip(*recorded, strict=True)
    return Trace(np.stack(frames), np.array(names), np.array(levels), np.stack(rise))


def animate(trace: Trace, size: int = 384, columns: int = 4) -> bytes:
    """The trace as an animated PNG, about ``size`` pixels wide, each frame with its level and step below it."""
    zoom = max(1, size // (columns * (trace.frames.shape[3] + 1)))
    pages, steps = [], 0
    for frame, stage, level in zip(trace.frames, trace.stages, trace.levels, strict=True):
        steps = steps + 1 if stage in ("step", "refined") else 0
        caption = stage if stage in ("noise", "sample") else f"level {level}: {f'step {steps}' if steps else stage}"
        large = tile(frame, columns).repeat(zoom, axis=0).repeat(zoom, axis=1)
        page = Image.new("L" if large.shape[-1] == 1 else "RGB", (large.shape[1], large.shape[0] + 26), "white")
        page.paste(Image.fromarray(large.squeeze()), (0, 0))
        ImageDraw.Draw(page).text((2, large.shape[0] + 5), caption, fill="#444", font=ImageFont.load_default(14))
        pages.append(page)
    buffer = io.BytesIO()
    durations = [_MILLISECONDS[stage] for stage in trace.stages]
    pages[0].save(buffer, "PNG", save_all=True, append_images=pages[1:], duration=durations, loop=0, optimize=True)
    return buffer.getvalue()


def stages(trace: Trace, images: int = 4) -> Figure:
    """The same way standing still: noise, every level's proposal and refined sample, and the result."""
    still = np.flatnonzero(trace.stages != "step")
    figure, axes = style.figure(len(still), 1, width=min(11.0, 0.78 * len(still)), height=0.72 * images + 0.45)
    for place, number in zip(np.atleast_1d(axes), still, strict=True):
        stage, level = trace.stages[number], trace.levels[number]
        title = stage if stage in ("noise", "sample") else f"{stage}\n{level}"
        show(place, tile(trace.frames[number][:images], 1), title)
    return figure


def energy(trace: Trace) -> Figure:
    """The rise of f along every level's chain: mean over the images, and each image faintly."""
    figure, axes = style.figure(width=4.9, height=2.8)
    colour = style.colour("cdrl")
    for level in np.unique(trace.levels):
        where = np.flatnonzero((trace.levels == level) & np.isfinite(trace.rise).all(axis=1))
        if len(where):
            axes.plot(where, trace.rise[where], color=colour, alpha=0.18, linewidth=0.8)
            axes.plot(where, trace.rise[where].mean(axis=1), color=colour, marker="o", markersize=3)
            axes.annotate(
                f"level {level}", (where.mean(), 1.0), xycoords=("data", "axes fraction"), ha="center", fontsize=8,
                color=style.SOFT,
            )  # fmt: skip
    axes.axhline(0.0, color=style.SOFT, linewidth=0.8)
    axes.set(xlabel="Frame: a proposal and its Langevin steps, level by level", ylabel="f above the proposal's")
    return figure


def write(sampler: Sampler, folder: Path) -> list[str]:
    """``trajectory.png`` and ``.npz``, ``stages`` and ``energy`` as PNG and SVG, in ``folder``; returns their names.

    Their checksums are written last: `complete` tells what a kill has left.
    """
    trace = record(sampler)
    trace.save(folder / "trajectory.npz")
    write_bytes(folder / "trajectory.png", animate(trace))
    style.save(stages(trace), folder, "stages")
    style.save(energy(trace), folder, "energy")
    checksums.begin(folder, _FILES)
    return ["trajectory", "stages", "energy"]


def complete(folder: Path) -> bool:
    """Whether `write` came to its end in a folder, and all that it wrote is as it was."""
    try:
        sums = checksums.read(folder)
        return all(sha256(folder / name) == sums[name] for name in _FILES)
    except (OSError, KeyError, UserError):
        return False
