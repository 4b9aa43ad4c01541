"""Moderate (Xia et al., ICLR 2023): the distance to the centre of one's class."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_prune.core.checks import check_choice
from lightning_prune.scoring._inputs import check_points, check_targets


def moderate_distance(features: Tensor, targets: Tensor, *, center: Literal["median", "mean"] = "median") -> Tensor:
    """Return the Euclidean distance of each sample to its class's centre; :func:`select_middle` keeps the middle.

    Args:
        features: Penultimate features ``(n, D)`` of a trained model.
        targets: Class ids ``(n,)``, any integers.
        center: Element-wise ``"median"`` of the class, as in the authors' code (of an even number, the mean of the two
            middle values), or ``"mean"``.

    Returns:
        Distances ``(n,)``, float32; neither end is kept, the middle is.

    Raises:
        TypeError: If ``features`` is not a floating-point tensor.
        ValueError: If a shape is wrong, a feature is not finite, or ``center`` is neither.

    References:
        Xia et al., "Moderate Coreset: A Universal Method of Data Selection for Real-world Data-efficient Deep
        Learning", ICLR 2023.

    Example:
        >>> moderate_distance(torch.tensor([[0.0], [1.0], [5.0], [7.0]]), torch.tensor([0, 0, 0, 1]))
        tensor([1., 0., 4., 0.])
    """
    check_points("features", features)
    targets = check_targets(targets, rows=len(features))
    check_choice("center", center, ("median", "mean"))
    distances = torch.empty(len(features), dtype=torch.float32, device=features.device)
    for label in torch.unique(targets):  # one class at a time: the sort needs a copy
        ids = (targets == label).nonzero().squeeze(1)
        members = features[ids].float()
        middle = members.mean(0) if center == "mean" else _median(members)
        distances[ids] = torch.linalg.vector_norm(members - middle, dim=1)
    return distances


def _median(points: Tensor) -> Tensor:
    ordered, m = points.sort(dim=0).values, len(points)
    return (ordered[(m - 1) // 2] + ordered[m // 2]) / 2
