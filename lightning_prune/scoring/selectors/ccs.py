"""CCS (Zheng et al., ICLR 2023): drop the hardest samples, then cover all difficulties evenly."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.core.checks import check_int, check_ratio
from lightning_prune.core.rng import resolve_generator
from lightning_prune.scoring.selectors.rank import check_selectable


def ccs(
    scores: Tensor,
    k: int,
    *,
    cutoff_scores: Tensor | None = None,
    hard_cutoff: float = 0.0,
    num_strata: int = 50,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Drop the lowest ``cutoff_scores``, then draw about equally many samples from strata of ``scores``.

    Args:
        scores: What is stratified ``(n,)``, finite. The paper takes AUM.
        k: Samples to keep, in [1, n - dropped].
        cutoff_scores: What is cut ``(n,)``: low means too hard or mislabelled, so AUM. None: ``scores``.
        hard_cutoff: Share of all samples to drop, in [0, 1), rounded down. The code takes 0.3 on CIFAR-10 and on
            ImageNet where 90 % are pruned, 0.2 on ImageNet where 80 % are.
        num_strata: Intervals of equal width. The paper takes 50.
        generator: CPU generator of the draws. None: a fresh one, seeded from the system's entropy.

    Returns:
        Ids ``(k,)``, int64, ascending.

    Raises:
        TypeError: If a score is not a floating-point tensor.
        ValueError: If a score is not finite, an argument is out of range, or the cutoff leaves fewer than ``k``.

    Note:
        The published code returns fewer than k samples without a word if the cutoff leaves too few, and loses the top
        stratum if no score is positive.

    References:
        Zheng et al., "Coverage-centric Coreset Selection for High Pruning Rates", ICLR 2023, arXiv:2210.15809.

    Example:
        >>> ccs(torch.tensor([-9.0, 1.0, 1.1, 5.0]), 2, hard_cutoff=0.25, num_strata=2)[-1]
        tensor(3)
    """
    cutoff_scores = scores if cutoff_scores is None else cutoff_scores
    for name, values in (("scores", scores), ("cutoff_scores", cutoff_scores)):
        check_selectable(values, k)
        if len(values) != len(scores):
            raise ValueError(
                f"Expected `cutoff_scores` of the {len(scores)} samples of `scores`, but got {len(values)}."
            )
        if infinite := int(values.isinf().sum()):
            raise ValueError(
                f"Expected `{name}` to be finite, since strata divide their range, but {infinite} are not."
            )
    check_ratio("hard_cutoff", hard_cutoff)
    check_int("num_strata", num_strata, low=1)
    dropped = int(len(scores) * hard_cutoff + 1e-6)
    if k > len(scores) - dropped:
        raise ValueError(
            f"Expected `k` <= {len(scores) - dropped}, which `hard_cutoff={hard_cutoff}` leaves of {len(scores)} "
            f"samples, but got {k}. Prune more or cut less."
        )
    kept = cutoff_scores.argsort(stable=True)[dropped:].sort().values
    strata = assign_strata(scores[kept], num_strata)
    budgets = stratum_budgets(strata.bincount(minlength=num_strata), k)
    keys = torch.rand(len(kept), generator=resolve_generator(generator), dtype=torch.float32).to(scores.device)
    order = keys.argsort(stable=True)
    order = order[strata[order].argsort(stable=True)]  # by stratum, at random within
    ordered = strata[order]
    rank = torch.arange(len(kept), device=scores.device) - torch.searchsorted(ordered, ordered)
    return kept[order[rank < budgets[ordered]]].sort().values


def assign_strata(scores: Tensor, num_strata: int) -> Tensor:
    """Return the stratum of each score ``(m,)``, int64: intervals of equal width from the least to the largest.

    Note:
        The upper end is 1.0001 max for a positive max, as published; otherwise max plus a ten-thousandth of the range.

    Example:
        >>> assign_strata(torch.tensor([0.0, 0.4, 0.6, 1.0]), 2).tolist()
        [0, 0, 1, 1]
    """
    low, high = torch.aminmax(scores.double())
    end = torch.where(high > 0, 1.0001 * high, high + 1e-4 * (high - low))
    step = (end - low) / num_strata
    strata = torch.where(step > 0, (scores - low) / step, 0).long()
    return strata.clamp(0, num_strata - 1)


def stratum_budgets(sizes: Tensor, k: int) -> Tensor:
    """Split ``k`` evenly over strata; small ones are taken whole, and what they lack goes to larger ones.

    Args:
        sizes: Samples in each stratum ``(M,)``, int64, in all at least ``k``.
        k: Samples to keep.

    Returns:
        Samples to keep of each ``(M,)``, int64, in all ``k``. Equal sizes are served in order.

    Example:
        >>> stratum_budgets(torch.tensor([1, 9, 4]), 9).tolist()
        [1, 4, 4]
    """
    budgets, rest = torch.zeros_like(sizes), k
    for served, (size, stratum) in enumerate(sorted(zip(sizes.tolist(), range(len(sizes)), strict=True))):
        budgets[stratum] = min(size, rest // (len(sizes) - served))
        rest -= int(budgets[stratum])
    return budgets
