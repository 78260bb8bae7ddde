"""``make doctor``: which data, weights and statistics are here, where the others belong, and what waits for them."""

from __future__ import annotations

import itertools
import platform
import sys
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.markup import escape

from experiments import data, metrics
from experiments.inventory import Item

_MARKS = {"ready": "[green]ready  [/]", "found": "[green]found  [/]", "missing": "[yellow]missing[/]"}


def main(arguments: Sequence[str]) -> int:
    """Print the inventory. Nothing is downloaded or computed."""
    if arguments:
        print(__doc__)
        return 0 if arguments[0] in ("-h", "--help") else 1
    console = Console(highlight=False, soft_wrap=True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no NVIDIA GPU"
    console.print(f"Python {platform.python_version()}, torch {torch.__version__}, {gpu}\n")
    for title, items in (("Data sets", data.inventory()), ("Weights and statistics", metrics.inventory())):
        console.print(f"[bold]{title}[/]")
        for _, alike in itertools.groupby(items, _situation):
            _print(console, list(alike))
        console.print()
    return 0


def _situation(item: Item) -> tuple[str, ...]:
    """What the splits of one data set usually have in common, and is then said once."""
    return (item.name.partition("/")[0], item.state, item.where, item.needed_for, item.remedy)


def _print(console: Console, alike: list[Item]) -> None:
    first, *others = alike
    name = ", ".join([first.name, *(item.name.partition("/")[2] for item in others)])
    named = f" (or ${first.variable})" if first.variable else ""
    console.print(f"  {_MARKS.get(first.state, '[red]wrong  [/]')}  [bold]{escape(name)}[/]")
    console.print(f"           at {escape(first.where)}{named}")
    for item in alike:
        if item.sha256:
            console.print(f"           sha256 {item.sha256}" + (f" ({item.name.partition('/')[2]})" if others else ""))
    if not first.present:
        console.print(f"           without it: {escape(first.needed_for)}")
        console.print(f"           {escape(first.remedy)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
