"""A device that there is not: its tensors compute on the CPU, and what an accelerator would wait for is counted.

Importing this registers a backend with torch, for good: do so in a process of its own. It needs torch 2.9.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("emulated")
DEVICE = torch.device("emulated", 0)

WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_consecutive"}
"""Operators for whose result the host waits, besides copies to it and indexing by a mask."""
MIXES = {"copy_", "_to_copy", "_copy_from", "index", "index_put_", "_index_put_impl_"}
"""Operators that take tensors of the CPU beside those of a device, as on CUDA: copies, and indices."""

_into: list[Counter[str]] = []


@contextlib.contextmanager
def counted(into: Counter[str]) -> Iterator[None]:
    """Count what the host waits for in the block, by operator, and copies with their elements.

    ``copy of 40`` goes to the host; ``upload of 40`` to the device, from a host that does not go on meanwhile.
    """
    _into.append(into)
    try:
        yield
    finally:
        _into.pop()


class EmulatedTensor(torch.Tensor):
    """A tensor whose values are those of ``raw``, on the CPU."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> EmulatedTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=DEVICE
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __format__(self, spec: str) -> str:
        return self.item().__format__(spec) if self.dim() == 0 else object.__format__(self, spec)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return EmulatedTensor, (self.raw,)  # comes back to the device

    def __repr__(self) -> str:
        return f"EmulatedTensor({self.raw})"


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator on the values, and count what the host waits for."""
    name = func._schema.name.removeprefix("aten::")
    leaves = tree_leaves((args, kwargs))
    here = [leaf for leaf in leaves if isinstance(leaf, EmulatedTensor)]
    others = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, EmulatedTensor)]
    if here and name not in MIXES and any(other.dim() for other in others):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {DEVICE} and cpu.")
    out = func(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
    to_host = name == "_to_copy" and torch.device(kwargs.get("device") or DEVICE).type == "cpu"
    to_host |= name in ("copy_", "_copy_from") and not isinstance(args[name == "_copy_from"], EmulatedTensor)
    uploads = name == "copy_" and isinstance(args[0], EmulatedTensor) and not isinstance(args[1], EmulatedTensor)
    if _into and uploads and args[1].dim() and not any(args[2:]):
        _into[-1][f"upload of {args[1].numel()}"] += 1
    if _into and here and not uploads:
        by_mask = name.startswith("index") and any(leaf.dtype in (torch.bool, torch.uint8) for leaf in here[1:])
        if to_host:
            _into[-1][f"copy of {here[0].numel()}"] += 1
        elif name in WAITS or by_mask:
            _into[-1][name] += 1
    if to_host and name == "_to_copy":
        return out
    return _wrap_outputs(func, args, kwargs, out)


def _wrap_outputs(func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
    """Return what an operator changed in place as it was given, and wrap what is new."""
    changed = [
        kwargs.get(argument.name, args[i] if i < len(args) else None)
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if changed:
        for tensor in changed:  # the wrapper's own size stays
            assert not isinstance(tensor, EmulatedTensor) or tensor.shape == tensor.raw.shape, f"{func} resized"
        return (changed[0] if len(changed) == 1 else tuple(changed)) if func._schema.returns else None
    return tree_map(lambda x: EmulatedTensor(x) if type(x) is torch.Tensor else x, out)


def _unwrap(x: Any) -> Any:
    if isinstance(x, EmulatedTensor):
        return x.raw
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == DEVICE.type else x


_ATEN, _ALL = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
_ALL.fallback(lambda op, *args, **kwargs: run(op, args, kwargs), "PrivateUse1")
_FACTORIES = [torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default]
_FACTORIES += [getattr(torch.ops.aten.arange, name) for name in ("default", "start", "start_step")]
_FACTORIES += [getattr(torch.ops.aten.randperm, name) for name in ("default", "generator")]
for _op in _FACTORIES:
    _ATEN.impl(_op, lambda *args, _op=_op, **kwargs: run(_op, args, kwargs), "PrivateUse1")


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    return run(torch.ops.aten.copy_.default, (target, source, non_blocking), {})


_ATEN.impl("_copy_from", _copy_from, "PrivateUse1")


class EmulatedAccelerator(Accelerator):
    """One emulated device."""

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return 1

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [DEVICE]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "emulated"

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}


def on_device() -> dict[str, Any]:
    """Return the Trainer's arguments that train on it."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # parameters of another class, not other data
    accelerator = EmulatedAccelerator()
    return {"accelerator": accelerator, "strategy": SingleDeviceStrategy(DEVICE)}
