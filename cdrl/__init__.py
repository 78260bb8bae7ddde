"""Cooperative diffusion recovery likelihood: energy-based models on a ladder of noise levels.

model = cdrl.load("exported/")        # see cdrl.checkpoint.save_model
images = model.sample(64, seed=0)     # (64, C, H, W) in [−1, 1]
"""

from importlib.metadata import PackageNotFoundError, version

from cdrl.checkpoint import load_model as load
from cdrl.model import Model

__all__ = ["Model", "__version__", "load"]

try:
    __version__ = version("cdrl")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0+unknown"
