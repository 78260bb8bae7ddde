"""Where an experiment's numbers come from: command, commit, machine, versions, data, settings of every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from experiments.data import DataSettings
from experiments.plan import Plan
from experiments.runs.machine import commit, device_name, resolve_device, versions


def provenance(plan: Plan, command: Sequence[str]) -> dict[str, Any]:
    training = DataSettings(**plan.config["data"]).load("train")
    return {
        "command": " ".join(command),
        "commit": commit(),
        "changed": list(plan.changed),
        "device": device_name(resolve_device(plan.config["device"])),
        **versions(),
        "data": {"name": training.name, "source": training.source, "sha256": training.checksum},
        "protocol": plan.config["metrics"],
        "configs": {str(job.run.path): asdict(job.settings) for job in plan.jobs()},
    }
