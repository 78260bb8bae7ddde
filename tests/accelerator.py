"""An accelerator without hardware: tensors of a device of its own that are kept, and computed, by the CPU.

Some mistakes show only where there are two devices, and here they show on any machine: a CPU tensor among the device's
is an error, and every place in which the host would wait for the device is noted. Numbers are the CPU's, bit for bit.

    with Accelerator() as accelerator:
        method = build(..., device=accelerator.device)
        method.train_step([Batch.whole(images.to(accelerator.device))], 0)
    assert accelerator.waits == []

PyTorch's interface for such devices is experimental: `AVAILABLE` says whether the installed version has it.

How to read a failure
---------------------
``RuntimeError: aten.mul.Tensor among tensors of the accelerator met CPU tensors of shapes [(32,)]``
    Somewhere a tensor was made without its device: an ``arange``, ``zeros`` or ``tensor`` that lacks ``device=``, or a
    constant that was not moved with the networks. The traceback's innermost line of this project is the operation that
    met it; look for where the operand of that shape is made. Zero-dimensional CPU tensors are allowed, as on a GPU.
``assert ['aten.copy_.default at cdrl/learner.py:88'] == []``
    A wait: at that line the host stopped until the device had caught up. ``_local_scalar_dense`` is an ``.item()``, a
    ``float(…)``, an ``if`` on a tensor; ``nonzero`` and ``masked_select`` are indexing with a mask; ``copy_`` and
    ``_to_copy`` bring data over, back (``.cpu()``), or there from memory that was not meant to be copied beside the
    work (``non_blocking=True``); ``tolist`` is itself. Keep the value on the device, make it there, or do it once
    before the loop. An entry with a file outside the project is a wait that no line of the project asked for.
Different numbers, no error
    The device computes with the CPU's kernels, so only the way can differ: another batch of random numbers (an index
    or a key made per device), another type, or work in another order. Compare after each operation; the first one
    that differs is the mistake.
``NotImplementedError`` or an internal assertion in ``torch/``
    An operation that this device does not know, usually after an update of PyTorch. Every one passes `_run`: print
    ``func`` there to see which it is, and what of it has to be held, computed and wrapped again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

_NAME = "elsewhere"
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
if AVAILABLE:  # at import, by conftest.py: autograd counts the kinds of devices at a process's first backward pass
    backend_registration._setup_privateuseone_for_python_backend(_NAME)

_ROOT = f"{Path(__file__).parents[1]}/"
_PACKAGES = tuple(_ROOT + package for package in ("cdrl", "baselines", "experiments"))
aten = torch.ops.aten
_COPIES = (aten.copy_, aten._foreach_copy_)
_READ_BACK = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero)
"""Their result, or its shape, depends on values: the host waits for these."""

_waits: list[str] = []


class Remote(Tensor):
    """A tensor on the accelerator; ``held`` is what it holds, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Remote:
        return Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            held.stride(),
            held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(_NAME, 0),
            requires_grad=held.requires_grad,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: None, size: object, stride: object) -> Remote:
        return Remote(inner["held"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        """Read back in one wait."""
        _wait("tolist")
        return self.held.tolist()


class _Dispatch(TorchDispatchMode):
    """Sees the operations that no tensor of the accelerator takes part in yet."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Accelerator(_Dispatch):
    """While it is entered there is a ``device``; ``waits`` lists, as "operation at file:line", what waited for it."""

    def __init__(self) -> None:
        super().__init__()
        _waits.clear()
        self.device = torch.device(_NAME)
        self.waits = _waits


def to_host(save: Callable[..., None]) -> Callable[..., None]:
    """A form of ``save(tensors, …)`` that fetches tensors first: safetensors reads a device's memory by itself."""

    def saving(tensors: dict[str, Tensor], *args: Any, **kwargs: Any) -> None:
        save({name: _held(value) for name, value in tensors.items()}, *args, **kwargs)

    return saving


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd):
        with _Dispatch():
            return func.decompose(*args, **kwargs)
    operation = func.overloadpacket
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    remote = [isinstance(tensor, Remote) for tensor in tensors]
    asked = kwargs.get("device")
    there = any(remote) if asked is None else torch.device(asked).type == _NAME
    if operation in _COPIES or operation is aten._to_copy:
        moved = len(set(remote)) == 2 if operation in _COPIES else remote[0] != there
        # The host's memory is not pinned here: bringing anything back waits, whatever "non_blocking" says.
        if moved and not (there and kwargs.get("non_blocking")):
            _wait(str(func))
    elif any(remote):
        strangers = [tuple(t.shape) for t, known in zip(tensors, remote, strict=True) if not known and t.dim()]
        if strangers:
            raise RuntimeError(f"{func} among tensors of the accelerator met CPU tensors of shapes {strangers}")
        if operation in _READ_BACK:
            _wait(str(func))
    if there and asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu"), "pin_memory": False}
    result = _computed(func, *pytree.tree_map(_held, (args, kwargs)))
    if operation in _COPIES:
        return args[0] if operation is aten.copy_ else None
    if operation is aten._to_copy:
        return Remote(result) if there else result
    if not there:
        return result
    result = pytree.tree_map(lambda x: Remote(x) if isinstance(x, Tensor) else x, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if any(remote) else result


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    """As a GPU does, convolutions sum bfloat16 in float32 and take one type only; the CPU's own can crash."""
    types = {leaf.dtype for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
    if torch.bfloat16 not in types or func.overloadpacket not in (aten.convolution, aten.convolution_backward):
        return func(*args, **kwargs)
    if len(types) > 1:
        raise RuntimeError(f"{func} of {types}")
    wide = pytree.tree_map_only(Tensor, Tensor.float, (args, kwargs))
    return pytree.tree_map_only(Tensor, Tensor.bfloat16, func(*wide[0], **wide[1]))


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Remote) else value


def _wait(operation: str) -> None:
    """Notes a wait, and the innermost line of this project that it happens in."""
    frame = sys._getframe(1)
    while frame.f_back is not None and not frame.f_code.co_filename.startswith(_PACKAGES):
        frame = frame.f_back
    _waits.append(f"{operation} at {frame.f_code.co_filename.removeprefix(_ROOT)}:{frame.f_lineno}")
