"""Contextual diversity (Agarwal et al., ECCV 2020): K-Center on predictions, with a symmetric KL divergence."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.scoring._inputs import check_points
from lightning_prune.scoring.features.kcenter import farthest_first


def contextual_diversity(
    probs: Tensor, k: int, *, first: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Choose samples whose predictions differ: K-Center with ``(KL(a||b) + KL(b||a)) / 2``.

    Args:
        probs: Predicted probabilities ``(n, C)`` of a trained model; below 1e-8 they count as 1e-8.
        k: Samples to choose, in [1, n].
        first: Id of the first one. None: drawn uniformly.
        generator: CPU generator of that draw. None: a fresh one, seeded from the system's entropy.

    Returns:
        Ids ``(k,)``, int64, in the order of choice. Ties go to the lower id.

    Raises:
        TypeError: If ``probs`` is not a floating-point tensor.
        ValueError: If an element is not finite or is negative, C < 2, or ``k`` or ``first`` is out of range.

    References:
        Agarwal et al., "Contextual Diversity for Active Learning", ECCV 2020, arXiv:2008.05723.

    Example:
        >>> contextual_diversity(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]]), 2, first=0).tolist()
        [0, 2]
    """
    check_points("probs", probs, min_columns=2)
    if bool((probs < 0).any()):
        raise ValueError("Expected `probs` to be probabilities, but got a negative element. Apply softmax first.")
    p = probs.double().clamp(min=1e-8)
    log_p = p.log()
    # 2 d(a, b) = sum (a - b)(log a - log b): own terms once, mixed terms as one product of [a, log a] and [log b, b]
    own = (p * log_p).sum(1)
    left, right = torch.cat([p, log_p], 1), torch.cat([log_p, p], 1)
    return farthest_first(
        lambda center: torch.addmv(own, left, right[center], alpha=-1).add_(own[center]), len(p), k, first, generator
    )
