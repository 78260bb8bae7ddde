"""This machine and this code: devices, CPU cores, the commit, versions."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from cdrl.errors import UserError

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
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} (CPU)"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()} (CPU)"


def visible_gpus() -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` calls each GPU that this process may use; asks the driver, not the runtime."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def cpu_cores(root: Path = Path("/")) -> int:
    """CPU cores that this process may use: by its affinity, and by the quotas of its control groups, rounded up.

    Args:
        root: of the file system, whose ``proc`` and ``sys/fs/cgroup`` say what those are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(share) for share in _cpu_quotas(root))]))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Cores that the process's control group, and each above it, may use, where one is bounded.

    In a container the own group may be named as it is outside and lie at the top inside, so the top is always asked.
    """
    try:
        text = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace")
        groups = [line.split(":", 2) for line in text.splitlines()]
    except OSError:
        groups = []
    mounted = root / "sys" / "fs" / "cgroup"
    places = [(mounted, "/"), (mounted / "cpu", "/"), (mounted / "cpu,cpuacct", "/")]
    for _, controllers, name in (group for group in groups if len(group) == 3):
        if not controllers or "cpu" in controllers.split(","):  # the second version has one hierarchy without a name
            places.append((mounted / controllers, name))
    for top, name in places:
        inside = PurePosixPath(name.lstrip("/"))
        for group in (top / part for part in (inside, *inside.parents)):
            for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
                with suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
                    quota, period = " ".join((group / file).read_text() for file in files).split()
                    if int(quota) > 0:  # the first version's -1 is no bound
                        yield int(quota) / int(period)


def memory_bytes(device: str) -> int:
    """All of a GPU's memory; of this machine's, what its control group may take."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(torch.device(device)).total_memory
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return whole


def commit() -> str:
    """The checkout's commit, marked when code has changed since.

    Outside a checkout it is what ``CDRL_COMMIT`` says, for copies of the tree on other machines, or "unknown".
    """
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--", *_CODE)
        return git("rev-parse", "--short=12", "HEAD") + ("-modified" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("CDRL_COMMIT", "unknown")


def versions() -> dict[str, Any]:
    """Python, the packages that numbers depend on (None where one is not installed), system and cores."""
    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "python": platform.python_version(),
        "packages": packages,
        "cores": cpu_cores(),
        "system": platform.platform(),
    }
