"""``cdrl search``: settings for a method by successive halving, with every trial on record.

The training that a search may spend is shared evenly by its rounds, and in a round by the trials that are left; the
better third goes on with a longer run of its own (its learning rate decays over that length). The first trial is what
the scale's file says, the others are drawn with a fixed seed from ``conf/search/<method>.yaml``. Each is an ordinary
run, done by the suite's own engines, of a seed that no table uses; its score is the protocol's first metric on few
samples. ``results/search/<scale>/<method>.csv`` has a line per trial, also of those that diverged or did not fit into
memory, and what has a line is not tried again.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf, open_dict

from cdrl.errors import UserError
from experiments import checks, configuration
from experiments.files import COUNT, NUMBER, WORDS, read_csv, write_text
from experiments.metrics import metric
from experiments.plan import Plan, Row, make_plan
from experiments.run import carry_out

Settings = Mapping[str, Any]
"""A trial: dotted settings of the method, and their values."""
Line = dict[str, str]

SEED = 1_000_003
"""Of every trial; no table uses it."""
KEPT = 3
"""One trial in so many goes on to the next round."""
_COLUMNS = {
    **dict.fromkeys(("settings", "budget", "status", "protocol"), WORDS),
    **dict.fromkeys(("round", "samples"), COUNT),
    **dict.fromkeys(("iterations", "grad_evals"), rf"({COUNT})?"),
    **{"score": rf"{NUMBER}|nan|-?inf", "metric": r"\w+", "seconds": rf"({NUMBER})?", "trial": r"[\w./-]+"},
}
"""What the values of a search's record look like."""


def search(
    method: str,
    overrides: Sequence[str] = (),
    *,
    trials: int = 9,
    budget: int | Mapping[str, float] = {"seconds": 90.0},
    samples: int = 1000,
) -> list[str] | None:
    """Search settings for a method; say on the way how each trial went.

    Args:
        method: one that has a file in ``conf/search``.
        overrides: of every trial, e.g. ``["scale=mini", "launcher.seconds=520"]``.
        trials: in the first round.
        budget: training of all trials together: energy-gradient evaluations × images, or ``{"seconds": s}``.
        samples: that a trial is scored by; no more than the scale's.

    Returns:
        The overrides that make the best trial's settings, or None when ``launcher.seconds`` were over first.

    Raises:
        UserError: a mistake in the overrides, or no trial of a round has a score.
    """
    checks.count("--trials", trials)
    checks.count("--samples", samples)
    config = configuration.resolve(overrides)
    with open_dict(config):
        config.scale.budget, config.scale.seeds, config.scale.milestones = budget, [SEED], []
        config.scale.samples = min(samples, config.scale.samples)
        config.metrics.metrics = config.metrics.metrics[:1]
    path = Path(config.results or "results") / "search" / config.scale.name / f"{method}.csv"
    ends = time.monotonic() + (config.launcher.seconds or math.inf)

    # Trials that differ: a draw may be the scale's own settings in other words.
    drawn = candidates(space(method, config.scale.name), trials + 1)
    distinct: dict[str, Settings] = {}
    for row, settings in zip(_plan(config, method, drawn, 1.0).rows, drawn, strict=True):
        distinct.setdefault(_key(row), settings)
    alive = list(distinct.values())[:trials]
    sizes = rounds(len(alive))
    for number, size in enumerate(sizes, start=1):
        # A round is one plan with a row per trial; those on record are not done again.
        alive, log = alive[:size], read_log(path)
        plan = _plan(config, method, alive, 1.0 / (len(sizes) * size))
        new = [row for row in plan.rows if _key(row) not in log]
        seconds = ends - time.monotonic()
        if new and seconds <= 0:
            return None
        launcher = {**plan.config["launcher"], "seconds": seconds if math.isfinite(seconds) else None}
        try:
            carry_out([replace(plan, rows=tuple(new), config={**plan.config, "launcher": launcher})], lambda _: None)
        except UserError:
            failures = [failure for row in new if (failure := row.evaluations[0].run.failure()) is not None]
            if not failures or any(failure.mistake for failure in failures):
                raise
            # What crashed, for want of memory say, is an outcome too.
        finally:
            for row, settings in zip(plan.rows, alive, strict=True):
                if row in new and (line := _line(row, number, settings)) is not None:
                    log[_key(row)] = line
            if log:
                write_text(path, pd.DataFrame(list(log.values())).to_csv(index=False))
        if not all(_key(row) in log for row in plan.rows):
            return None

        # The better third goes on.
        lines = [log[_key(row)] for row in plan.rows]
        for line in lines:
            print(f"{method}, round {number} of {len(sizes)}: {line['score']} ({line['status']}) {line['settings']}")
        sign = -1.0 if metric(lines[0]["metric"]).better == "higher" else 1.0
        scores = [sign * float(line["score"]) for line in lines]
        ranking = sorted((score, place) for place, score in enumerate(scores) if math.isfinite(score))
        if not ranking:
            raise UserError(f"every trial of {method} failed in round {number}; see {path}")
        alive = [alive[place] for _, place in ranking]
    print(f"every trial is a line of {path}")
    return as_overrides(method, alive[0])


