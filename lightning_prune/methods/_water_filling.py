"""Inclusion probabilities in proportion to importance, none above 1: what sampling rules by importance share."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.methods._shared import double_sum, sort_rows


def water_fill(importance: Tensor, budget: Tensor) -> Tensor:
    """Return ``min(1, tau * importance)``, where each row's ``tau`` makes the row add up to its budget.

    With a row's values sorted, ``a_j`` gets 1 where ``a_j (budget - number above) > sum up to j``, which holds for the
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
    size, rising = importance.shape[1], sort_rows(importance)
    if len(rising) == 1:
        first, below = _first_full(rising[0], float(budget))
        num_full, rest = torch.tensor([[size - first]]), torch.tensor([[below]], dtype=torch.float64)
    else:
        num_full, rest = _full_rows(rising, budget[:, None])
    num_full, rest = num_full.to(importance.device), rest.to(importance.device)
    tau = torch.where(rest > 0, (budget[:, None] - num_full) / rest, torch.finfo(torch.float64).max)
    return importance.to(torch.float64, copy=True).mul_(tau).clamp_(max=1)


def _first_full(rising: Tensor, budget: float) -> tuple[int, float]:
    """Return the position of the first of the sorted values ``(m,)`` that gets 1, and the sum of those before it.

    The sum is taken of one half of what is left at a time, so all in all of no more than m values.
    """
    size = len(rising)
    first, end, below = 0, size, 0.0
    while first < end:
        middle = (first + end) // 2
        value, before = float(rising[middle]), below + float(double_sum(rising[first:middle]))
        if value * (budget - (size - 1 - middle)) > before + value:
            end = middle
        else:
            first, below = middle + 1, before + value
    return first, below


def _full_rows(rising: Tensor, budget: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many of each sorted row ``(w, m)`` get 1, and the sum of the others; both ``(w, 1)``."""
    size = rising.shape[1]
    sums = rising.to(torch.float64, copy=True).cumsum_(1)
    first = torch.zeros_like(budget, dtype=torch.int64)
    end = torch.full_like(first, size)
    while bool((first < end).any()):
        middle = (first + end) // 2
        probe = middle.clamp(max=size - 1)
        value = rising.gather(1, probe).double()
        full = value * (budget - (size - 1 - probe)) > sums.gather(1, probe)
        end, first = torch.where(full, middle, end), torch.where(full | (first >= end), first, middle + 1)
    below = sums.gather(1, (first - 1).clamp_(min=0))
    return size - first, torch.where(first > 0, below, 0)
