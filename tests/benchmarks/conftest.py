"""After the benchmarks: a table of ratios on the screen and, if none was left out, in ``results/bench/``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.benchmarks import cases, summary


@pytest.fixture
def measure(benchmark: Any) -> Callable[..., None]:
    """Times an act: ``case`` names what must do the same work to be compared, ``variant`` how it is done here."""

    def run(act: Callable[[], object], case: str, variant: str, images: int, rounds: int = 3, **extra: Any) -> None:
        benchmark.group = case.split("/")[0]
        benchmark.extra_info.update(case=case, variant=variant, images=images, **extra)
        benchmark.pedantic(act, rounds=rounds, iterations=1, warmup_rounds=1)

    return run


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    clock = session.options["timer"]
    table = summary.ratios(
        [{**b.extra_info, "seconds": b.stats.min} for b in session.benchmarks if b.stats.data],
        cases.ceiling(clock=clock.target),
    )
    terminalreporter.section("ratios")
    terminalreporter.write_line(table.to_string(index=False))
    left_out = any(terminalreporter.stats.get(outcome) for outcome in ("deselected", "failed", "error"))
    if left_out or summary.GROUPS - {b.group for b in session.benchmarks}:
        terminalreporter.write_line("results/bench/ stays as it is: it takes all benchmarks (make bench) to write it")
    else:
        summary.write(table, str(clock))
        terminalreporter.write_line("written to results/bench/")
