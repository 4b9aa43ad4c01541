"""Inclusion probabilities in proportion to importance, none above 1: what sampling rules by importance share."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.methods._shared import sort_rows


def water_fill(importance: Tensor, budget: Tensor) -> Tensor:
    """Return ``min(1, tau * importance)``, where each row's ``tau`` makes the row add up to its budget.

    With a row's values sorted, ``a_j`` gets 1 where ``a_j (budget - number above) >= sum up to j``, which holds for the
    highest ones only; where they begin is found by bisection.

    Args:
        importance: Finite values ``(w, m)`` >= 0.
        budget: What each row adds up to ``(w,)``, float64, >= 0, at most its number of positive values.

    Returns:
        Probabilities ``(w, m)``, float64.

    Example:
        >>> water_fill(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([1.5], dtype=torch.float64))
        tensor([[0.1667, 0.3333, 1.0000]], dtype=torch.float64)
    """
    size = importance.shape[1]
    rising = sort_rows(importance)
    sums = rising.to(torch.float64, copy=True).cumsum_(1)
    left, budget = size - budget[:, None], budget[:, None]
    first = torch.zeros_like(left, dtype=torch.int64)  # of those that get 1
    end = torch.full_like(first, size)
    while bool((first < end).any()):
        middle = (first + end) // 2
        probe = middle.clamp(max=size - 1)
        value = rising.gather(1, probe).double()
        full = (value > 0) & (value * (probe + 1 - left) >= sums.gather(1, probe))
        end, first = torch.where(full, middle, end), torch.where(full | (first >= end), first, middle + 1)
    rest = sums.gather(1, (first - 1).clamp_(min=0))
    if len(rising) == 1 and int(first) > 0:
        rest = rising[:, : int(first)].sum(1, dtype=torch.float64, keepdim=True)  # in pairs, not one by one
    tau = torch.where((first > 0) & (rest > 0), (budget - (size - first)) / rest, torch.finfo(torch.float64).max)
    return importance.to(torch.float64, copy=True).mul_(tau).clamp_(max=1)
