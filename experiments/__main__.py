"""The suite's command line.

    python -m experiments experiment=table1 scale=nano [key=value …]

    experiment=NAME     a table or figure (see the list below), or all of them
    scale=NAME          nano (a laptop, minutes) | mini (one GPU, an hour) | paper (the paper's size)
    plan=true           print the cells, the missing runs and their cost, and stop
    --cfg job           print the resolved configuration and stop
    device=…            auto | cpu | cuda          launcher.workers=N   runs at a time
    runs=…, results=…   where runs and results go  scale.seeds=[0]      fewer seeds
    KEY=null            leave out a row or a part  +KEY=value           add a setting (both as in Hydra)

The same command continues what an earlier one left unfinished, and does nothing twice.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

import yaml
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from cdrl.errors import UserError
from experiments import catalogue, configuration
from experiments.cells import check_writable, write_results
from experiments.plan import Plan, make_plan
from experiments.report import build_experiment
from experiments.run import carry_out


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code: 0 done, 1 a mistake that can be mended, 130 interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _command(list(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues where this one stopped", file=sys.stderr)
        return 130


def _command(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        print(_experiments())
        return 0
    overrides, show = _without_cfg_job(arguments)
    unknown = [argument for argument in overrides if argument.startswith("-")]
    if unknown:
        raise UserError(f"unknown option {unknown[0]}; --help shows what there is")
    commands = catalogue.expand(overrides)
    configs = [configuration.resolve(command) for command in commands]
    if show:
        for config in configs:
            print(OmegaConf.to_yaml(config, resolve=True))
        return 0
    plans = [make_plan(config) for config in configs]
    if configs[0].plan:
        for plan in plans:
            _print_plan(plan)
        return 0
    for plan in plans:
        check_writable(plan)
    written: list[str] = []

    def write(plan: Plan) -> None:
        command = commands[plans.index(plan)]
        folder = write_results(plan, ["python", "-m", "experiments", *command])
        written.append(f"{build_experiment(folder)}\nwritten to {folder}")

    try:
        carry_out(plans, write)
    finally:  # not while progress is on the screen
        for text in written:
            Console().print(text, markup=False, highlight=False, soft_wrap=True)
    return 0


def _without_cfg_job(arguments: list[str]) -> tuple[list[str], bool]:
    """The other arguments, and whether ``--cfg job`` stood anywhere among them."""
    for place in range(len(arguments) - 1):
        if arguments[place : place + 2] == ["--cfg", "job"]:
            return arguments[:place] + arguments[place + 2 :], True
    return arguments, False


def _print_plan(plan: Plan) -> None:
    console = Console()
    table = Table(title=f"{plan.title} ({plan.scale})")
    for name in ("row", "seed", "budget (gradient evaluations × images)", "run", "evaluation"):
        table.add_column(name, overflow="fold")
    for row in plan.rows:
        for evaluation in row.evaluations:
            run = evaluation.run
            done = "done" if evaluation.done else "missing"
            budget = f"{run.config['budget']:,}" if run.config["method"]["kind"] not in ("real", "noise") else "–"
            table.add_row(row.label, str(run.seed), budget, run.status, f"{evaluation.settings['kind']}: {done}")
    console.print(table)
    missing = plan.missing()
    training = [job for job in missing if not job.run.done]
    cost = sum(job.run.config["budget"] for job in training)
    console.print(
        f"{len(plan.rows)} rows; {len(training)} runs to train ({cost:,} energy-gradient evaluations × images), "
        f"{sum(len(job.evaluations) for job in missing)} evaluations to do",
        highlight=False,
    )


def _experiments() -> str:
    lines = ["experiments:"]
    for name in configuration.choices("experiment"):
        manifest = yaml.safe_load((configuration.CONF / "experiment" / f"{name}.yaml").read_text())
        lines.append(f"    {name:<20}{manifest['experiment']['title']}")
    return "\n".join(lines)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
