"""Where numbers come from: the commit, the machine, the versions, the data."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from cdrl.errors import UserError
from experiments import data
from experiments.plan import Plan

_CODE = ("cdrl", "baselines", "experiments", "pyproject.toml", "constraints.txt")
_PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "clean-fid", "hydra-core", "safetensors")


def resolve_device(name: str) -> str:
    """``auto`` made definite. Raises `UserError` for a device this machine does not have."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device '{name}'; use auto, cpu, cuda or cuda:<number>") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device={name} needs an NVIDIA GPU, and this machine shows {torch.cuda.device_count()}; use device=cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{name}' is not supported; use auto, cpu, cuda or cuda:<number>")
    return name


def device_name(device: str) -> str:
    """The processor's or the GPU's own name."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} (CPU)"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()} (CPU)"


def commit() -> str:
    """The checkout's commit, marked when code has changed since.

    Outside a checkout it is what ``CDRL_COMMIT`` says, for copies of the tree on other machines, or "unknown".
    """
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--", *_CODE)
        return git("rev-parse", "--short=12", "HEAD") + ("-modified" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("CDRL_COMMIT", "unknown")


def _version(package: str) -> str | None:
    """None where a package is not installed: no protocol in use needed it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def provenance(plan: Plan, command: Sequence[str]) -> dict[str, Any]:
    training = data.load_config(plan.config["data"], "train")
    return {
        "command": " ".join(command),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "changed": list(plan.changed),
        "device": device_name(resolve_device(plan.config["device"])),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "data": {"name": training.name, "source": training.source, "sha256": training.checksum},
        "protocol": plan.config["metrics"],
        "configs": {str(job.run.folder): job.run.config for job in plan.jobs()},
    }
