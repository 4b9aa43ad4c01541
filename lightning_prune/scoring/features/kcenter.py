"""K-Center greedy (Sener & Savarese, ICLR 2018): always the sample farthest from those already chosen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_prune.core.checks import check_int
from lightning_prune.core.rng import resolve_generator
from lightning_prune.scoring._inputs import check_points


def kcenter(features: Tensor, k: int, *, first: int | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Choose samples so that every other is close to a chosen one (a 2-approximation of the smallest radius).

    Args:
        features: ``(n, D)``.
        k: Samples to choose, in [1, n].
        first: Id of the first one. None: drawn uniformly.
        generator: CPU generator of that draw. None: a fresh one, seeded from the system's entropy.

    Returns:
        Ids ``(k,)``, int64, in the order of choice: each prefix is the choice for a smaller k. Ties go to the lower id.

    Raises:
        TypeError: If ``features`` is not a floating-point tensor.
        ValueError: If a feature is not finite, or ``k`` or ``first`` is out of range.

    Note:
        O(n D) time a step and 4 n D bytes; the published code keeps a k x n matrix.

    References:
        Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018,
        arXiv:1708.00489.

    Example:
        >>> kcenter(torch.tensor([[0.0], [1.0], [5.0], [9.0]]), 3, first=0).tolist()
        [0, 3, 2]
    """
    points = check_points("features", features).float()
    points = points - points.mean(0)  # |x|^2 + |y|^2 - 2 xy cancels least around the origin
    norms = points.square().sum(1)
    return farthest_first(
        lambda center: torch.addmv(norms, points, points[center], alpha=-2).add_(norms[center]),
        len(points),
        k,
        first,
        generator,
    )


def farthest_first(
    distances_to: Callable[[Tensor], Tensor], n: int, k: int, first: int | None, generator: torch.Generator | None
) -> Tensor:
    """Choose ``k`` of ``n`` ids, each farthest from those before it; ``distances_to(id)`` returns ``(n,)``."""
    check_int("k", k, low=1, high=n)
    if first is None:
        first = int(torch.randint(n, (), generator=resolve_generator(generator)))
    check_int("first", first, low=0, high=n - 1)
    center = torch.tensor(first)
    nearest: Tensor | None = None
    order = []
    for _ in range(k):
        order.append(center)
        distances = distances_to(center)
        nearest = distances if nearest is None else torch.minimum(nearest, distances, out=nearest)
        nearest[center] = -torch.inf
        center = nearest.argmax()
    return torch.stack([center.to(order[-1].device) for center in order])
