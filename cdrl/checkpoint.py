"""Checkpoints: safetensors for the numbers, JSON for the facts; whole or not there.

A folder holds ``checkpoint.json``, which names one ``checkpoint-<n>.safetensors`` with its size and SHA-256. The
tensors are written first and the JSON is renamed over the old one last, so that a kill at any moment leaves the old pair
or the new one.
No pickle is involved.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from cdrl.errors import UserError

INDEX = "checkpoint.json"


def exists(folder: Path) -> bool:
    """Whether there is a checkpoint to load."""
    return (folder / INDEX).exists()


def save(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Replace the folder's checkpoint.

    Args:
        folder: made when missing.
        tensors: any shapes, any device.
        facts: what JSON can hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old = _index(folder)["file"] if exists(folder) else None
    name = f"checkpoint-{int(old.split('-')[1].split('.')[0]) + 1 if old else 0}.safetensors"
    # Contiguous copies: safetensors refuses tensors that share memory.
    safetensors.save_file(
        {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, folder / name
    )
    data = (folder / name).read_bytes()
    index = {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "facts": facts}
    temporary = folder / f".{INDEX}.{os.getpid()}"
    with temporary.open("w") as file:
        json.dump(index, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / INDEX)
    for stale in folder.glob("checkpoint-*.safetensors"):
        if stale.name != name:
            stale.unlink(missing_ok=True)


def load(folder: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The folder's checkpoint: tensors and facts.

    Raises:
        UserError: it is missing, truncated or altered; the message names the file and the remedy.
    """
    if not exists(folder):
        raise UserError(f"no checkpoint in {folder}; train the run first")
    index = _index(folder)
    path = folder / index["file"]
    remedy = f"delete {folder} to start this run again"
    data = path.read_bytes() if path.exists() else b""
    if len(data) != index["bytes"]:
        raise UserError(f"{path} is truncated ({len(data)} of {index['bytes']} bytes); {remedy}")
    if hashlib.sha256(data).hexdigest() != index["sha256"]:
        raise UserError(f"{path} does not match its SHA-256; {remedy}")
    try:
        tensors = safetensors.load(data)
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}") from error
    return {key: value.to(device) for key, value in tensors.items()}, index["facts"]


def _index(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / INDEX).read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{folder / INDEX} is not valid JSON; delete {folder} to start this run again") from error
