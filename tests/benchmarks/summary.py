"""What the benchmarks say: a table of ratios and a figure, kept in ``results/bench/``."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from experiments.report import style

OUT = Path(__file__).parents[2] / "results" / "bench"
GROUPS = {"chain", "batch", "iteration", "sampling", "frechet", "checkpoint", "data"}


def ratios(measured: list[dict[str, Any]], ceiling: float) -> pd.DataFrame:
    """One line per case and variant: how many times faster the fast path is; the share of a matrix product's FLOP/s.

    What was measured in several turns counts by its shortest.
    """
    turns = pd.DataFrame(measured)
    table = turns.loc[turns.groupby(["case", "variant"], sort=False).seconds.idxmin()].reset_index(drop=True)
    fast = table[table.variant == "fast"].set_index("case").seconds
    table["fast_is"] = table.seconds / table.case.map(fast)
    table["ms_per_image"] = 1e3 * table.seconds / table.images
    table["ceiling_share"] = table["flops"] / table.seconds / ceiling if "flops" in table else float("nan")
    table["ceiling_gflops"] = ceiling / 1e9
    columns = ["case", "variant", "images", "seconds", "ms_per_image", "fast_is", "ceiling_share", "ceiling_gflops"]
    return table[columns + [name for name in ("flops",) if name in table]]


def write(table: pd.DataFrame, clock: str) -> None:
    """The table as CSV and Markdown, with the figure, in ``results/bench/``."""
    OUT.mkdir(parents=True, exist_ok=True)
    table.to_csv(OUT / "ratios.csv", index=False, float_format="%.6g")
    where = (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
    rows = [
        f"| {r.case} | {r.variant} | {r.images} | {r.ms_per_image:.3g} | {r.fast_is:.2f} | "
        + ("– |" if pd.isna(r.ceiling_share) else f"{r.ceiling_share:.0%} |")
        for r in table.itertuples()
    ]
    head = [
        "# Benchmarks",
        "",
        f"Shortest of all rounds by `{clock}`, variants taking turns; {where}.",
        f"A matrix product reaches {table.ceiling_gflops.iloc[0]:.0f} GFLOP/s in the same run by that clock.",
        "",
        "| case | variant | images | ms per image | fast path is × faster | share of matrix product |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    (OUT / "ratios.md").write_text("\n".join([*head, *rows, ""]))
    _draw(table)


def _draw(table: pd.DataFrame) -> None:
    figure, (left, right) = style.figure(2, width=8.0, height=3.2)
    batches = table[table.case.str.startswith("batch/")]
    left.plot(batches.images, batches.ms_per_image, "o-", color=style.colour("cdrl"))
    left.set(xlabel="Batch size", ylabel="Milliseconds an image", title="Nano chain, 5 steps")
    chains = table[table.case.str.startswith("chain/")].copy()
    for variant, colour in (("fast", "cdrl"), ("plain", "drl"), ("released", "short_run")):
        rows = chains[chains.variant == variant]
        if len(rows):
            gflop = rows["flops"] / rows.images / 1e9
            right.plot(gflop, rows.ms_per_image, "o-", color=style.colour(colour), label=variant)
    right.set(xlabel="GFLOP an image (nano, mini, paper)", ylabel="Milliseconds an image", title="Chain by model size")
    for axes in (left, right):
        style.logarithmic(axes, "x", "y")
    if len(chains):
        right.legend()
    style.save(figure, OUT, "bench")
