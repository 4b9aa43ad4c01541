"""Inclusion probabilities in proportion to importance, none above 1: what sampling rules by importance share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def sorted_rows(values: Tensor) -> Tensor:
    """Return rows in rising order; on the CPU NumPy's vectorised sort is several times as fast as torch's."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(dim=-1).values


def water_fill(importance: Tensor, budget: Tensor) -> Tensor:
    """Return ``min(1, tau * importance)``, where each row's ``tau`` makes the row add up to its budget.

    With a row's values sorted, ``a_j`` gets 1 where ``a_j (budget - number above) >= sum up to j``, which holds for the
    highest ones only; so no iteration is needed.

    Args:
        importance: Finite values ``(w, m)`` >= 0.
        budget: What each row adds up to ``(w,)``, float64, at least 0 and at most its number of positive values.

    Returns:
        Probabilities ``(w, m)``, float64.

    Example:
        >>> water_fill(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([1.5], dtype=torch.float64))
        tensor([[0.1667, 0.3333, 1.0000]], dtype=torch.float64)
    """
    size = importance.shape[1]
    rising = sorted_rows(importance).double()
    left = budget[:, None] - torch.arange(size - 1, -1, -1, dtype=torch.float64, device=importance.device)
    full = (left.mul_(rising) >= rising.cumsum(1)).logical_and_(rising > 0)
    num_full = full.sum(1, keepdim=True)
    rest = rising.masked_fill_(full, 0).sum(1, keepdim=True)  # summed anew: in pairs, not one by one
    tau = torch.where(rest > 0, (budget[:, None] - num_full) / rest, torch.inf)
    chances = importance.double().mul(tau).clamp_(max=1)
    return chances.nan_to_num_(nan=0.0)  # 0 * inf: there are only zeros beside those that are full
