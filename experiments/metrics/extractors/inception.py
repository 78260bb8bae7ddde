"""clean-fid's Inception in its three modes: 2,048 features, and the class probabilities of the same network.

=================== ======================= ============================================== ===========================
mode                network                 resizing to 299×299                            compare with
=================== ======================= ============================================== ===========================
clean               2015 graph, TorchScript Pillow's bicubic, antialiased, per channel     clean-fid
legacy_tensorflow   2015 graph, TorchScript bilinear, inside the network                   the original TensorFlow FID
legacy_pytorch      pytorch-fid's port      PyTorch's bilinear                             pytorch-fid
=================== ======================= ============================================== ===========================

Parmar et al., "On aliased resizing and surprising subtleties in GAN evaluation" (2022). Probabilities are over the
graph's 1,008 outputs and without its output bias, as in the original Inception Score.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cdrl.errors import UserError
from experiments.files import sha256
from experiments.metrics.extractors import Extracted, Pixels, extract, to_nchw
from experiments.metrics.weights import WeightFile

TORCHSCRIPT = WeightFile(
    name="inception-2015-12-05.pt",
    url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    needed_for="fid-clean, fid-legacy-tensorflow",
)
PORT = WeightFile(
    name="pt_inception-2015-12-05-6726825d.pth",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    needed_for="fid-legacy-pytorch, fid-released-5k",
)
_CPU_BATCH = 4
"""CPU ms per CIFAR-10 image for 1, 2, 4, 8, 16, 32, 64 at once, one thread: 206, 190, 178, 183, 197, 226, 238."""
FILES = {"clean": TORCHSCRIPT, "legacy_tensorflow": TORCHSCRIPT, "legacy_pytorch": PORT}


class Inception:
    """See the module's docstring; arguments and errors as of `build`, which names ``mode`` in `INCEPTION_MODES`.

    A missing weight file is downloaded into ``cache/weights/``.
    """

    dim, classes = 2048, 1008

    def __init__(
        self, mode: str, cache: Path, device: torch.device, weights: str | Path | None = None,
        expected: str | None = None,
    ) -> None:  # fmt: skip
        from cleanfid.resize import build_resizer

        path = FILES[mode].get(cache, weights, expected)
        self.name = "inception-" + mode.replace("_", "-")
        self.sha256 = sha256(path)
        self._device = device
        with warnings.catch_warnings():  # clean-fid calls dated functions, and turns all warnings off for good
            warnings.simplefilter("ignore")
            self._resize = build_resizer(mode)
            self._network, self._head = _open(mode, path, device)

    def __call__(self, pixels: Pixels) -> Extracted:
        """Features (n, 2048) and probabilities (n, 1008) of grey or colour ``pixels``."""
        images = to_nchw(pixels, 3, "cpu").permute(0, 2, 3, 1).numpy()
        resized = torch.from_numpy(np.stack([self._resize(image) for image in images]))

        def classified(images: Tensor) -> Extracted:
            features = self._network(images)
            return Extracted(features, F.linear(features, self._head).softmax(dim=1))

        return extract(classified, to_nchw(resized, 3, self._device), _CPU_BATCH)


def _open(mode: str, path: Path, device: torch.device) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """clean-fid's network on pixels 0 … 255, and the output weights (1008, 2048)."""
    from cleanfid import inception_pytorch, inception_torchscript

    if mode == "legacy_pytorch":
        state = torch.load(path, map_location="cpu", weights_only=True)
        # The library's own loader goes to the network and unpickles whatever comes; hand it the verified tensors.
        with mock.patch.object(inception_pytorch, "load_state_dict_from_url", return_value=state):
            port = inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False).to(device).eval()
        return lambda x: port(x / 255)[0].flatten(1), state["fc.weight"].to(device)

    if path.name != TORCHSCRIPT.name:
        raise UserError(f"clean-fid opens this network only by its own name; rename {path} to {TORCHSCRIPT.name}")
    inside = mode == "legacy_tensorflow"
    network = inception_torchscript.InceptionV3W(str(path.parent), download=False, resize_inside=inside)
    network = network.to(device).eval()
    return network, network.base.output.weight
