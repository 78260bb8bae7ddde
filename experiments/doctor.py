"""``make doctor``: which data, weights and statistics are here, where the others belong, and what waits for them."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.markup import escape

from experiments import data, metrics

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
        for item in items:
            named = f" (or ${item.variable})" if item.variable else ""
            console.print(f"  {_MARKS.get(item.state, '[red]wrong  [/]')}  [bold]{escape(item.name)}[/]")
            console.print(f"           at {escape(item.where)}{named}")
            if item.sha256:
                console.print(f"           sha256 {item.sha256}")
            if item.state not in ("ready", "found"):
                console.print(f"           without it: {escape(item.needed_for)}")
                console.print(f"           {escape(item.remedy)}")
        console.print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
