"""Stages "train" and "score": the suite's own experiments at scale mini, every run with the same GPU seconds."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from experiments import configuration
from experiments.__main__ import main as run_suite
from experiments.methods import UNTRAINED
from experiments.plan import Job, Plan
from experiments.report.__main__ import main as run_report
from experiments.run import carry_out
from tests.benchmarks.gpu import budget
from tests.benchmarks.gpu.parts import OutOfTime
from tests.benchmarks.gpu.session import Session, planned

RESERVE = 60.0
"""Seconds before the deadline at which the suite is told to stop: its processes keep a checkpoint first."""
PROBE = 5.0
"""Seconds a method's pace is measured for."""

EXPERIMENTS: dict[str, list[str]] = {
    "table1": [],
    "guidance": ["experiment.rows.cdrl.sweep.values=[0,0.5,1.0,2.0]"],
    "inpaint": [],
    "langevin_steps": ["scale.samples=2000", "metrics.metrics=[fd]"],
}
"""In this order, with the changes that let each end within minutes; kernel distances alone cost 20 s of a CPU each."""
EXTRA: dict[str, list[str]] = {"ablations": ["experiment.seeds=[0]", "scale.samples=5000"]}
"""When asked for, after the others."""
_UNUSED_ABLATIONS = ("schedule", "shared", "initializer", "none", "target_mean", "bf16")
_UNUSED_STEPS = [f"{method}_{k}" for method in ("cdrl", "drl") for k in (30, 15, 8, 5, 3)]
TINY: dict[str, list[str]] = {
    "table1": ["experiment.rows.real=null"],
    "guidance": ["experiment.rows.cdrl.sweep.values=[0,1.0]"],
    "inpaint": [
        *(f"experiment.rows.{row}.evaluate.{key}" for row in ("cdrl", "drl") for key in ("images=2", "completions=2")),
        "experiment.rows.cdrl_once=null", "experiment.rows.cdrl.evaluate.masks=[half]",
        "experiment.rows.drl.evaluate.masks=[half]",
    ],
    "langevin_steps": [
        "scale.samples=32", *(f"experiment.rows.{row}=null" for row in _UNUSED_STEPS),
        *(f"experiment.rows.{row}_1.evaluate.multipliers=[1.0,2.0]" for row in ("cdrl", "drl")),
        *(f"experiment.rows.{row}_1.evaluate.search_samples=16" for row in ("cdrl", "drl")),
    ],
    "ablations": [
        "scale.samples=32", "experiment.rows.gradients=null",
        *(f"experiment.rows.{row}=null" for row in _UNUSED_ABLATIONS),
    ],
}  # fmt: skip
"""What a rehearsal changes further."""


class TrainingOnly(Plan):
    """A plan whose runs are trained and not looked at yet."""

    @classmethod
    def of(cls, plan: Plan) -> TrainingOnly:
        return cls(**{field.name: getattr(plan, field.name) for field in fields(plan)})

    def missing(self) -> list[Job]:
        return [Job(job.run, ()) for job in super().missing() if not job.run.done]


def train(session: Session, seconds: float, extra: tuple[str, ...] = ()) -> None:
    """Train every run that `EXPERIMENTS` need for ``seconds`` of this device each."""
    for name in (*EXPERIMENTS, *extra):
        plan = TrainingOnly.of(planned(command(session, name, seconds)))
        with session.deadline.enforced(RESERVE):
            carry_out([plan], lambda plan: None)
    print("trained; next: score")


def score(session: Session, seconds: float, extra: tuple[str, ...] = ()) -> None:
    """Sample and score what `train` has trained for ``seconds``; tables, figures and the report.

    Raises:
        OutOfTime: the deadline came first.
        RuntimeError: experiments failed, after the others; their own messages are on the screen.
    """
    failed = []
    for name in (*EXPERIMENTS, *extra):
        line = command(session, name, seconds)
        with session.deadline.enforced(RESERVE):
            code = run_suite(line)
        if code == 130:
            raise OutOfTime
        if code:
            failed.append(name)
        print(f"by itself: python -m experiments {shlex.join(line)}")
    if run_report(["--results", str(session.results)]):
        failed.append("report")
    if failed:
        raise RuntimeError(f"failed: {', '.join(failed)}")


def command(session: Session, name: str, seconds: float) -> list[str]:
    """The suite's command line for an experiment: chosen settings, and a budget for every row that trains.

    Budgets are numbers of each row's own (the scale's is one), measured on this device by the first call that needs
    them.
    """
    changes = {**EXPERIMENTS, **EXTRA}[name] + (TINY[name] if session.tiny else [])
    line = session.overrides(name, *session.chosen_overrides(), *changes)
    config = configuration.plain(configuration.resolve(line))
    budgets = [
        f"++experiment.rows.{row}.budget={_budget(session, settings, seconds)}"
        for row, settings in _trained_rows(config)
    ]
    return [*line, "scale.budget=1", *budgets]


def _trained_rows(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, row in config["experiment"]["rows"].items():
        if row and config["methods"][row["method"]]["kind"] not in UNTRAINED:
            yield name, row


def _budget(session: Session, row: Mapping[str, Any], seconds: float) -> int:
    """A row's budget: its method's own pace where a method differs by more than a switch, i.e. when conditional."""
    method, conditional = row["method"], bool((row.get("train") or {}).get("conditional"))
    key = f"{method}-conditional" if conditional else method

    def measured() -> dict[str, Any]:
        extra = [f"methods.{method}.conditional=true"] if conditional else []
        config = session.run_config(method, *session.chosen_overrides(), *extra)
        probe = 0.1 * seconds if session.tiny else PROBE
        return budget.measure(config, seconds, probe, session.training, session.engine, session.device)

    return int(session.parts("train").do(f"budget-{key}-{seconds:g}s", measured)["budget"])
