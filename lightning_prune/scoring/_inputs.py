"""Checks of per-batch and per-sample inputs that scores share."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_matrix(name: str, value: object, *, rows: int | None = None, min_columns: int = 1) -> Tensor:
    """Return ``value`` if it is a floating-point tensor ``(rows, columns)`` with enough columns.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If the shape is another one.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"Expected `{name}` to be a floating-point tensor, but got {got}.")
    wrong = value.dim() != 2 or (rows is not None and len(value) != rows)
    if wrong or value.shape[1] < min_columns:
        shape = f"({'n' if rows is None else rows}, d) with d >= {min_columns}"
        raise ValueError(f"Expected `{name}` to have shape {shape}, but got {tuple(value.shape)}.")
    return value


def check_points(name: str, value: object, *, rows: int | None = None, min_columns: int = 1) -> Tensor:
    """Return ``value`` if it is a non-empty, finite, floating-point tensor ``(n, d)``.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If the shape is another one, or an element is NaN or infinite.
    """
    points = check_matrix(name, value, rows=rows, min_columns=min_columns).detach()
    if len(points) == 0:
        raise ValueError(f"Expected `{name}` to have at least one row, but got none.")
    check_finite(name, points)
    return points


def check_finite(name: str, value: Tensor) -> None:
    """Raise ValueError if an element is NaN or infinite."""
    if not bool(value.isfinite().all()):
        bad = int((~value.isfinite()).sum())
        raise ValueError(f"Expected `{name}` to be finite, but got {bad} NaN or infinite elements.")


def check_targets(value: object, *, rows: int) -> Tensor:
    """Return ``value`` as int64 if it holds one class id per sample.

    Raises:
        TypeError: If it is not a tensor.
        ValueError: If it is not integer of shape ``(rows,)``: mixed targets (mixup, cutmix) have no one class.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"Expected `targets` to be a tensor of class ids, but got {type(value).__name__}.")
    if value.dtype not in _INTEGERS or value.shape != (rows,):
        raise ValueError(
            f"Expected `targets` to be class ids of shape ({rows},) and integer dtype, but got shape "
            f"{tuple(value.shape)} and {value.dtype}. Mixed targets (mixup, cutmix, soft labels) have no class to "
            "score: pass the logits and class ids of an unmixed view."
        )
    return value.detach().long()