def space(method: str, scale: str) -> dict[str, list[Any]]:
    """What is searched: settings of the method, and their values. Raises `UserError` where nothing says so."""
    if method not in (known := configuration.choices("search")):
        raise UserError(f"no search space for '{method}'; there are {', '.join(known)} (experiments/conf/search)")
    by_scale = configuration.plain(OmegaConf.load(configuration.CONF / "search" / f"{method}.yaml"))
    if scale not in by_scale:
        raise UserError(
            f"no search space for {method} at scale={scale}; conf/search/{method}.yaml has {', '.join(by_scale)}"
        )
    return by_scale[scale]


def candidates(space: Mapping[str, Sequence[Any]], count: int, seed: int = 0) -> list[Settings]:
    """The scale's own settings (nothing changed), then distinct draws from ``space``; fewer if it is smaller."""
    everything = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    return [{}, *random.Random(seed).sample(everything, min(count - 1, len(everything)))]


def rounds(count: int) -> list[int]:
    """How many trials each round has."""
    return [count] if count <= KEPT else [count, *rounds(math.ceil(count / KEPT))]


def as_overrides(method: str, settings: Settings) -> list[str]:
    """A trial as a command line has it; a value that is a group of settings is one override for each."""
    lines = []
    for key, value in settings.items():
        group = {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, Mapping) else {key: value}
        lines += [f"methods.{method}.{name}={item}" for name, item in group.items()]
    return lines


def _plan(config: DictConfig, method: str, trials: Sequence[Settings], share: float) -> Plan:
    """One row per trial; each may spend ``share`` of the search's training."""
    config, rows = copy.deepcopy(config), {}
    for number, settings in enumerate(trials):
        changes = (line.removeprefix(f"methods.{method}.") for line in as_overrides(method, settings))
        train = OmegaConf.from_dotlist(list(changes))
        row = {"method": method, "train": train, "evaluate": {"kind": "samples"}, "budget": share}
        rows[f"trial {number}"] = row
    with open_dict(config):
        config.experiment.rows = rows
    return replace(make_plan(config), name=f"search {method}")


def _key(row: Row) -> str:
    """What a trial is called: its evaluation's folder, which is a function of everything that decides the score."""
    return "/".join(row.evaluations[0].folder.path.parts[-6:])


def _line(row: Row, number: int, settings: Settings) -> Line | None:
    """How a trial ended; None where it has not."""
    (evaluation,) = row.evaluations
    run, protocol = evaluation.run, evaluation.settings["metrics"]
    training, result, failure = run.status(), evaluation.folder.result(), run.failure()
    score = math.nan
    if result is not None and result.mistake:
        raise UserError(result.reason)
    if result is not None and result.outcome != "done":
        status = f"{result.outcome}: {result.reason}"
    elif result is not None:
        score = next(one.value for one in result.measurements if one.metric == protocol["metrics"][0])
        status = "finished"
    elif training is not None and training.status == "diverged":
        status = f"diverged: {training.reason}"
    elif failure is not None and not failure.mistake:
        status = failure.message
    else:
        return None
    facts = {
        "round": number, "settings": json.dumps(settings), "budget": json.dumps(evaluation.run_settings.budget),
        "score": f"{score:.6g}", "status": status, "metric": protocol["metrics"][0], "protocol": protocol["name"],
        "samples": evaluation.settings["samples"], "seconds": f"{training.seconds:.3f}" if training else "",
        **{name: getattr(training, name, "") for name in ("iterations", "grad_evals", "device", "commit")},
        "trial": _key(row),
    }  # fmt: skip
    return {name: str(value) for name, value in facts.items()}


def read_log(path: Path) -> dict[str, Line]:
    """The lines of a search by trial, values as text."""
    if not path.exists():
        return {}
    return {line["trial"]: line for line in read_csv(path, _COLUMNS)}
