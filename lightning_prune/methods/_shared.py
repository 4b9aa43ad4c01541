"""Small pure functions that several methods need."""

from __future__ import annotations

import torch
from torch import Tensor


def finite_mean(scores: Tensor) -> Tensor:
    """Return the float64 mean of the finite scores, a 0-d tensor; NaN if there is none.

    In float32 the mean of equal values can lie above all of them, which would mark every sample as easy.
    """
    finite = scores.isfinite()
    return torch.where(finite, scores, 0).sum(dtype=torch.float64) / finite.sum()
