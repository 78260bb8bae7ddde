"""State on disk that survives a kill at any moment, and trained models to be shared; safetensors and JSON, no pickle.

What is saved is a pair: ``<stem>-<hash>.safetensors``, named by its own content, and ``<stem>.json``, which names it
and has a checksum of itself: no bit of either can change unseen. The tensors are in place, complete and flushed, before
the JSON file is replaced by one rename: whenever the process dies, the folder holds the old pair or the new one. What
is not finished lies in a folder of its own, which the next save clears.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor, nn

from cdrl.errors import UserError
from cdrl.files import put, sha256
from cdrl.langevin import Langevin
from cdrl.model import Model, energy_sizes, filled, initializer_sizes
from cdrl.networks import EnergyNet, Initializer
from cdrl.noise import SCHEDULES, NoiseSchedule
from cdrl.sampler import Sampler

Facts = dict[str, Any]
_CHECKPOINT, _MODEL = "checkpoint", "model"
_FORMAT = 2
_UNCHECKED_FORMAT = 1
"""Of models from before an index had a checksum of itself."""


def save(folder: Path, tensors: Mapping[str, Tensor], facts: Facts, stem: str = _CHECKPOINT) -> None:
    """Replace what the folder holds under ``stem`` by these named tensors and these facts (anything JSON can hold).

    Raises:
        UserError: the folder cannot be written; what was there is then untouched.
    """
    folder = Path(folder)
    drafts = folder / f".{stem}.unfinished"
    try:
        # The tensors under a passing name, then under that of their content.
        shutil.rmtree(drafts, ignore_errors=True)
        drafts.mkdir(parents=True)
        draft = drafts / "tensors"
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, draft)
        digest, size = sha256(draft), draft.stat().st_size
        path = folder / f"{stem}-{digest[:16]}.safetensors"
        put(draft, path)

        # The index: from here on, it is the new pair that counts.
        index = {"format": _FORMAT, "file": path.name, "bytes": size, "sha256": digest, "facts": facts}
        draft = drafts / "index"
        draft.write_text(json.dumps({**index, "check": _check(index)}, indent=1))
        put(draft, _index(folder, stem))
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            shutil.rmtree(drafts)
        raise UserError(f"cannot write to {folder} ({error}); free space there or choose another folder") from None
    drafts.rmdir()
    for old in folder.glob(f"{stem}-*.safetensors"):
        if old != path:
            old.unlink(missing_ok=True)


def load(folder: Path, stem: str = _CHECKPOINT) -> tuple[dict[str, Tensor], Facts]:
    """What `save` left: the tensors by name, on the CPU, and the facts.

    Raises:
        UserError: there is nothing, or it is truncated or corrupt (size and SHA-256 are checked), or of another format.
            Nothing else is loaded in its place.
    """
    index = _read_index(folder, stem)
    path, size, digest = Path(folder) / index["file"], index["bytes"], index["sha256"]
    if not path.is_file():
        raise _corrupt(path, "it is missing")
    if path.stat().st_size != size:
        raise _corrupt(path, f"it has {path.stat().st_size:,} of {size:,} bytes")
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise _corrupt(path, "its content does not match its checksum")
        return load_tensors(content), index["facts"]
    except (OSError, SafetensorError) as error:
        raise _corrupt(path, f"it holds no tensors ({error!s:.80})") from None


def exists(folder: Path, stem: str = _CHECKPOINT) -> bool:
    """Whether `load` has something to load."""
    return _index(folder, stem).is_file()


def save_model(folder: Path, model: Model, half: bool = False) -> None:
    """Export a trained model: ``model.json`` and its weights, all that `load_model` needs.

    Args:
        folder: made if it does not exist; a model already there is replaced.
        model: its networks hold the weights to be kept, usually the averaged ones.
        half: round the weights to 16 bits, for half the size.

    Raises:
        UserError: the folder cannot be written.
    """
    sampler = model.sampler
    networks: dict[str, nn.Module] = {"energy_net": sampler.energy_net}
    facts: Facts = {
        "energy_net": energy_sizes(sampler.energy_net),
        "initializer": None,
        "schedule": _schedule_facts(sampler.schedule),
        "chain": asdict(sampler.chain),
        "shared_noise": sampler.shared_noise,
        "last_denoise": sampler.last_denoise,
    }
    if sampler.initializer is not None:
        networks["initializer"] = sampler.initializer
        facts["initializer"] = initializer_sizes(sampler.initializer, sampler.energy_net.image_size)
    tensors = {f"{part}.{name}": value for part, net in networks.items() for name, value in net.state_dict().items()}
    save(folder, {name: value.half() if half else value for name, value in tensors.items()}, facts, _MODEL)


def load_model(folder: Path, device: torch.device | str = "cpu") -> Model:
    """The inverse of `save_model`, in evaluation mode; weights of 16 bits become float32.

    Raises:
        UserError: no model there, or a truncated or corrupt one, or no such device.
    """
    device = _device(device)
    if os.path.lexists(folder) and not os.path.isdir(folder):  # which no name is too odd for
        raise UserError(f"no {_MODEL} in {folder}: it is no folder; pass the one that holds {_MODEL}.json")
    tensors, facts = load(folder, _MODEL)
    try:
        energy_net = filled(EnergyNet, _tuples(facts["energy_net"]), _part(tensors, "energy_net."))
        initializer = None
        if facts["initializer"]:
            initializer = filled(Initializer, _tuples(facts["initializer"]), _part(tensors, "initializer."))
        sampler = Sampler(
            energy_net=energy_net.to(device),
            initializer=initializer and initializer.to(device),
            schedule=_schedule(facts["schedule"]),
            shape=energy_net.shape,
            chain=Langevin(**facts["chain"]),
            shared_noise=facts["shared_noise"],
            last_denoise=facts["last_denoise"],
        )
    except torch.OutOfMemoryError:
        raise
    except (UserError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise _corrupt(_index(folder, _MODEL), f"it does not describe its weights ({error!r:.120})") from None
    return Model(sampler)


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"cannot use device '{device}' ({str(error).splitlines()[0]}); use cpu") from None


def _schedule_facts(schedule: NoiseSchedule) -> Facts:
    """By name and arguments, or, where it was not made by one of `SCHEDULES`, by its log-SNRs; both to every bit."""
    if schedule.name in SCHEDULES:
        return {"name": schedule.name, **schedule.arguments}
    return {"name": schedule.name, "logsnr": schedule.to("cpu", torch.float64).logsnr.tolist()}


def _schedule(facts: Facts) -> NoiseSchedule:
    arguments = {name: value for name, value in facts.items() if name != "name"}
    if facts["name"] in SCHEDULES:
        return SCHEDULES[facts["name"]](**arguments)
    return NoiseSchedule(torch.tensor(arguments["logsnr"], dtype=torch.float64), facts["name"])


def _index(folder: Path, stem: str) -> Path:
    return Path(folder) / f"{stem}.json"


def _check(index: Mapping[str, Any]) -> str:
    """SHA-256 of what an index says, but for this."""
    content = {name: value for name, value in index.items() if name != "check"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_index(folder: Path, stem: str) -> dict[str, Any]:
    path = _index(folder, stem)
    if os.path.exists(path) and not os.path.isfile(path):
        raise _corrupt(path, "it is no file")
    try:
        index = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"no {stem} in {folder}: {path.name} is missing; check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _corrupt(path, f"it cannot be read ({error!r:.80})") from None
    kinds = {"format": int, "file": str, "bytes": int, "sha256": str, "facts": dict}
    if not isinstance(index, dict) or "format" not in index:
        raise _corrupt(path, "it says nothing of its format")
    if index["format"] not in ((_FORMAT, _UNCHECKED_FORMAT) if stem == _MODEL else (_FORMAT,)):
        text = f"{path} has format {index['format']!r:.20}, this version reads {_FORMAT}"
        raise UserError(f"{text}; use the version that it is of, or delete {path.parent} to start afresh")
    if index["format"] == _FORMAT and index.get("check") != _check(index):
        raise _corrupt(path, "its content does not match its checksum")
    if wrong := [name for name, kind in kinds.items() if not isinstance(index.get(name), kind)]:
        raise _corrupt(path, f"it does not say {', '.join(wrong)}")
    if Path(index["file"]).name != index["file"]:
        raise _corrupt(path, "its tensors would lie elsewhere")
    return index


def _corrupt(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged: {reason}; restore it from a copy, or delete {path.parent} to start afresh")


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}


def _tuples(values: Facts) -> Facts:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
