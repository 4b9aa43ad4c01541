"""Small pure functions that several methods need."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 1 << 16
"""Elements summed at a time: torch on the CPU would first copy the whole tensor to float64."""


def finite_mean(scores: Tensor) -> Tensor:
    """Return the float64 mean of the finite scores, a 0-d tensor; NaN if there is none.

    In float32 the mean of equal values can lie above all of them, which would mark every sample as easy.
    """
    total = torch.stack([chunk.sum(dtype=torch.float64) for chunk in torch.split(scores, _CHUNK)]).sum()
    if bool(total.isfinite()):  # then so is every score: a float64 sum of float32 values does not overflow
        return total / len(scores)
    finite = scores.isfinite()
    return torch.where(finite, scores, 0).sum(dtype=torch.float64) / finite.sum()


def below(scores: Tensor, threshold: Tensor) -> Tensor:
    """Return where finite scores lie strictly below a 0-d float64 threshold, exactly, without a float64 copy of them.

    Example:
        >>> below(torch.tensor([1.0, 2.0, -torch.inf, torch.nan]), torch.tensor(1.5, dtype=torch.float64))
        tensor([ True, False, False, False])
    """
    bound = threshold.to(scores.dtype)
    above = torch.nextafter(bound, torch.full_like(bound, torch.inf))
    bound = torch.where(bound < threshold, above, bound)  # the least score that is not below the threshold
    return (scores < bound) & (scores > -torch.inf)


def count_nonfinite(scores: Tensor) -> int:
    """Return how many scores are NaN or infinite."""
    if bool(scores.sum().isfinite()):  # the usual case, without a temporary
        return 0
    return len(scores) - int(scores.isfinite().count_nonzero())
