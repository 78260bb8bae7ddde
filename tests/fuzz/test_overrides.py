"""Hostile command lines: a plan, or one line that says what is wrong; within seconds, in little memory."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cdrl.errors import UserError
from experiments import configuration
from experiments.plan import Plan, make_plan
from tests.fuzz.damage import answer

SHORT = ["scale.seeds=[0]", "experiment.rows.drl=null", "experiment.rows.short_run=null"]
"""Rows that the cases leave out, for time."""
GIVEN_UP = 30
"""Seconds: five on a machine with nothing else to do."""

HOSTILE = st.one_of(
    st.sampled_from([
        "0", "-1", "1", "2", "1.5", "1e9", "1000000000", "20000", "1000000000000000000000",
        "9" * 400, "nan", "inf", "-inf",
        "true", "null", "", "[]", "[1]", "[[1]]", "{}", "{a: 1}", "text",
        "../../x", "/", "x" * 5000, "a\tb", "'a\nb'", "'\x00'",
        "'\x7f'", "'\ud800'", "${", "${scale}", "${nothing}", "1e-30", "-1e30", "1e308", "[null]", "[nan]",
        "{seconds: nan}",
        "{seconds: 0}", "{iterations: 1e9}", "{iterations_of: cdrl}", "'a b'", "[1,1]", "[0,-1]", "[999999999]", "???",
    ]),
    st.integers().map(str),
    st.floats().map(repr),
    st.text(max_size=12),
    st.lists(st.integers(-3, 9), max_size=4).map(lambda numbers: "[" + ",".join(map(str, numbers)) + "]"),
)  # fmt: skip


@lru_cache
def keys() -> list[str]:
    """Every setting of table 1 at nano, and the groups above them."""
    found: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for name, value in node.items() if isinstance(node, dict) else ():
            found.append(f"{prefix}{name}")
            walk(value, f"{prefix}{name}.")

    walk(OmegaConf.to_container(configuration.resolve([]), resolve=False), "")
    return [key for key in found if not key.endswith("_target_")]


def planned(overrides: list[str]) -> Plan:
    """What a command does before anything is written: resolve, plan, name what is missing."""
    plan = make_plan(configuration.resolve(overrides))
    plan.missing()
    return plan


@given(data=st.data())
def test_a_hostile_command_line_is_a_plan_or_one_line(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(keys()) | st.text(max_size=8))
    sign = data.draw(st.sampled_from(("", "", "", "", "+", "++", "~")))
    words = [f"{sign}{key}={data.draw(HOSTILE)}"]
    if data.draw(st.integers(0, 4)) == 0:
        words.append(data.draw(st.text(max_size=16)))
    note(repr(words))
    made = answer(lambda: planned([*SHORT, *words]), GIVEN_UP)
    assert isinstance(made, Plan | UserError)


@pytest.mark.parametrize(
    "word",
    [
        "data.image_size=1000000000", "data.channels=1000000000", "data.classes=1000000000",
        "scale.reports=100000000000",
        "scale.samples=1000000000000000", "scale.budget=1e40", "scale.budget=nan", "scale.seeds=[99999999999999999999]",
        "metrics.name=../../x", "metrics.name=''", "experiment.name=../../x", "scale.name='a/b'",
        "launcher.workers=1000000000",
        "scale.milestones=[nan]", "launcher.seconds=nan", "launcher.gpus_per_run=1000000000", "experiment.title='a\nb'",
    ],
)  # fmt: skip
def test_what_no_machine_can_do_and_no_file_can_be_called_is_refused(word: str) -> None:
    assert isinstance(answer(lambda: planned([*SHORT, word]), GIVEN_UP), UserError), word
