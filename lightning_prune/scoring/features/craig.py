"""CRAIG (Mirzasoleiman et al., ICML 2020): weighted samples whose gradients stand for those of their class."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_prune.core.plan import Selection, num_keep
from lightning_prune.scoring._inputs import check_points, check_targets
from lightning_prune.scoring.selectors.rank import class_budgets

_SHIFT = 1e-3
_BLOCK = 64


def craig(output_grads: Tensor, features: Tensor, targets: Tensor, keep_ratio: float) -> Selection:
    """Choose medoids of last-layer gradients by facility location, class by class.

    The gradient of sample i is ``[g_i ; g_i (x) h_i]``; the similarity of i and j is the largest distance in their
    class minus theirs, plus 1e-3. Greedily maximises the sum over i of its similarity to the nearest chosen one.

    Args:
        output_grads: ``g = softmax(z) - onehot(y)``, ``(n, C)``.
        features: Input h of the last linear layer ``(n, D)``.
        targets: Class ids ``(n,)``.
        keep_ratio: Share to keep, in (0, 1], of all and, up to rounding, of every class.

    Returns:
        Ids ``(k,)``, class by class, ascending within. Weights: how many samples each stands for; their sum is n, so
        divide by ``n / k`` for a mean of 1.

    Raises:
        TypeError: If an input is not of the expected type.
        ValueError: If an element is not finite, or a shape or the ratio is wrong.

    Note:
        Gradients are never built: ``<G_i, G_j> = (g_i . g_j)(1 + h_i . h_j)``; nor is the class's similarity matrix:
        bounds from earlier steps tell which columns are worth computing. A benchmark's weights are one too large.

    References:
        Mirzasoleiman et al., "Coresets for Data-efficient Training of Machine Learning Models", ICML 2020,
        arXiv:1906.01827.

    Example:
        >>> grads = torch.tensor([[0.1, -0.1], [0.2, -0.2], [0.3, -0.3], [0.9, -0.9]])
        >>> chosen = craig(grads, torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64), 0.5)
        >>> chosen.indices.tolist(), chosen.weights.tolist()
        ([1, 3], [3.0, 1.0])
    """
    check_points("output_grads", output_grads, min_columns=2)
    check_points("features", features, rows=len(output_grads))
    targets = check_targets(targets, rows=len(output_grads))
    indices, weights = [], []
    for label, budget in class_budgets(targets, num_keep(len(targets), keep_ratio)).items():
        if budget == 0:
            continue
        ids = (targets == label).nonzero().squeeze(1)
        order, counts = _facility_location(_Distances(output_grads[ids].double(), features[ids].double()), budget)
        ascending = order.argsort()
        indices.append(ids[order[ascending]])
        weights.append(counts[ascending])
    return Selection(torch.cat(indices), torch.cat(weights).float())


@final
class _Distances:
    """Distances of the last-layer gradients of one class, a block of columns at a time."""

    def __init__(self, grads: Tensor, features: Tensor) -> None:
        self.grads = grads
        self.features = features
        self.norms = grads.square().sum(1) * (1 + features.square().sum(1))

    def __call__(self, columns: Tensor) -> Tensor:
        """Return ``(n, len(columns))``."""
        product = (self.grads @ self.grads[columns].T) * (1 + self.features @ self.features[columns].T)
        squared = self.norms[:, None] + self.norms[columns] - 2 * product
        distances = squared.clamp_(min=0).sqrt_()
        distances[columns, torch.arange(len(columns), device=columns.device)] = 0
        return distances


def _facility_location(distances: _Distances, k: int) -> tuple[Tensor, Tensor]:
    """Return ``k`` medoids in the order of choice, and how many samples each stands for."""
    n, device = len(distances.norms), distances.norms.device
    sums = torch.empty(n, dtype=torch.float64, device=device)
    top = torch.zeros((), dtype=torch.float64, device=device)
    for columns in torch.split(torch.arange(n, device=device), 4 * _BLOCK):
        block = distances(columns)
        sums[columns] = block.sum(0)
        top = torch.maximum(top, block.max())
    bounds = n * (top + _SHIFT) - sums  # gains over the empty set; later ones can only be smaller
    covered = torch.zeros(n, dtype=torch.float64, device=device)
    owner = torch.zeros(n, dtype=torch.int64, device=device)
    order: list[Tensor] = []
    while len(order) < k:
        fresh = torch.zeros(n, dtype=torch.bool, device=device)
        while not bool(fresh[best := bounds.argmax()]) and order:
            columns = bounds.topk(min(_BLOCK, n)).indices
            gains = (top + _SHIFT - distances(columns) - covered[:, None]).clamp_(min=0).sum(0)
            bounds[columns] = torch.where(bounds[columns].isinf(), bounds[columns], gains)
            fresh[columns] = True
        similarity = (top + _SHIFT - distances(best[None])).squeeze(1)
        owner[similarity > covered] = len(order)
        covered = torch.maximum(covered, similarity)
        bounds[best] = -torch.inf
        order.append(best)
    return torch.stack(order), owner.bincount(minlength=k)
