"""After the benchmarks: a table of ratios on the screen and, if none was left out, in ``results/bench/``."""

from __future__ import annotations

from typing import Any

import pytest

from tests.benchmarks import cases, summary


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
