"""Numbers of DRL's release: energies, input gradients and noise levels by the authors' own TensorFlow code.

A script of its own, because it needs TensorFlow and this project does not:

    CDRL_DRL_REPO=<checkout of github.com/ruiqigao/recovery_likelihood> python tests/baselines/drl_golden.py FILE

in an environment with numpy, tensorflow and tf_keras writes what ``drl_golden.json`` holds (TensorFlow 2.21). Weights
are filled by a formula that the test shares; of the authors' code nothing is copied, and what it imports but does not
need here is replaced by a stand-in.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SIZES: dict[str, Any] = {"image_size": 8, "channels": 3, "width": 8, "multipliers": (1, 2), "blocks": 2}
LEVELS = 6
SECOND = (0.2, 1.6)
"""Spectral norms of second convolutions, roughly, block by block in turn: below their bound, and above it."""
CUTS = (2, 3, 4, 6, 10, 501)
"""Numbers of levels whose schedule is looked at."""


def numbers(count: int, stream: int) -> Array:
    """Numbers in (−1, 1) that look random, ``(count,)``: the fractional part of a large sine."""
    noise = np.sin(np.arange(1, count + 1) * 12.9898 + 78.233 * stream) * 43758.5453
    return np.asarray(2.0 * (noise - np.floor(noise)) - 1.0, dtype=np.float64)


def images() -> Array:
    """One image for each level, ``(LEVELS, H, W, C)``."""
    size, channels = SIZES["image_size"], SIZES["channels"]
    return rounded(numbers(LEVELS * size * size * channels, 0).reshape(LEVELS, size, size, channels))


def layers() -> dict[str, tuple[int, ...]]:
    """The layers by our names, with TensorFlow's shapes of their weights: outputs last."""
    width, channels = SIZES["width"], SIZES["channels"]
    embedding = 4 * width
    shapes: dict[str, tuple[int, ...]] = {
        "embed_in": (width, embedding),
        "embed_out": (embedding, embedding),
        "stem": (3, 3, channels, width),
    }
    inputs, number = width, 0
    for multiplier in SIZES["multipliers"]:
        outputs = multiplier * width
        for _ in range(SIZES["blocks"]):
            block = f"blocks.{number}"
            shapes[f"{block}.first"] = (3, 3, inputs, outputs)
            shapes[f"{block}.second"] = (3, 3, outputs, outputs)
            shapes[f"{block}.time"] = (embedding, outputs)
            if inputs != outputs:
                shapes[f"{block}.shortcut"] = (3, 3, inputs, outputs)
            inputs, number = outputs, number + 1
    return {**shapes, "readout": (embedding, inputs)}


def filled() -> dict[str, Array]:
    """Weights, biases, gains and spectral vectors by our names, in TensorFlow's shapes, rounded to float32."""
    values: dict[str, Array] = {}
    for stream, (name, shape) in enumerate(layers().items(), start=1):
        fan_in, outputs = math.prod(shape[:-1]), shape[-1]
        weight = numbers(math.prod(shape), 10 * stream).reshape(shape) * math.sqrt(3.0 / fan_in)
        if name.endswith(".second"):
            weight *= SECOND[int(name.split(".")[1]) % 2]
            values[f"{name.removesuffix('.second')}.gain"] = 1.0 + 0.3 * numbers(outputs, 10 * stream + 3)
        values[f"{name}.weight"] = weight
        values[f"{name}.bias"] = 0.2 * numbers(outputs, 10 * stream + 1)
        if name != "readout":
            vector = numbers(outputs, 10 * stream + 2)
            values[f"{name}.u"] = vector / np.linalg.norm(vector)
    return {name: rounded(value) for name, value in values.items()}


def rounded(values: Array) -> Array:
    """To float32 and back."""
    return values.astype(np.float32).astype(np.float64)


def authors(repository: str) -> tuple[ModuleType, ModuleType]:
    """Their modules of the network and of the model, importable with today's TensorFlow."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.modules["tensorflow_addons"] = ModuleType("tensorflow_addons")  # normalisation layers, which are off
    sys.path.insert(0, repository)
    import config
    import model
    import network

    config.FLAGS(["drl_golden"])  # every flag at its default
    return network, model


def fill(net: Any) -> None:
    """Put `filled` into the authors' network, which has been called once."""
    levels = [block for blocks in net.res_levels for block in blocks]
    parts = {"embed_in": net.temb_dense_0.dense, "embed_out": net.temb_dense_1.dense, "stem": net.conv2d_in.conv}
    for number, block in enumerate(levels):
        parts[f"blocks.{number}.first"] = block.conv2d_1.conv
        parts[f"blocks.{number}.second"] = block.conv2d_2.conv
        parts[f"blocks.{number}.time"] = block.dense.dense
        if f"blocks.{number}.shortcut" in layers():
            parts[f"blocks.{number}.shortcut"] = block.conv2d_shortcut.conv
    values = filled()
    for name, normalised in parts.items():
        normalised.w.assign(values[f"{name}.weight"])
        normalised.u.assign(values[f"{name}.u"][None])
        normalised.layer.b.assign(values[f"{name}.bias"])
        if name.endswith(".second"):
            normalised.layer.g.assign(values[f"{name.removesuffix('.second')}.gain"])
    net.temb_dense_2.dense.W.assign(values["readout.weight"])
    net.temb_dense_2.dense.b.assign(values["readout.bias"])


def golden(repository: str) -> dict[str, Any]:
    """Energies and input gradients of the first and the third pass (each has its power iteration), and levels."""
    network, model = authors(repository)
    import tensorflow as tf

    net = network.net_res_temb2(
        name="net",
        ch=SIZES["width"],
        ch_mult=SIZES["multipliers"],
        num_res_blocks=SIZES["blocks"],
        attn_resolutions=(),
    )
    y, level = tf.constant(images(), tf.float32), tf.range(LEVELS)
    net(y, level, dropout=0.0)
    fill(net)
    passes = {}
    for number in (1, 2, 3):
        with tf.GradientTape() as tape:
            tape.watch(y)
            energy = net(y, level, dropout=0.0)
        passes[str(number)] = {"energy": energy.numpy(), "gradient": tape.gradient(energy, y).numpy()}
    scales = {}
    for levels in CUTS:
        _, a = model.get_sigma_schedule(beta_start=1e-4, beta_end=0.02, num_diffusion_timesteps=levels)
        scales[str(levels)] = a
    return {
        "tensorflow": tf.__version__,
        "passes": {number: listed(passes[number]) for number in ("1", "3")},
        "scales": listed(scales),
    }


def listed(arrays: dict[str, Any]) -> dict[str, Any]:
    """Arrays as lists of numbers of nine digits or more, which is all that float32 has."""
    return {
        name: np.vectorize(lambda x: float(f"{x:.9g}"))(array).tolist() if array.dtype == np.float32 else array.tolist()
        for name, array in arrays.items()
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(golden(os.environ["CDRL_DRL_REPO"])) + "\n")
