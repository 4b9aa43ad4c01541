"""Inclusion probabilities in proportion to importance, none above 1: what sampling rules by importance share."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.core.arrays import partition, sort_rows
from lightning_prune.core.part import Part
from lightning_prune.core.stats import double_sum


def water_fill(importance: Tensor, budget: Tensor) -> Tensor:
    """Return ``min(1, tau * importance)``, where each row's ``tau`` makes the row add up to its budget.

    With a row's values sorted, ``a_j`` gets 1 where ``a_j (budget - number above) > sum up to j``, which holds for the
    highest ones only; how many these are is found by bisection.

    Args:
        importance: Finite values ``(w, m)`` >= 0.
        budget: What each row adds up to ``(w,)``, float64, >= 0, at most its number of positive values.

    Returns:
        Probabilities ``(w, m)``, float64.

    Example:
        >>> water_fill(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([1.5], dtype=torch.float64))
        tensor([[0.1667, 0.3333, 1.0000]], dtype=torch.float64)
    """
    if len(importance) == 1:
        full, below = _num_full(importance[0], float(budget))
        num_full, rest = torch.tensor([[full]]), torch.tensor([[below]], dtype=torch.float64)
    else:
        num_full, rest = _full_rows(sort_rows(importance), budget[:, None])
    num_full, rest = num_full.to(importance.device), rest.to(importance.device)
    tau = torch.where(rest > 0, (budget[:, None] - num_full) / rest, torch.finfo(torch.float64).max)
    return importance.to(torch.float64, copy=True).mul_(tau).clamp_(max=1)


def water_fill_part(importance: Tensor, budget: float, part: Part) -> Tensor:
    """Return a part ``(m,)``, float64, of what :func:`water_fill` makes of the whole, up to rounding; collective.

    ``tau`` rises from that of no value at 1: each time, values that it would put above 1 get 1, and what is left is
    shared by the others. It stops when there are no more of these, mostly after a few times.

    Args:
        importance: Finite values ``(m,)`` >= 0 of this process.
        budget: What the whole adds up to, at most its number of positive values.
        part: Who takes part.
    """
    num_full, tau = -1, 0.0
    full = torch.zeros_like(importance, dtype=torch.bool)
    while (counted := part.count(full)) > num_full:
        num_full = counted
        rest = float(part.add_up(double_sum(importance.masked_fill(full, 0))))
        tau = (budget - num_full) / rest if rest > 0 else torch.finfo(torch.float64).max
        full = importance.double() * tau >= 1
    return importance.to(torch.float64, copy=True).mul_(tau).clamp_(max=1)


def _num_full(values: Tensor, budget: float) -> tuple[int, float]:
    """Return how many of the values ``(m,)`` get 1, and the sum of the others.

    What is left is halved around its median, not sorted, until it is known on which side each value is.
    """
    num_full, below = 0, 0.0
    while len(values):
        middle = len(values) // 2
        values = partition(values, middle)
        value, before = float(values[middle]), below + float(double_sum(values[:middle]))
        num_above = num_full + len(values) - 1 - middle
        if value * (budget - num_above) > before + value:
            values, num_full = values[:middle], num_above + 1
        else:
            values, below = values[middle + 1 :], before + value
    return num_full, below


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
