"""Sums and means of per-sample values that stay exact where values are equal, many, or not finite."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.core.arrays import count_true, is_finite, is_less
from lightning_prune.core.part import Part, chunk_size

_FEW = 1 << 15
"""So many values are summed by one thread: a row of several has the sum that it has alone."""


def double_sum(values: Tensor, part: Part | None = None) -> Tensor:
    """Return the float64 sum of ``values`` ``(n,)``, a 0-d tensor; of the whole, where a process has a part of them.

    Chunk by chunk: torch on the CPU would first copy the whole tensor to float64, and a chunk is never shared.
    """
    part = Part.whole(len(values)) if part is None else part
    chunk = chunk_size(part.total)
    sums = torch.empty(-(-len(values) // chunk), dtype=torch.float64, device=values.device)
    rows = len(values) // chunk if part.total <= _FEW and values.is_cpu else 0
    if rows:
        sums[:rows] = values[: rows * chunk].reshape(rows, chunk).sum(1, dtype=torch.float64)
    for place in range(rows, len(sums)):  # a result that stays behind each would keep the heap from closing its gaps
        sums[place] = values[place * chunk : (place + 1) * chunk].sum(dtype=torch.float64)
    return part.joined(sums, part.start // chunk, -(-part.total // chunk)).sum()


def finite_mean(scores: Tensor, part: Part | None = None) -> Tensor:
    """Return the float64 mean of the finite scores, a 0-d tensor; NaN if there is none; of the whole, given a part.

    In float32 the mean of equal values can lie above all of them, which would mark every sample as easy.
    """
    part = Part.whole(len(scores)) if part is None else part
    total = double_sum(scores, part)
    if bool(total.isfinite()):  # then so is every score: a float64 sum of float32 values does not overflow
        return total / part.total
    finite = is_finite(scores)
    return double_sum(scores.nan_to_num(0, 0, 0), part) / part.count(finite)


def below(scores: Tensor, threshold: Tensor) -> Tensor:
    """Return where finite scores lie strictly below a 0-d float64 threshold, exactly, without a float64 copy of them.

    Example:
        >>> below(torch.tensor([1.0, 2.0, -torch.inf, torch.nan]), torch.tensor(1.5, dtype=torch.float64))
        tensor([ True, False, False, False])
    """
    bound = threshold.to(scores.dtype)
    above = torch.nextafter(bound, torch.full_like(bound, torch.inf))
    bound = torch.where(bound < threshold, above, bound)  # the least score that is not below the threshold
    low = is_less(scores, bound)
    return low if bool(scores.amin() > -torch.inf) else low & (scores > -torch.inf)  # a NaN makes the least one NaN


def surely_finite(scores: Tensor) -> bool:
    """Return whether the sum of the scores is finite, and so is each; without a temporary."""
    return bool(scores.sum().isfinite())


def count_nonfinite(scores: Tensor) -> int:
    """Return how many scores are NaN or infinite."""
    if surely_finite(scores):
        return 0
    return len(scores) - count_true(is_finite(scores))


def infinite_where_nonfinite(scores: Tensor) -> Tensor:
    """Return scores ``(n,)`` with NaN and infinite ones at +inf: first, for rules that keep the highest."""
    return scores if surely_finite(scores) else scores.nan_to_num(torch.inf, torch.inf, torch.inf)
