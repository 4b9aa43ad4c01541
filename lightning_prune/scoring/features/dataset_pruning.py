"""DP (Yang et al., ICLR 2023): prune the set of samples whose influences on the parameters cancel out."""

from __future__ import annotations

import math
from typing import final

import numpy as np
import torch
from torch import Tensor

from lightning_prune.core.checks import check_int, check_number
from lightning_prune.core.rng import numpy_generator, resolve_generator
from lightning_prune.scoring._inputs import check_points
from lightning_prune.scoring.features.influence import parameter_influence, read_head

_MOST_PROPOSALS = 64
"""Swaps that are tried at once; the best of them may be made. Of few samples, fewer: else they would be all."""
_HOT, _COLD = 0.3, 1e-6
"""Temperature at the start and at the end, as a share of the vectors' mean squared length."""


def influence_vectors(
    logits: Tensor,
    features: Tensor,
    targets: Tensor,
    *,
    dimensions: int = 256,
    damping: float = 0.01,
    hessian_samples: int = 1024,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return what leaving out each sample would change of the last layer's parameters, seen in a few directions.

    ``H^-1 G_i / n`` of :func:`influence`, times a random matrix that keeps lengths and angles on average, unless the
    layer has no more parameters than ``dimensions``.

    Args:
        logits: ``(n, C)`` of a trained model.
        features: Input of its last linear layer ``(n, D)``.
        targets: Class ids ``(n,)``.
        dimensions: Directions d.
        damping: Added to the Hessian's diagonal, > 0.
        hessian_samples: Samples, at random, by which the Hessian is estimated.
        generator: CPU generator of the draws. None: a fresh one, seeded from the system's entropy.

    Returns:
        ``(n, d)``, float32; d is at most ``dimensions``.

    Raises:
        TypeError: If an input is not of the expected type.
        ValueError: If an element is not finite, a shape is wrong, or an argument is out of range.

    Example:
        >>> logits = torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 3.0]])
        >>> influence_vectors(logits, torch.ones(3, 1), torch.tensor([0, 1, 0])).shape
        torch.Size([3, 4])
    """
    check_int("dimensions", dimensions, low=1)
    generator = resolve_generator(generator)
    probs, errors, inputs = read_head(logits, features, targets)
    size = probs.shape[1] * inputs.shape[1]
    seen = None
    if size > dimensions:
        seen = torch.randn(size, dimensions, generator=generator, dtype=torch.float64) / math.sqrt(dimensions)
        seen = seen.to(probs.device)
    blocks = parameter_influence(probs, errors, inputs, damping, hessian_samples, generator)
    rows = [block.flatten(1) if seen is None else block.flatten(1) @ seen for block in blocks]
    return (torch.cat(rows) / len(probs)).float()


def dataset_pruning(
    vectors: Tensor,
    num_pruned: int | None = None,
    *,
    max_change: float | None = None,
    swaps: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose the samples to prune so that the parameters change little: their influences add up to a short vector.

    With ``num_pruned`` ("cardinality guaranteed"): as many samples, of the shortest sum that is found. With
    ``max_change`` ("generalization guaranteed"): the most samples whose sum is no longer than that.

    Args:
        vectors: Influence of leaving out each sample ``(n, d)``, as :func:`influence_vectors` returns them.
        num_pruned: Samples to prune, in [0, n).
        max_change: Largest length of the sum, >= 0, in the units of the parameters; instead of ``num_pruned``.
        swaps: Swaps that are tried, of a pruned sample with a kept one. None: 100 a sample, between 10,000 and 500,000.
        generator: CPU generator of the draws. None: a fresh one, seeded from the system's entropy.

    Returns:
        Ids to prune ``(m,)``, int64, ascending.

    Raises:
        TypeError: If ``vectors`` is not a floating-point tensor.
        ValueError: If an element is not finite, an argument is out of range, or both or neither of ``num_pruned`` and
            ``max_change`` are given.

    Note:
        Solved by simulated annealing, as in the paper: from the samples of the least influence, the best of some random
        swaps is made if it shortens the sum, or by chance while the temperature is high. The best set seen is returned.

    References:
        Yang et al., "Dataset Pruning: Reducing Training Data by Examining Generalization Influence", ICLR 2023,
        arXiv:2205.09329.

    Example:
        >>> vectors = torch.tensor([[1.0], [-1.0], [0.6], [5.0]])
        >>> dataset_pruning(vectors, 2, swaps=500, generator=torch.Generator().manual_seed(0)).tolist()
        [0, 1]
        >>> dataset_pruning(vectors, max_change=0.7, swaps=500, generator=torch.Generator().manual_seed(0)).tolist()
        [0, 1, 2]
    """
    points = check_points("vectors", vectors).double().cpu().numpy()
    n = len(points)
    if (num_pruned is None) == (max_change is None):
        raise ValueError(f"Expected one of `num_pruned` and `max_change`, but got {num_pruned!r} and {max_change!r}.")
    if swaps is not None:
        check_int("swaps", swaps, low=0)
    search = _Annealing(
        points, min(max(10_000, 100 * n), 500_000) if swaps is None else swaps, resolve_generator(generator)
    )
    if num_pruned is not None:
        check_int("num_pruned", num_pruned, low=0, high=n - 1)
        return torch.from_numpy(np.sort(search.solve(num_pruned)))
    check_number("max_change", max_change, "a number >= 0", max_change is not None and float(max_change) >= 0)
    return torch.from_numpy(np.sort(_most_within(search, points, float(max_change or 0))))


def _most_within(search: _Annealing, points: np.ndarray, bound: float) -> np.ndarray:
    """Return the largest set found whose sum is within the bound, by bisection over its size."""
    best, low, high = np.zeros(0, dtype=np.int64), 0, len(points) - 1
    while low < high:
        middle = (low + high + 1) // 2
        found = search.solve(middle)
        if np.linalg.norm(points[found].sum(0)) <= bound:
            best, low = found, middle
        else:
            high = middle - 1
    return best


@final
class _Annealing:
    """Finds sets of vectors with a short sum."""

    def __init__(self, points: np.ndarray, swaps: int, generator: torch.Generator) -> None:
        self.points, self.swaps = points, swaps
        self.lengths = np.linalg.norm(points, axis=1)
        self.scale = max(float(np.mean(self.lengths**2)), np.finfo(np.float64).tiny)
        self.random = numpy_generator(generator)

    def solve(self, size: int) -> np.ndarray:
        """Return the ids ``(size,)`` of the shortest sum that was seen."""
        order = np.argsort(self.lengths, kind="stable")
        inside, outside = order[:size], order[size:]
        total = self.points[inside].sum(0)
        now = least = float(total @ total)
        best = inside.copy()
        tried = min(_MOST_PROPOSALS, 1 + len(self.points) // 32)
        rounds = self.swaps // tried if size else 0
        for step in range(rounds):
            heat = self.scale * _HOT * (_COLD / _HOT) ** (step / rounds)
            out, into = self.random.integers(size, size=tried), self.random.integers(len(outside), size=tried)
            sums = total + self.points[outside[into]] - self.points[inside[out]]
            squares = np.einsum("ij,ij->i", sums, sums)
            pick = int(squares.argmin())
            rise = float(squares[pick]) - now
            if rise > 0 and self.random.random() >= math.exp(-rise / heat):
                continue
            a, b = out[pick], into[pick]
            inside[a], outside[b] = outside[b], inside[a]
            total, now = sums[pick], float(squares[pick])
            if now < least:
                least, best = now, inside.copy()
        return best
