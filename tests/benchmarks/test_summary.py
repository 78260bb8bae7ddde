"""The table of ratios, from made-up measurements."""

from __future__ import annotations

import pytest

from tests.benchmarks import summary


def test_the_shortest_of_all_turns_counts() -> None:
    measured = [
        {"case": "chain/nano", "variant": variant, "images": 2, "seconds": seconds, "flops": 100}
        for variant, seconds in (("plain", 3.0), ("fast", 1.0), ("plain", 2.0), ("fast", 4.0))
    ]
    table = summary.ratios(measured, ceiling=200.0).set_index("variant")
    assert list(table.index) == ["plain", "fast"]
    assert table.fast_is["plain"] == 2.0
    assert table.fast_is["fast"] == 1.0
    assert table.ms_per_image["plain"] == pytest.approx(1000.0)
    assert table.ceiling_share["fast"] == pytest.approx(0.5)
