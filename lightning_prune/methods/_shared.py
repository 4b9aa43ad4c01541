"""Small pure functions that several methods need."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.plan import ids_of
from lightning_prune.rng import permutation

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


def draw(ids: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return ``k`` of ``ids`` ``(m,)``, drawn uniformly without replacement, in random order."""
    picks = permutation(len(ids), generator)[:k]
    return ids.index_select(0, picks.to(ids.device))


def top_mask(scores: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return where the ``k`` highest of ``scores`` ``(n,)`` are, as a mask ``(n,)``.

    Non-finite scores (NaN: never seen) rank above all others; ties at the cut are broken uniformly at random.

    Example:
        >>> top_mask(torch.tensor([0.5, torch.nan, 2.0, 1.0]), 2, torch.Generator().manual_seed(0))
        tensor([False,  True,  True, False])
    """
    if k == 0:
        return torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    if scores.is_floating_point() and count_nonfinite(scores):
        scores = torch.where(scores.isfinite(), scores, torch.inf)
    cut = scores.kthvalue(len(scores) - k + 1).values
    mask, tied = scores > cut, scores == cut
    missing = k - int(mask.count_nonzero())
    if missing == int(tied.count_nonzero()):
        return mask | tied
    return mask.index_fill_(0, draw(ids_of(tied), missing, generator), True)


def blend(old: Tensor, new: Tensor, weight: float) -> Tensor:
    """Return the moving average ``(1 - weight) * old + weight * new``, restarted at ``new`` where it is not finite."""
    average = torch.lerp(old, new, weight)
    return torch.where(average.isfinite(), average, new)
