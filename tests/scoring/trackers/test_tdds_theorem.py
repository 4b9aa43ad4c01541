"""TDDS, Appendix A: what pruned directions lose is their variance over the epochs, so the least is lost by keeping the
largest; over all coresets of a few samples."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

GRADIENTS = torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.tensor(
    [0.1, 3.0, 1.0, 0.5, 2.0, 0.2], dtype=torch.float64
)
"""T = 9 epochs of N = 6 samples, as in Eq. 14."""
BASIS = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0].T


def lost(kept, basis, offsets):
    """Eq. 14, epoch by epoch: the directions kept as they are, the others as constants."""
    total = 0.0
    for gradient in GRADIENTS:
        approximation = sum((gradient @ basis[n]) * basis[n] for n in kept)
        approximation = approximation + sum(offsets[n] * basis[n] for n in range(6) if n not in kept)
        total += float((gradient - approximation).square().sum())
    return total / len(GRADIENTS)


@pytest.mark.parametrize("basis", [torch.eye(6, dtype=torch.float64), BASIS], ids=["samples", "any"])
def test_the_loss_is_the_variance_of_what_is_pruned(basis):
    means = basis @ GRADIENTS.mean(0)  # Eq. 21
    variances = (GRADIENTS @ basis.T).var(0, correction=0)
    losses = {}
    for kept in combinations(range(6), 3):
        losses[kept] = lost(kept, basis, means)
        pruned = [n for n in range(6) if n not in kept]
        assert losses[kept] == pytest.approx(float(variances[pruned].sum()))  # Eq. 22
        shift = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        assert lost(kept, basis, means + shift) > losses[kept]  # the means are the best constants
    best = tuple(sorted(variances.argsort(descending=True)[:3].tolist()))
    assert min(losses, key=losses.get) == best  # Eq. 5: the coreset of the largest variance
