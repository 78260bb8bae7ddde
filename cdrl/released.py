"""The authors' checkpoint files (of Zhu et al. 2024, ``*.pth.tar``): read, and sampled as they were sampled.

A file holds the live weights of both networks ("pi" is the energy network, "p" the initializer), under names that
distributed training prefixes with ``module.``, and torch-ema's list of averaged parameters, in parameter order and
without names. The sizes of the networks are told from the shapes. Spectral norm keeps ``weight_orig``, ``weight_u`` and
``weight_v``; there are no averages of the vectors, so the live ones go with both (the release does the same).
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdrl.cooperative import Settings
from cdrl.errors import UserError
from cdrl.langevin import Langevin
from cdrl.learner import Optimisation
from cdrl.model import Model, filled
from cdrl.networks import EnergyNet, Initializer
from cdrl.noise import cosine_logsnr
from cdrl.sampler import Sampler

WEIGHTS = ("ema", "live")
_BUFFERS = ("weight_u", "weight_v")
_SPECTRAL = {"weight_orig": "weight", "bias": "bias", "weight_u": "u", "weight_v": "v"}
_STAGE = {
    "norm1": "block.norm_in",
    "conv1": "block.conv_in",
    "norm2": "block.norm_out",
    "conv2": "block.conv_out",
    "mlp.1": "block.scale_shift",
    "res_conv": "block.shortcut",
    "norm": "attention.norm",
    "to_qkv": "attention.query_key_value",
    "to_out": "attention.out",
}
"""The parts of a residual block and of the attention after it: released name → ours."""

State = Mapping[str, Tensor]


def load(path: Path | str, weights: str = "ema") -> tuple[EnergyNet, Initializer]:
    """The two networks of an authors' checkpoint, on the CPU in evaluation mode.

    Args:
        path: a ``.pth.tar`` file, which in truth is a zip archive; read with ``weights_only=True``, and only where what
            it claims to hold is no more than its size.
        weights: "ema", what the published numbers were sampled from, or "live".

    Returns:
        Networks of the file's sizes, class-conditional if the file's are. The image size is told from where attention
        is: the released networks have it at 16 and 8 pixels (32 is assumed without any).

    Raises:
        UserError: no such file, or not one of the authors'.
    """
    if weights not in WEIGHTS:
        raise UserError(f"unknown weights '{weights}'; choose one of {', '.join(WEIGHTS)}")
    path = Path(path)
    content = _read(path)
    try:
        energy_state, initializer_state = (_network_state(content, name, weights) for name in ("pi", "p"))
        held = sum(value.nbytes for state in (energy_state, initializer_state) for value in state.values())
        if held > path.stat().st_size:  # tensors that repeat one number, or share theirs
            raise ValueError("its tensors claim more than the file's size")
        sizes = _initializer_sizes(initializer_state)
        initializer = filled(Initializer, sizes, _initializer_names(initializer_state))
        sizes = {"image_size": sizes["image_size"], **_energy_sizes(energy_state)}
        energy_net = filled(EnergyNet, sizes, _energy_names(energy_state))
    except (UserError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise UserError(
            f"{path} is no checkpoint of the released CDRL networks ({_brief(error)}); download the authors' file again"
        ) from None
    return energy_net, initializer


def settings() -> Settings:
    """The released code's switches, quirks included: what the authors' weights were trained and are sampled with."""
    return Settings(
        schedule=cosine_logsnr(),
        shared_noise=True,
        chain=Langevin(steps=15, step_variance=4e-4),
        last_denoise="official",
        spectral_ema="live",
        initializer_target="noisy",
        label_dropout=0.1,
    )


def optimisation() -> tuple[Optimisation, Optimisation]:
    """How the authors trained the energy network and the initializer."""
    energy = Optimisation(learning_rate=1e-4, warm_up=10_000, warm_up_start=0, clip=1.0, ema=0.9999, ema_ramp=1)
    return energy, replace(energy, learning_rate=1e-5, warm_up_start=500)


def model(path: Path | str, weights: str = "ema", device: torch.device | str = "cpu") -> Model:
    """An authors' checkpoint to be sampled as released, or saved with `cdrl.checkpoint.save_model`; see `load`."""
    energy_net, initializer = load(path, weights)
    switches = settings()
    return Model(
        Sampler(
            energy_net=energy_net.to(device),
            initializer=initializer.to(device),
            schedule=switches.schedule,
            shape=energy_net.shape,
            chain=switches.chain,
            shared_noise=switches.shared_noise,
            last_denoise=switches.last_denoise,
        )
    )


def _read(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):  # a pipe or a device would be waited for
        raise UserError(f"no file {path}; download the authors' checkpoint and pass its path")
    try:
        with path.open("rb") as file:
            _check_claims(zipfile.ZipFile(file), path.stat().st_size)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} cannot be read as a checkpoint ({_brief(error)}); download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no dictionary of networks; pass one of the authors' .pth.tar files")
    return content


def _check_claims(archive: zipfile.ZipFile, size: int) -> None:
    """Raises ValueError where reading would take more memory than the file's ``size``: PyTorch stores, uncompressed."""
    if sum(entry.file_size for entry in archive.infolist()) > size:
        raise ValueError("it claims to hold more than its own size")
    for entry in archive.infolist():
        if entry.filename.endswith(".pkl") and b"bytearray" in archive.read(entry):  # of any size, in ten bytes
            raise ValueError("it holds what no checkpoint of tensors needs")


