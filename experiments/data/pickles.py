"""Pickled data batches, read without trust: numpy arrays and plain containers are admitted, nothing else.

Both data sets that come this way (CIFAR's "python version", downsampled ImageNet) hold one dictionary of arrays,
lists, strings and numbers. A pickle can name any function to call while loading; here only those that build an array
are found, and dtypes that could hold Python objects are refused.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from cdrl.errors import UserError


def load_batch(path: Path) -> dict[str, Any]:
    """The dictionary in a pickled batch file (Python 2 or 3), its keys as strings.

    Raises `UserError` if the file is missing, damaged, or holds anything but arrays and plain containers.
    """
    try:
        with path.open("rb") as file:
            content = _PlainUnpickler(file, encoding="latin1").load()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; get the data set again, or name the folder that holds it") from None
    except Exception as error:  # a damaged pickle can fail in any opcode
        raise UserError(f"{path}: not a data batch of arrays and plain values ({error}); get it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a dictionary of arrays; get it again")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in content.items()}


class _PlainUnpickler(pickle._Unpickler):
    """Finds the constructors of arrays, under numpy's old and new module names.

    The one in Python, not in C, which makes room for every object that a pickle says it will number: a few bytes could
    ask for all memory.
    """

    def find_class(self, module: str, name: str) -> Any:
        admitted = _ADMITTED.get(f"{module.replace('numpy._core', 'numpy.core')}.{name}")
        if admitted is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return admitted

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to an object outside the file")


def _dtype(*args: Any) -> np.dtype[Any]:
    kind: np.dtype[Any] = np.dtype(*args)
    if kind.kind not in "biuf":
        raise pickle.UnpicklingError(f"it holds an array of {kind}")
    return kind


class _ArrayType:
    """Stands for numpy's class of arrays, which a pickle names but has no reason to call: it would take any shape."""


def _empty_array(subtype: type, shape: tuple[int, ...], code: bytes | str) -> np.ndarray:
    """The empty array that numpy's pickles start from; the state that follows sets shape, dtype and data."""
    return np.ndarray((0,), dtype=np.int8)


def _array_from_bytes(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...], order: str) -> np.ndarray:
    """The form of an array in pickle protocol 5."""
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: np.dtype[Any], data: bytes | str) -> Any:
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype=dtype)[0]


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Bytes as Python 3 writes them in old protocols: as text to encode."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}")
    return text.encode("latin1")


_ADMITTED: dict[str, Any] = {
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array_from_bytes,
    "numpy.ndarray": _ArrayType,
    "numpy.dtype": _dtype,
    "_codecs.encode": _latin1,
    "collections.OrderedDict": dict,
}
