"""Herding (Welling, ICML 2009): a subset whose mean follows the mean of all."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.core.checks import check_int
from lightning_prune.scoring._inputs import check_points


def herding(features: Tensor, k: int, *, farthest: bool = False) -> Tensor:
    """Choose, at step t, the sample that brings the sum of the chosen closest to t times the mean of all.

    With the mean subtracted that is the sample with the least ``|| s + x ||^2``, s the sum of those chosen before.

    Args:
        features: ``(n, D)``.
        k: Samples to choose, in [1, n].
        farthest: Take the sample with the most instead of the least, as the benchmark does that most published numbers
            for herding come from; they are weak for it.

    Returns:
        Ids ``(k,)``, int64, in the order of choice: each prefix is the choice for a smaller k. Ties go to the lower id.

    Raises:
        TypeError: If ``features`` is not a floating-point tensor.
        ValueError: If a feature is not finite, or ``k`` is out of range.

    References:
        Welling, "Herding Dynamical Weights to Learn", ICML 2009.

    Example:
        >>> herding(torch.tensor([[0.0], [4.0], [5.0], [9.0]]), 2).tolist()
        [1, 2]
    """
    points = check_points("features", features)
    check_int("k", k, low=1, high=len(points))
    points = (points - points.mean(0, dtype=torch.float64)).float()
    norms = points.square().sum(1)
    total = torch.zeros(points.shape[1], dtype=torch.float64, device=points.device)
    order = []
    for _ in range(k):
        distances = torch.addmv(norms, points, total.float(), alpha=2)
        best = distances.argmax() if farthest else distances.argmin()
        norms[best] = -torch.inf if farthest else torch.inf
        total += points[best]
        order.append(best)
    return torch.stack(order)