def _network_state(content: Mapping[str, Any], network: str, weights: str) -> dict[str, Tensor]:
    """One network's tensors by released name; with "ema" the averages stand in for the parameters, in order."""
    live = {name.removeprefix("module."): value for name, value in content[f"{network}_state_dict"].items()}
    if weights == "live":
        return live
    averages = content[f"{network}_ema_state_dict"]["shadow_params"]
    names = [name for name in live if not name.endswith(_BUFFERS)]  # a state dict lists parameters in their order
    if [value.shape for value in averages] != [live[name].shape for name in names]:
        raise ValueError(f"the averages of '{network}' do not fit its parameters")
    return {**live, **dict(zip(names, averages, strict=True))}


def _energy_sizes(state: State) -> dict[str, Any]:
    width, channels = state["module_list.0.weight_orig"].shape[:2]
    numbers = sorted({int(name.split(".")[1]) for name in state if re.match(r"module_list\.\d+\.conv1\.", name)})
    # Poolings have no tensors: the residual blocks of a resolution are a run of consecutive numbers.
    ends = [n for n in numbers if n + 1 not in numbers]
    return {
        "channels": channels,
        "width": width,
        "multipliers": tuple(state[f"module_list.{end}.g"].shape[1] // width for end in ends),
        "blocks": ends[0] - numbers[0] + 1,
        "classes": state["y_map.weight_orig"].shape[1] - 1 if "y_map.weight_orig" in state else 0,
        "kernel": state["module_list.0.weight_orig"].shape[-1],
    }


def _energy_names(state: State) -> dict[str, Tensor]:
    """The released energy network's tensors under our names."""
    parts = {"embed_in": "temb_map1", "embed_out": "temb_map2", "embed_label": "y_map", "stem": "module_list.0"}
    numbers = sorted({int(name.split(".")[1]) for name in state if name.endswith(".g")})
    for block, number in enumerate(numbers):
        for part, released in (
            ("first", "conv1"),
            ("second", "conv2"),
            ("time", "temb_map"),
            ("shortcut", "short_cut"),
        ):
            parts[f"blocks.{block}.{part}"] = f"module_list.{number}.{released}"
    named = {"readout.weight": state["temb_final.weight"]}
    named |= {f"blocks.{block}.gain": state[f"module_list.{n}.g"].flatten() for block, n in enumerate(numbers)}
    for part, released in parts.items():
        for theirs, mine in _SPECTRAL.items():
            if f"{released}.{theirs}" in state:
                named[f"{part}.{mine}"] = state[f"{released}.{theirs}"]
    return named


def _initializer_sizes(state: State) -> dict[str, Any]:
    width, channels, kernel = state["init_conv.weight"].shape[:3]
    resolutions = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("downs."))
    last = {name.split(".")[2] for name in state if re.match(rf"downs\.{resolutions - 1}\.\d+\.conv1\.", name)}
    attended = sorted({int(name.split(".")[1]) for name in state if re.match(r"downs\..*\.to_qkv\.weight", name)})
    multipliers = tuple(state[f"downs.{n}.0.conv1.weight"].shape[0] // width for n in range(resolutions))
    # Attention is at 16 and 8 pixels: the first resolution that has it is 16 pixels high, unless the images are of 8.
    image_size = 32 if not attended else 8 if attended == [0] and resolutions > 1 else 16 << attended[0]
    return {
        "image_size": image_size,
        "channels": channels,
        "width": width,
        "multipliers": multipliers,
        "blocks": len(last),
        "classes": state["y_mlp.0.weight"].shape[1] - 1 if "y_mlp.0.weight" in state else 0,
        "attention_sizes": tuple(image_size >> n for n in attended),
        "kernel": kernel,
    }


def _initializer_names(state: State) -> dict[str, Tensor]:
    """The released U-Net's tensors under our names."""
    parts = {
        "init_conv": "stem",
        "time_mlp.1": "embed_in",
        "time_mlp.3": "embed_out",
        "y_mlp.0": "embed_label",
        "norm": "norm_out",
        "final_conv": "conv_out",
    }
    for released, mine in _stages(state):
        parts |= {f"{released}.{theirs}": f"{mine}.{part}" for theirs, part in _STAGE.items()}
    split = (name.rpartition(".") for name in state)
    return {f"{parts[part]}.{kind}": state[f"{part}.{kind}"] for part, _, kind in split}


def _stages(state: State) -> Iterator[tuple[str, str]]:
    """(released module, our stage); an attention belongs to the stage of the residual block before it."""
    yield from (("mid_block1", "middle.0"), ("mid_attn", "middle.0"), ("mid_block2", "middle.1"))
    for released, mine in (("downs", "down"), ("ups", "up")):
        places = {tuple(map(int, name.split(".")[1:3])) for name in state if name.startswith(f"{released}.")}
        number = -1
        for resolution, place in sorted(places):
            module = f"{released}.{resolution}.{place}"
            number += f"{module}.conv1.weight" in state
            yield module, f"{mine}.{number}"


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]
