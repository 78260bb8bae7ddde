"""Cooperative diffusion recovery likelihood: energy-based models on a ladder of noise levels.

model = cdrl.load("exported/")        # see cdrl.checkpoint.save_model
images = model.sample(64, seed=0)     # (64, C, H, W) in [−1, 1]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdrl.checkpoint import load_model as load
    from cdrl.model import Model

    __version__: str

__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """What brings PyTorch along is imported when it is first asked for: `cdrl --help` need not wait for it."""
    if name == "load":
        from cdrl.checkpoint import load_model

        return load_model
    if name == "Model":
        from cdrl.model import Model

        return Model
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("cdrl")
        except PackageNotFoundError:  # a checkout that was not installed
            return "0+unknown"
    raise AttributeError(f"module 'cdrl' has no attribute '{name}'")
