"""AlignPrune's score of every sample, against correlating the whole array at once."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.measure import Row, cpu_seconds
from lightning_prune.methods.alignprune import alignment_score

WINDOW = 25


def naive_pearson(trajectories: Tensor, reference: Tensor) -> Tensor:
    """Return the correlations ``(n,)`` of trajectories ``(n, N)`` with the reference ``(N,)``."""
    x = trajectories - trajectories.mean(1, keepdim=True)
    y = reference - reference.mean()
    return (x * y).sum(1) / ((x**2).sum(1).sqrt() * (y**2).sum().sqrt())


def measure(*, n: int = 1_000_000, rounds: int = 7) -> list[Row]:
    """Return the row; the library stores epoch by epoch, the naive way sample by sample."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.linspace(2, 1, WINDOW)
    ring = reference[:, None] + torch.randn(WINDOW, n, generator=generator)
    by_sample = ring.T.contiguous()
    values = []
    for i in range(rounds + 1):
        naive = cpu_seconds(lambda: naive_pearson(by_sample, reference))
        ours = cpu_seconds(lambda: alignment_score(ring.T, reference))
        if i > 0:
            values.append(ours / naive)
    what = f"alignment score, window {WINDOW} / naive whole-array Pearson"
    return [Row(what, n, values, 0.10, 0.06)]
