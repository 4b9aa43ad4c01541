"""Static random pruning: the baseline that every score has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.core.checks import check_int
from lightning_prune.core.rng import resolve_generator

RANDOM = "random"
"""What `StaticPruning(scores=...)` takes in place of a score file, for a random coreset."""
RANDOM_CORESET = "random coreset"
"""What a static random draw is for, to `make_generator`: the file and `StaticPruning("random")` draw the same."""


def random_scores(num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Return scores that are a random order of the samples: what is kept of them is a uniform subset of any size.

    Args:
        num_samples: Number of samples n.
        generator: CPU generator of the draw. None: a fresh one, seeded from the system's entropy.

    Returns:
        ``(n,)``, float32: a permutation of 0 ... n - 1, over n.

    Raises:
        ValueError: If ``num_samples`` is less than 1.

    Example:
        >>> random_scores(4, generator=torch.Generator().manual_seed(0)).sort().values
        tensor([0.0000, 0.2500, 0.5000, 0.7500])
    """
    check_int("num_samples", num_samples, low=1)
    order = torch.randperm(num_samples, generator=resolve_generator(generator))
    return (order.double() / num_samples).float()
