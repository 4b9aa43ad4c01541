"""AlignPrune's score of every sample, against correlating the whole array at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import Row, cpu_seconds
from lightning_prune.methods.alignprune import alignment_score

WINDOW = 25


def by_definition(x: Tensor, y: Tensor) -> Tensor:
    """Return ``cov(x, y) / (std(x) std(y))`` ``(n,)`` of trajectories ``(n, N)`` with the reference ``(N,)``."""
    covariance = ((x - x.mean(1, keepdim=True)) * (y - y.mean())).mean(1)
    return covariance / (x.std(1, correction=0) * y.std(correction=0))


def by_norms(x: Tensor, y: Tensor) -> Tensor:
    """Return the same with as few passes over the whole array as it takes."""
    x, y = x - x.mean(1, keepdim=True), y - y.mean()
    return (x * y).sum(1) / (x.norm(dim=1) * y.norm())


def masked(x: Tensor, y: Tensor) -> Tensor:
    """Return the same over what is not NaN."""
    seen = ~x.isnan()
    count, x, y = seen.sum(1, keepdim=True), x.nan_to_num(0), y * seen
    x = (x - x.sum(1, keepdim=True) / count) * seen
    y = (y - y.sum(1, keepdim=True) / count) * seen
    return (x * y).sum(1) / ((x * x).sum(1) * (y * y).sum(1)).sqrt()


def measure(*, n: int = 1_000_000, rounds: int = 7) -> list[Row]:
    """Return the rows; the library stores epoch by epoch, the naive ways sample by sample."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.linspace(2, 1, WINDOW)
    ring = reference[:, None] + torch.randn(WINDOW, n, generator=generator)
    gaps = ring.masked_fill(torch.rand(WINDOW, n, generator=generator) < 0.3, torch.nan)
    what = f"alignment score, window {WINDOW}"
    cases: list[tuple[str, Tensor, Callable[[Tensor, Tensor], Tensor], float | None, float | None]] = [
        (f"{what} / whole array, cov / (std std)", ring, by_definition, 0.10, 0.06),
        (f"{what} / whole array, fewest passes", ring, by_norms, None, None),
        (f"{what}, 30 % missing / whole array, masked", gaps, masked, 0.12, None),
    ]
    rows = []
    for name, stored, naive, must, aim in cases:
        by_sample = stored.T.contiguous()
        values = []
        for i in range(rounds + 1):
            base = cpu_seconds(lambda: naive(by_sample, reference))  # noqa: B023  (called at once)
            ours = cpu_seconds(lambda: alignment_score(stored.T, reference))  # noqa: B023
            if i > 0:
                values.append(ours / base)
        rows.append(Row(name, n, values, must, aim))
    return rows
