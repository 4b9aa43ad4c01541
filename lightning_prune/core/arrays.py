"""What NumPy does several times as fast as torch on the CPU: here it is chosen, with the same result either way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def _is_array(values: Tensor) -> bool:
    """Return whether NumPy can read the values: on the CPU, of a type that it knows, without a graph."""
    return values.device.type == "cpu" and values.dtype != torch.bfloat16 and not values.requires_grad


def ids_of(mask: Tensor) -> Tensor:
    """Return the positions ``(k,)``, int64, ascending, where ``mask`` ``(n,)`` is True."""
    return torch.from_numpy(np.flatnonzero(mask.numpy())) if _is_array(mask) else mask.nonzero().squeeze(1)


def count_true(mask: Tensor) -> int:
    """Return how many elements of ``mask`` are True."""
    return int(np.count_nonzero(mask.numpy()) if _is_array(mask) else mask.count_nonzero())


def is_ascending(ids: Tensor) -> bool:
    """Return whether ids ``(k,)`` rise strictly."""
    values = ids.numpy() if _is_array(ids) else ids
    return bool((values[1:] > values[:-1]).all())


def is_finite(values: Tensor) -> Tensor:
    """Return where values are neither NaN nor infinite."""
    return torch.from_numpy(np.isfinite(values.numpy())) if _is_array(values) else values.isfinite()


def is_less(values: Tensor, bound: Tensor) -> Tensor:
    """Return where values lie strictly below a 0-d bound of their dtype; a NaN does not."""
    return torch.from_numpy(values.numpy() < bound.numpy()) if _is_array(values) else values < bound


def sort_rows(values: Tensor) -> Tensor:
    """Return values without NaN, sorted along the last dimension, rising."""
    return torch.from_numpy(np.sort(values.numpy(), axis=-1)) if _is_array(values) else values.sort(dim=-1).values


def partition(values: Tensor, k: int) -> Tensor:
    """Return values ``(n,)`` without NaN so ordered that the k-th, from 0, is in its place, and the lower before it."""
    return torch.from_numpy(np.partition(values.numpy(), k)) if _is_array(values) else values.sort().values


def kth_lowest(values: Tensor, k: int) -> Tensor:
    """Return the k-th lowest, from 1, of values ``(n,)`` without NaN; a 0-d tensor."""
    return partition(values, k - 1)[k - 1] if _is_array(values) else values.kthvalue(k).values


def lowest(values: Tensor, k: int) -> Tensor:
    """Return the k lowest ``(k,)`` of values ``(n,)`` without NaN, in any order."""
    return partition(values, k - 1)[:k]


def to_host(*values: Tensor) -> Callable[[], list[Tensor]]:
    """Start to copy values to the CPU; what is returned waits for the copies, and returns them.

    What a GPU copies goes to pinned memory, while the host goes on. Values on the CPU are returned as they are.
    """
    copies = [_start_copy(value) for value in values]
    events = [torch.cuda.current_stream(value.device).record_event() for value in values if value.is_cuda]

    def wait() -> list[Tensor]:
        for event in events:
            event.synchronize()
        return copies

    return wait


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return values on a device; the host goes on while they are copied, through pinned memory to a GPU."""
    if device.type == "cuda" and not values.is_cuda:
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def _start_copy(values: Tensor) -> Tensor:
    if not values.is_cuda:
        return values.cpu()
    return torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
